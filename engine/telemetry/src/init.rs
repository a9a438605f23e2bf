//! Logs to standard error, spans to a collector.

use std::str::FromStr;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("log format: expected text or json, found {other:?}")),
        }
    }
}

/// What a program records.
#[derive(Clone, Debug, Default)]
pub struct TelemetryOptions {
    /// `service.name`.
    pub service: String,
    /// OTLP gRPC endpoint, for example `http://collector:4317`; none: no spans leave the process.
    pub otlp_endpoint: Option<String>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// More resource attributes.
    pub attributes: Vec<(String, String)>,
}

/// Why recording cannot start.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The exporter refuses its endpoint.
    #[error("otlp endpoint {endpoint}: {reason}")]
    Exporter {
        /// The endpoint.
        endpoint: String,
        /// What the exporter says.
        reason: String,
    },
    /// A subscriber is already installed.
    #[error("logging: {0}")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends what is left when dropped.
#[derive(Debug)]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last spans were not delivered");
        }
    }
}

/// Starts logging and, with an endpoint, tracing. Needs a Tokio runtime when an endpoint is given. `RUST_LOG` filters, default `info`.
///
/// # Errors
/// When the exporter refuses the endpoint or a subscriber is already installed.
pub fn init(options: &TelemetryOptions) -> Result<Guard, TelemetryError> {
    global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = options
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| provider(options, endpoint))
        .transpose()?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match options.log_format {
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // Only our own spans leave the process; libraries' spans would drown them.
    let spans = provider.as_ref().map(|provider| {
        let ours = tracing_subscriber::filter::filter_fn(|metadata| metadata.target().starts_with("ds4"));
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("ds4"))
            .with_filter(ours)
    });
    tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init()?;
    Ok(Guard { provider })
}

fn provider(options: &TelemetryOptions, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let refused = |error: opentelemetry_otlp::ExporterBuildError| TelemetryError::Exporter {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(refused)?;
    let attributes = options
        .attributes
        .iter()
        .map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    let resource = Resource::builder()
        .with_service_name(options.service.clone())
        .with_attributes(attributes)
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
