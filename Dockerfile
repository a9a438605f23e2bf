# The engine and the operator for Linux, CPU back end.
#   docker build --target ds4 -t registry.example/ds4:0.1.0 .
#   docker build --target ds4-operator -t registry.example/ds4-operator:0.1.0 .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p ds4-cli -p ds4-operator

FROM debian:bookworm-slim AS ds4-operator
USER 65532:65532
COPY --from=build /src/target/release/ds4-operator /usr/bin/ds4-operator
ENTRYPOINT ["/usr/bin/ds4-operator"]

FROM debian:bookworm-slim AS ds4
USER 65532:65532
COPY --from=build /src/target/release/ds4 /usr/bin/ds4
ENTRYPOINT ["/usr/bin/ds4"]
