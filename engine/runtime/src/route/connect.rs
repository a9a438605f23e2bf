//! Finding the stages and checking that they fit.

use std::time::Duration;

use ds4_gguf::LayerSpan;
use ds4_model::SliceInfo;
use ds4_proto::MESSAGE_BYTES;
use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{DescribeRequest, Description};
use tonic::transport::{Channel, Endpoint};

use crate::RouteError;
use crate::describe::{Identity, compatible};

/// As on the server: a frame must not wait for a round trip.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How a route is driven.
#[derive(Clone, Copy, Debug)]
pub struct RouteOptions {
    /// Tokens in a chunk.
    pub chunk_tokens: usize,
    /// Chunks in flight between two hops.
    pub window: usize,
    /// Longest silence on any stream, and longest wait for any reply.
    pub timeout: Duration,
    /// Tokens in the longest session.
    pub max_tokens: u64,
}

/// Whether the route can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteState {
    /// Everything is computed locally.
    None,
    /// Not asked yet.
    Connecting,
    /// Every stage answered and fits.
    Complete,
    /// A stage is missing or does not fit.
    Incomplete {
        /// Which one and why.
        reason: String,
    },
}

/// How long a stage may take to say that it is there, once something failed.
const PROBE: Duration = Duration::from_secs(1);

/// One stage that answered.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    pub(crate) endpoint: String,
    pub(crate) client: StageClient<Channel>,
    pub(crate) description: Description,
}

impl Hop {
    /// The layers whose KV comes from here.
    pub(crate) const fn span(&self) -> LayerSpan {
        LayerSpan {
            first: self.description.first as usize,
            last: self.description.last as usize,
            head: false,
        }
    }
}

/// Stages in order; together they own every layer before the output pod's own.
#[derive(Clone, Debug)]
pub struct Route {
    pub(crate) hops: Vec<Hop>,
    pub(crate) options: RouteOptions,
}

impl Route {
    /// Asks every stage who it is and checks that they fit together and to `local`, whose own layers are `own`.
    ///
    /// # Errors
    /// Names the stage, the field that differs and both values.
    pub async fn connect(
        endpoints: &[String],
        local: &SliceInfo,
        own: LayerSpan,
        options: RouteOptions,
    ) -> Result<Self, RouteError> {
        let ours = Identity::new(local, options.max_tokens);
        let asked = endpoints
            .iter()
            .map(|endpoint| describe(endpoint, options.timeout));
        let mut hops = Vec::new();
        for hop in futures::future::join_all(asked).await {
            let hop = hop?;
            compatible(ours.description(), &hop.description).map_err(|source| RouteError::Incompatible {
                endpoint: hop.endpoint.clone(),
                source,
            })?;
            hops.push(hop);
        }
        tiles(&hops, own)?;
        Ok(Self { hops, options })
    }

    /// Why an attempt failed with `error`. When a stage dies its neighbours complain first, so every stage is asked whether it is still the
    /// process that was described; the first that is not is the cause. Takes at most a second.
    pub(crate) async fn cause(&self, error: RouteError) -> RouteError {
        if !matches!(error, RouteError::Refused { .. } | RouteError::Silent { .. }) {
            return error;
        }
        let probes = self.hops.iter().map(|hop| probe(hop, &error));
        let found = futures::future::join_all(probes).await;
        found.into_iter().flatten().next().unwrap_or(error)
    }

    /// The stages' addresses, in order.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.hops.iter().map(|hop| hop.endpoint.as_str())
    }
}

/// A connection to a stage, made at first use.
pub(crate) fn channel(endpoint: &str, timeout: Duration) -> Result<Channel, tonic::transport::Error> {
    let address = if endpoint.contains("://") {
        endpoint.to_owned()
    } else {
        format!("http://{endpoint}")
    };
    let endpoint = Endpoint::from_shared(address)?
        .connect_timeout(timeout.min(Duration::from_secs(5)))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(timeout.min(Duration::from_secs(10)))
        .tcp_nodelay(true);
    Ok(endpoint.connect_lazy())
}

async fn describe(endpoint: &str, timeout: Duration) -> Result<Hop, RouteError> {
    let unreachable = |reason: String| RouteError::Unreachable {
        endpoint: endpoint.to_owned(),
        reason,
    };
    let channel = channel(endpoint, timeout).map_err(|error| unreachable(error.to_string()))?;
    let mut client = StageClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let silent = || RouteError::Silent {
        endpoint: endpoint.to_owned(),
        what: "describe",
        timeout,
    };
    let answer = tokio::time::timeout(timeout, client.describe(DescribeRequest {}))
        .await
        .map_err(|_| silent())?;
    let description = answer
        .map_err(|status| unreachable(status.message().to_owned()))?
        .into_inner();
    Ok(Hop {
        endpoint: endpoint.to_owned(),
        client,
        description,
    })
}

/// What is wrong with a stage that was there before; `None` when nothing is. `noticed` is how it came to light.
async fn probe(hop: &Hop, noticed: &RouteError) -> Option<RouteError> {
    let endpoint = hop.endpoint.clone();
    match describe(&hop.endpoint, PROBE).await {
        Ok(now) if now.description.incarnation == hop.description.incarnation => None,
        Ok(now) => Some(RouteError::Restarted {
            endpoint,
            reason: format!(
                "incarnation: expected {}, found {}; noticed as: {noticed}",
                hop.description.incarnation, now.description.incarnation
            ),
        }),
        Err(RouteError::Unreachable { reason, .. }) => Some(RouteError::Unreachable {
            endpoint,
            reason: format!("{reason}; noticed as: {noticed}"),
        }),
        Err(RouteError::Silent { .. }) => Some(RouteError::Unreachable {
            endpoint,
            reason: format!("no sign of life within {PROBE:?}; noticed as: {noticed}"),
        }),
        Err(other) => Some(other),
    }
}

/// Every layer before `own` exactly once, in order.
fn tiles(hops: &[Hop], own: LayerSpan) -> Result<(), RouteError> {
    let mut expected = 0;
    for hop in hops {
        let span = hop.span();
        if span.first != expected || span.last < span.first || span.last >= own.first {
            let found = format!("{} with layers {span}", hop.endpoint);
            return Err(RouteError::Layers { expected, found });
        }
        expected = span.last + 1;
    }
    if expected == own.first {
        return Ok(());
    }
    Err(RouteError::Layers {
        expected,
        found: format!("the output stage with layers {own}"),
    })
}
