//! Two pods as two processes, and what goes between them: what `cargo xtask bench handoff` and `bench pipeline` measure.
//!
//! `cargo run --release -p ds4-runtime --example pods -- handoff|throughput|pipeline|stage ...`; every measurement prints one JSON object.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod handoff;
mod heap;
mod kept;
mod made;
mod pipeline;
mod pods;
mod raw;
mod throughput;
mod timed;

use std::collections::BTreeMap;

/// `--name value` pairs.
pub struct Options(BTreeMap<String, String>);

impl Options {
    fn read(arguments: &[String]) -> Self {
        let pairs = arguments.chunks(2).map(|pair| {
            let name = pair[0].strip_prefix("--").expect("--name value").to_owned();
            (name, pair.get(1).expect("a value").clone())
        });
        Self(pairs.collect())
    }

    /// A value, when it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A count.
    pub fn number(&self, name: &str, otherwise: usize) -> usize {
        self.get(name)
            .map_or(otherwise, |value| value.parse().expect("a number"))
    }
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (what, rest) = arguments
        .split_first()
        .expect("handoff, throughput, pipeline or stage");
    let options = Options::read(rest);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    match what.as_str() {
        "stage" => runtime.block_on(pods::serve(&options)),
        "handoff" => runtime.block_on(handoff::measure(&options)),
        "throughput" => runtime.block_on(throughput::measure(&options)),
        "pipeline" => pipeline::measure(&options, &runtime),
        other => panic!("{other}: expected handoff, throughput, pipeline or stage"),
    }
}
