//! Finding the stages and checking that they fit.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ds4_gguf::LayerSpan;
use ds4_model::SliceInfo;
use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{DescribeRequest, Description};
use tonic::transport::Channel;

use crate::RouteError;
use crate::describe::{Identity, compatible};
use crate::net::{self, Dialer, Link};
use crate::stage::shares;

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
    /// Connections on which a stage's KV comes, besides the one for activations.
    pub streams: u32,
    /// Most bytes of rows in one KV frame.
    pub frame_bytes: usize,
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

/// The connections to one stage. KV has its own, so that it never keeps activations waiting.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) control: StageClient<Channel>,
    pub(crate) lanes: Vec<Channel>,
}

/// Connections by address; they outlive routes, and mend themselves.
#[derive(Debug)]
pub(crate) struct Pool {
    dialer: Dialer,
    options: RouteOptions,
    links: Mutex<HashMap<String, Links>>,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, options: RouteOptions) -> Self {
        Self {
            dialer,
            options,
            links: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) const fn options(&self) -> &RouteOptions {
        &self.options
    }

    pub(crate) fn links(&self, endpoint: &str) -> Result<Links, RouteError> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = links.get(endpoint) {
            return Ok(found.clone());
        }
        let timeout = self.options.timeout;
        let made = self
            .dialer
            .stage(endpoint, timeout, Link::Control)
            .and_then(|control| {
                let lanes = (0..self.options.streams.max(1))
                    .map(|_| self.dialer.link(endpoint, timeout, Link::Kv))
                    .collect::<Result<_, _>>()?;
                Ok(Links { control, lanes })
            });
        let made = made.map_err(|error| RouteError::Unreachable {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        })?;
        links.insert(endpoint.to_owned(), made.clone());
        Ok(made)
    }
}

/// One stage that answered.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    pub(crate) endpoint: String,
    pub(crate) links: Links,
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

    /// The layers of each of its handoffs.
    pub(crate) fn shares(&self, streams: u32) -> Vec<LayerSpan> {
        shares(self.span(), streams)
    }
}

/// Stages in order; together they own every layer before the output pod's own.
#[derive(Clone, Debug)]
pub struct Route {
    pub(crate) hops: Vec<Hop>,
    pub(crate) options: RouteOptions,
}

impl Route {
    /// Asks every stage and its spares who they are, and takes for each place the first that fits there and to `local`, whose own layers are
    /// `own`. Those in `avoid` are not asked.
    pub(crate) async fn connect(
        pool: &Pool,
        places: &[Vec<String>],
        local: &SliceInfo,
        own: LayerSpan,
        avoid: &[String],
    ) -> Result<Self, RouteError> {
        let options = *pool.options();
        let ours = Identity::new(local, options.max_tokens);
        let found = places
            .iter()
            .map(|place| candidate(pool, place, avoid, ours.description()));
        let hops = futures::future::join_all(found)
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        tiles(hops.iter().map(|hop| (hop.endpoint.as_str(), hop.span())), own)?;
        Ok(Self { hops, options })
    }

    /// The layers of every handoff, then the output pod's own.
    pub(crate) fn spans(&self, own: LayerSpan) -> Vec<LayerSpan> {
        let shares = self.hops.iter().flat_map(|hop| hop.shares(self.options.streams));
        shares.chain([own]).collect()
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

/// The first of `place` that answers and fits; otherwise what is wrong with the first one.
async fn candidate(
    pool: &Pool,
    place: &[String],
    avoid: &[String],
    ours: &Description,
) -> Result<Hop, RouteError> {
    let asked = place.iter().filter(|endpoint| !avoid.contains(endpoint));
    let answers = futures::future::join_all(asked.map(|endpoint| ask(pool, endpoint, ours))).await;
    let mut first = None;
    for answer in answers {
        match answer {
            Ok(hop) => return Ok(hop),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    Err(first.unwrap_or_else(|| RouteError::Unreachable {
        endpoint: place.join("|"),
        reason: "it failed just now, and there is no spare".into(),
    }))
}

async fn ask(pool: &Pool, endpoint: &str, ours: &Description) -> Result<Hop, RouteError> {
    let hop = describe(endpoint, pool.links(endpoint)?, pool.options().timeout).await?;
    let endpoint = || hop.endpoint.clone();
    compatible(ours, &hop.description).map_err(|source| RouteError::Incompatible {
        endpoint: endpoint(),
        source,
    })?;
    if hop.description.draining {
        return Err(RouteError::Refused {
            endpoint: endpoint(),
            reason: "draining: it takes no new work".into(),
        });
    }
    Ok(hop)
}

async fn describe(endpoint: &str, links: Links, timeout: Duration) -> Result<Hop, RouteError> {
    let silent = || RouteError::Silent {
        endpoint: endpoint.to_owned(),
        what: "describe",
        timeout,
    };
    let mut client = links.control.clone();
    let answer = tokio::time::timeout(timeout, client.describe(DescribeRequest {}))
        .await
        .map_err(|_| silent())?;
    let description = answer
        .map_err(|status| RouteError::Unreachable {
            endpoint: endpoint.to_owned(),
            reason: net::reason(&status),
        })?
        .into_inner();
    Ok(Hop {
        endpoint: endpoint.to_owned(),
        links,
        description,
    })
}

/// What is wrong with a stage that was there before; `None` when nothing is. `noticed` is how it came to light.
async fn probe(hop: &Hop, noticed: &RouteError) -> Option<RouteError> {
    let endpoint = hop.endpoint.clone();
    match describe(&hop.endpoint, hop.links.clone(), PROBE).await {
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
pub(crate) fn tiles<'a>(
    stages: impl IntoIterator<Item = (&'a str, LayerSpan)>,
    own: LayerSpan,
) -> Result<(), RouteError> {
    let mut expected = 0;
    for (endpoint, span) in stages {
        if span.first != expected || span.last < span.first || span.last >= own.first {
            let found = format!("{endpoint} with layers {span}");
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
