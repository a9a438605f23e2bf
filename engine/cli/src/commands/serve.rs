//! `ds4 serve`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ds4_gguf::LayerSpan;
use ds4_runtime::{Engine, EngineOptions, SessionStore};
use ds4_server::{App, AppOptions, Limits, Loaded, read_keys};
use ds4_tokenizer::{Special, Tokenizer};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::options;
use crate::args::ServeArguments;
use crate::load::{self, Model};
use crate::telemetry;

/// Requests that run when the device breaks fail at once; a client that does not read its error may not keep the process.
const LAST_WORDS: Duration = Duration::from_secs(10);

pub(crate) async fn run(arguments: ServeArguments) -> Result<()> {
    let _telemetry = telemetry::start(&arguments.telemetry, "output", &arguments.layers)?;
    let model = load::open(&arguments.compute.model)?;
    let own = LayerSpan::parse(&arguments.layers, model.config.n_layer)?;
    ensure!(
        own.head,
        "--layers: expected N:output, found {own}: other layers are served by `ds4 stage`"
    );
    ensure!(
        own.first == 0 || !arguments.stages.is_empty(),
        "--stages: expected the stages of layers 0 to {}, found none",
        own.first.saturating_sub(1)
    );
    let name = arguments
        .model_name
        .clone()
        .unwrap_or_else(|| model.config.name.clone());
    let app = App::new(AppOptions {
        model: name,
        api_keys: keys(&arguments)?,
        key_limits: Limits {
            requests_per_minute: arguments.key_requests_per_minute,
        },
        ..AppOptions::default()
    });
    let listener = TcpListener::bind(&arguments.listen)
        .await
        .with_context(|| format!("--listen {}", arguments.listen))?;
    println!("listening on {}", listener.local_addr()?);
    // Health checks are answered while the model loads.
    let broke = Arc::new(Notify::new());
    let mut server = tokio::spawn(ds4_server::serve(
        listener,
        Arc::clone(&app),
        stopped(Arc::clone(&app), Arc::clone(&broke)),
    ));
    let loading = Arc::clone(&app);
    let loaded = tokio::task::spawn_blocking(move || prepare(&model, own, &arguments, &loading)).await??;
    let (slice, tokenizer, engine_options, stages) = loaded;
    let engine = Engine::new(slice, own, stages, engine_options);
    app.load(Loaded {
        engine: Arc::clone(&engine),
        tokenizer,
    });
    let reason = tokio::select! {
        served = &mut server => return Ok(served??),
        reason = engine.broken() => reason,
    };
    let ended = async {
        engine.shutdown().await;
        broke.notify_one();
        server.await
    };
    // Whatever comes of it, the process ends.
    drop(tokio::time::timeout(LAST_WORDS, ended).await);
    bail!("the device failed: {reason}")
}

type Prepared = (
    Arc<dyn ds4_model::ModelSlice>,
    Tokenizer,
    EngineOptions,
    Vec<String>,
);

fn prepare(model: &Model, own: LayerSpan, arguments: &ServeArguments, app: &App) -> Result<Prepared> {
    let tokenizer = Tokenizer::from_gguf(&model.gguf)?;
    let head = load::draft_head(&arguments.compute.model, &arguments.draft)?;
    let slice = load::load(
        model,
        LayerSpan::full(model.config.n_layer),
        arguments
            .route
            .max_context
            .unwrap_or(model.config.context_length as u64),
        &arguments.compute,
        head.as_ref(),
        &|percent| app.loading(percent),
    )?;
    let eos = tokenizer.special(Special::Eos).into_iter().collect();
    let mut engine_options = options(&arguments.route, model.config.context_length, eos)?;
    engine_options.queue = arguments.queue;
    engine_options.sessions = arguments.sessions;
    engine_options.queue_timeout = arguments.queue_timeout;
    engine_options.stretch = arguments.stretch;
    if let Some(folder) = &arguments.session_dir {
        let store = SessionStore::open(folder, arguments.session_bytes, slice.info());
        let named = || format!("--session-dir {}", folder.display());
        engine_options.store = Some(Arc::new(store.with_context(named)?));
    }
    let stages = if own.first == 0 {
        Vec::new()
    } else {
        arguments.stages.clone()
    };
    Ok((slice, tokenizer, engine_options, stages))
}

fn keys(arguments: &ServeArguments) -> Result<Vec<String>> {
    let read = |path| read_keys(path).with_context(|| "--api-keys-file");
    arguments
        .api_keys_file
        .as_deref()
        .map_or_else(|| Ok(Vec::new()), read)
}

/// Resolves when the server should stop: new requests are refused at once, running ones end first. When the device broke, they have ended.
async fn stopped(app: Arc<App>, broke: Arc<Notify>) {
    tokio::select! {
        () = signal() => {}
        () = broke.notified() => return,
    }
    tracing::info!("shutting down: running requests end first");
    if let Some(loaded) = app.loaded() {
        let engine = Arc::clone(&loaded.engine);
        tokio::spawn(async move { engine.shutdown().await });
    }
}

/// Resolves on an interrupt or a request to terminate.
pub(crate) async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            Err(error) => {
                tracing::warn!(%error, "signals are not handled");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}
