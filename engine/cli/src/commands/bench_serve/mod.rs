//! `ds4 bench serve`: requests to a server, and how long they took.

mod chart;
mod load;
mod report;

use anyhow::{Context, Result};

use crate::args::BenchServeArguments;
use crate::client::Server;

pub(crate) async fn run(arguments: BenchServeArguments) -> Result<()> {
    let server = Server::new(&arguments.server.url, arguments.server.api_key.clone())?;
    let model = server.model().await?;
    let samples = load::run(&server, &model, &arguments).await?;
    let report = report::Report::new(&samples, &arguments);
    if let Some(path) = &arguments.csv {
        std::fs::write(path, report::csv(&samples)).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &arguments.svg {
        std::fs::write(path, chart::svg(&report)).with_context(|| path.display().to_string())?;
    }
    if arguments.json {
        println!("{}", report.json());
    } else {
        println!("{report}");
    }
    anyhow::ensure!(
        report.failed == 0,
        "{} of {} requests failed, the first with: {}",
        report.failed,
        samples.len(),
        report.first_error
    );
    Ok(())
}
