//! An output pod that does not know that its attempt is over: calls with epochs that no stage works at. None may be taken.

use std::time::Duration;

use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::{RenewRequest, SessionRequest, TokenChunk};
use tonic::transport::Channel;

use super::random::Random;
use super::world::{Violation, World};
use crate::net::{Dialer, Link};

/// A call to a dead node does not come back.
const PATIENCE: Duration = Duration::from_secs(1);
/// No engine gets so far in a simulation.
const FUTURE: u64 = 1_000_000;
/// How often it calls, and how far apart.
const ROUNDS: u32 = 12;
const APART: Duration = Duration::from_millis(10);

/// Calls every stage about every session that works there, again and again.
pub(crate) async fn haunt(world: &World, dialer: &Dialer, mut random: Random) -> Result<(), Violation> {
    for _ in 0..ROUNDS {
        round(world, dialer, &mut random).await?;
        tokio::time::sleep(APART).await;
    }
    Ok(())
}

async fn round(world: &World, dialer: &Dialer, random: &mut Random) -> Result<(), Violation> {
    let working: Vec<_> = {
        let stages = world.stages.borrow();
        let of = |stage: &super::world::Stage| (stage.endpoint.clone(), stage.sessions.working());
        stages.iter().map(of).collect()
    };
    for (endpoint, sessions) in working {
        for (session, epoch) in sessions {
            let client = dialer.stage(&endpoint, PATIENCE, Link::Control);
            let client = client.map_err(|error| error.to_string())?;
            for wrong in [epoch - 1, epoch + FUTURE] {
                let what = random.pick(&Call::ALL);
                let calls = what.taken(client.clone(), &session, wrong);
                // What takes too long was not answered, and so not taken.
                if let Ok(true) = tokio::time::timeout(PATIENCE, calls).await {
                    return Err(format!(
                        "{endpoint} took {what:?} of {session} at epoch {wrong}, not {epoch}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// What it calls for.
#[derive(Clone, Copy, Debug)]
enum Call {
    Renew,
    Prefill,
    Handoff,
    Deliver,
    Close,
}

impl Call {
    const ALL: [Self; 5] = [
        Self::Renew,
        Self::Prefill,
        Self::Handoff,
        Self::Deliver,
        Self::Close,
    ];

    async fn taken(self, mut client: StageClient<Channel>, session: &str, epoch: u64) -> bool {
        let request = SessionRequest {
            session: session.to_owned(),
            epoch,
            stream: 0,
        };
        match self {
            Self::Renew => {
                let sessions = vec![request];
                let answer = client.renew(RenewRequest { sessions }).await;
                answer.is_ok_and(|answer| answer.get_ref().lost.is_empty())
            }
            Self::Prefill => {
                let chunk = TokenChunk {
                    session: session.to_owned(),
                    epoch,
                    tokens: vec![9; 4],
                    ..TokenChunk::default()
                };
                client.prefill(tokio_stream::iter([chunk])).await.is_ok()
            }
            Self::Handoff => client.handoff(request).await.is_ok(),
            Self::Deliver => client.deliver(request).await.is_ok(),
            Self::Close => {
                let answer = client.close(request).await;
                answer.is_ok_and(|answer| answer.get_ref().found)
            }
        }
    }
}
