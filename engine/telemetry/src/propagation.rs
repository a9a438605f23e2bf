//! W3C trace context in gRPC metadata and HTTP headers.

use http::HeaderMap;
use opentelemetry::global;
use opentelemetry::propagation::{Extractor, Injector};
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (
            MetadataKey::from_bytes(key.as_bytes()),
            MetadataValue::try_from(&value),
        ) {
            self.0.insert(key, value);
        }
    }
}

struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Writes the context of `span` into outgoing metadata.
pub fn inject(span: &Span, metadata: &mut MetadataMap) {
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Outgoing(metadata))
    });
}

/// Makes `span` a child of the caller in incoming metadata.
pub fn continue_from(span: &Span, metadata: &MetadataMap) {
    adopt(
        span,
        global::get_text_map_propagator(|propagator| propagator.extract(&Incoming(metadata))),
    );
}

/// Makes `span` a child of the caller in HTTP headers.
pub fn continue_from_headers(span: &Span, headers: &HeaderMap) {
    adopt(
        span,
        global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers))),
    );
}

/// The `traceparent` of a span, to link to from elsewhere; empty when tracing is off.
#[must_use]
pub fn traceparent(span: &Span) -> String {
    let mut metadata = MetadataMap::new();
    inject(span, &mut metadata);
    metadata
        .get("traceparent")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// Links `span` to the one whose `traceparent` is given.
pub fn link(span: &Span, traceparent: &str) {
    use opentelemetry::trace::TraceContextExt;
    let mut metadata = MetadataMap::new();
    let Ok(value) = MetadataValue::try_from(traceparent) else {
        return;
    };
    metadata.insert("traceparent", value);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&Incoming(&metadata)));
    let remote = context.span().span_context().clone();
    if remote.is_valid() {
        span.add_link(remote);
    }
}

/// A span that is not recorded has no parent to set; there is nothing to report then.
fn adopt(span: &Span, context: opentelemetry::Context) {
    let _ = span.set_parent(context);
}
