//! A stage between two others that passes everything on, except what a test changes.

use std::sync::Arc;

use ds4_proto::v1::stage_client::StageClient;
use ds4_proto::v1::stage_server::{Stage, StageServer};
use ds4_proto::v1::{
    ActivationFrame, CloseReply, DescribeRequest, Description, HandoffFrame, OpenReply, OpenRequest,
    RenewReply, RenewRequest, SessionRequest, StreamReply, TokenChunk,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::support::Served;

/// What becomes of one KV frame: any number of frames, or silence from here on.
pub enum Passed {
    Frames(Vec<HandoffFrame>),
    Silence,
}

/// Called with every frame of one handoff, in order.
pub type OnHandoff = Box<dyn FnMut(HandoffFrame) -> Passed + Send>;

/// What a test changes.
#[derive(Clone)]
pub struct Changes {
    pub description: Arc<dyn Fn(&mut Description) + Send + Sync>,
    pub activations: Arc<dyn Fn(&mut ActivationFrame) + Send + Sync>,
    pub handoff: Arc<dyn Fn() -> OnHandoff + Send + Sync>,
}

impl Default for Changes {
    fn default() -> Self {
        Self {
            description: Arc::new(|_| {}),
            activations: Arc::new(|_| {}),
            handoff: Arc::new(|| Box::new(|frame| Passed::Frames(vec![frame]))),
        }
    }
}

/// Stands before `stage`.
pub fn meddle(stage: &Served, changes: Changes) -> Served {
    let target = format!("http://{}", stage.endpoint);
    Served::start("127.0.0.1:0", move |listener, _| async move {
        let channel = Channel::from_shared(target).unwrap().connect_lazy();
        let service = StageServer::new(Meddler {
            stage: StageClient::new(channel),
            changes,
        });
        let incoming = TcpListenerStream::new(listener);
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    })
}

struct Meddler {
    stage: StageClient<Channel>,
    changes: Changes,
}

type Frames<T> = BoxStream<'static, Result<T, Status>>;

/// The messages of a stream; an error ends it, as a caller that breaks off would.
fn messages<T: Send + 'static>(request: Request<Streaming<T>>) -> ReceiverStream<T> {
    let mut stream = request.into_inner();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok(Some(message)) = stream.message().await {
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

#[tonic::async_trait]
impl Stage for Meddler {
    type DeliverStream = Frames<ActivationFrame>;
    type HandoffStream = Frames<HandoffFrame>;

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<Description>, Status> {
        let mut answer = self.stage.clone().describe(request).await?;
        (self.changes.description)(answer.get_mut());
        Ok(answer)
    }

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<OpenReply>, Status> {
        self.stage.clone().open(request).await
    }

    async fn prefill(
        &self,
        request: Request<Streaming<TokenChunk>>,
    ) -> Result<Response<StreamReply>, Status> {
        self.stage.clone().prefill(messages(request)).await
    }

    async fn forward(
        &self,
        request: Request<Streaming<ActivationFrame>>,
    ) -> Result<Response<StreamReply>, Status> {
        self.stage.clone().forward(messages(request)).await
    }

    async fn deliver(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::DeliverStream>, Status> {
        let frames = self.stage.clone().deliver(request).await?.into_inner();
        let change = Arc::clone(&self.changes.activations);
        let changed = frames.map(move |frame| {
            frame.map(|mut frame| {
                change(&mut frame);
                frame
            })
        });
        Ok(Response::new(changed.boxed()))
    }

    async fn handoff(
        &self,
        request: Request<SessionRequest>,
    ) -> Result<Response<Self::HandoffStream>, Status> {
        let mut frames = self.stage.clone().handoff(request).await?.into_inner();
        let mut change = (self.changes.handoff)();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(frame) = frames.next().await {
                let passed = match frame {
                    Ok(frame) => change(frame),
                    Err(status) => return drop(sender.send(Err(status)).await),
                };
                match passed {
                    Passed::Frames(frames) => {
                        for frame in frames {
                            if sender.send(Ok(frame)).await.is_err() {
                                return;
                            }
                        }
                    }
                    Passed::Silence => return sender.closed().await,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        self.stage.clone().renew(request).await
    }

    async fn close(&self, request: Request<SessionRequest>) -> Result<Response<CloseReply>, Status> {
        self.stage.clone().close(request).await
    }
}
