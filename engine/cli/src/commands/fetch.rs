//! `ds4 fetch`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ds4_fetch::{Access, FetchOptions, Fetched, Manifest, Phase, Progress, Source};
use tokio::net::TcpListener;

use crate::args::FetchArguments;
use crate::load;
use crate::sizes::human;

/// How often a line says how far it is, where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// How often the bar moves.
const FRAME: Duration = Duration::from_millis(200);

pub(crate) async fn run(arguments: FetchArguments) -> Result<()> {
    if let Some(path) = &arguments.manifest {
        return print_manifest(path);
    }
    log_to_stderr();
    let progress = Arc::new(Progress::default());
    if let Some(address) = &arguments.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("--listen {address}"))?;
        tokio::spawn(ds4_fetch::serve(listener, Arc::clone(&progress)));
    }
    let file = arguments.status_file.clone().map(|path| {
        let progress = Arc::clone(&progress);
        tokio::spawn(async move { ds4_fetch::keep_file(&path, &progress).await })
    });
    let shown = tokio::spawn(show(Arc::clone(&progress)));
    let fetched = fetch(&arguments, &progress).await;
    if let Err(error) = &fetched {
        progress.fail(&format!("{error:#}"));
    }
    shown.await?;
    if let Some(file) = file {
        file.await??;
    }
    let fetched = fetched?;
    println!(
        "{}: {} of {} here; verified: {}",
        fetched.path.display(),
        human(fetched.bytes),
        human(fetched.length),
        fetched.verified
    );
    Ok(())
}

async fn fetch(arguments: &FetchArguments, progress: &Progress) -> Result<Fetched> {
    let (text, folder) = (
        arguments.source.as_deref().unwrap_or_default(),
        arguments.out.clone().unwrap_or_default(),
    );
    let source = Source::parse(text, &arguments.endpoint)?;
    let mut access = Access::read(arguments.token_file.as_deref(), arguments.ca_file.as_deref())?;
    access.token = access
        .token
        .or_else(|| std::env::var("HF_TOKEN").ok().filter(|token| !token.is_empty()));
    if text.starts_with("hf://") && source.commit.is_none() {
        tracing::warn!(
            "the revision is no commit, so the file may change under it: pin it as hf://OWNER/NAME@COMMIT/FILE"
        );
    }
    let manifest = match &arguments.pieces {
        // The hub's token is for the hub.
        Some(place) => Some(
            ds4_fetch::read_manifest(
                place,
                &Access {
                    token: None,
                    ..access.clone()
                },
                arguments.stall,
            )
            .await?,
        ),
        None => None,
    };
    let file = arguments.name.clone().unwrap_or_else(|| source.file.clone());
    ensure!(
        !file.is_empty() && !file.contains('/') && !file.starts_with('.'),
        "--name: expected a file name, found {file:?}"
    );
    let options = FetchOptions {
        layers: arguments.layers.clone(),
        folder,
        file,
        sha256: arguments.sha256.clone(),
        manifest,
        parallel: arguments.parallel,
        retries: arguments.retries,
        stall: arguments.stall,
    };
    Ok(ds4_fetch::fetch(&source, &access, &options, progress).await?)
}

fn print_manifest(path: &Path) -> Result<()> {
    let bar = load::bar("hashing");
    let manifest = Manifest::of(path, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })
    .with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    println!("{}", serde_json::to_string(&manifest)?);
    Ok(())
}

/// A bar on a terminal; a line now and then elsewhere, for whoever reads a container's log.
async fn show(progress: Arc<Progress>) {
    let (bar, mut said) = (load::bar("fetching"), Instant::now());
    loop {
        let now = progress.snapshot();
        bar.set_length(now.total_bytes);
        bar.set_position(now.loaded_bytes);
        if matches!(now.phase, Phase::Done | Phase::Failed) {
            return bar.finish_and_clear();
        }
        if bar.is_hidden() && said.elapsed() >= LINE {
            said = Instant::now();
            tracing::info!(phase = ?now.phase, loaded = %human(now.loaded_bytes), total = %human(now.total_bytes), retries = now.retries, "fetching");
        }
        tokio::time::sleep(FRAME).await;
    }
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
