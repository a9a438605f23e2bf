//! A device without room fails one request; one that is beyond repair fails all that run, with the reason, and ends the process.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ds4_gguf::LayerSpan;
use ds4_model::{Hidden, ModelError, ModelSlice, Part, SliceInfo};
use ds4_runtime::{
    Engine, EngineError, EngineOptions, Event, Generate, OnFailure, StageError, StageOptions, StageServer,
};
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{LAYERS, Served, answer, ask, engine, prompt, request, slice, soon, strict, whole};

const SOUND: u8 = 0;
const NO_ROOM: u8 = 1;
const BROKEN: u8 = 2;

/// A slice on a device that can be made to fail.
struct OnDevice {
    slice: Arc<dyn ModelSlice>,
    state: AtomicU8,
}

impl OnDevice {
    fn new(slice: Arc<dyn ModelSlice>) -> Arc<Self> {
        Arc::new(Self {
            slice,
            state: AtomicU8::new(SOUND),
        })
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

impl ModelSlice for OnDevice {
    fn info(&self) -> &SliceInfo {
        self.slice.info()
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.slice.embed(tokens)
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        let fails = |fatal, said: &str| {
            Err(ModelError::Device {
                device: "GPU".into(),
                fatal,
                source: said.into(),
            })
        };
        match self.state.load(Ordering::Relaxed) {
            NO_ROOM => fails(false, "KV takes 512 bytes, 0 of 1024 are free"),
            BROKEN => fails(true, "attend: CUDA_ERROR_LAUNCH_FAILED"),
            _ => self.slice.forward_batch(parts, hidden),
        }
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        self.slice.logits_batch(hidden, tokens)
    }
}

/// An engine alone on a device.
fn on_device() -> (Arc<OnDevice>, Arc<Engine>) {
    let device = OnDevice::new(whole());
    let engine = Engine::new(
        device.clone(),
        LayerSpan::full(LAYERS),
        Vec::new(),
        EngineOptions::default(),
    );
    (device, engine)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_without_room_fails_the_request_and_serves_on() {
    let (device, engine) = on_device();
    device.set(NO_ROOM);
    let refused = ask(&engine, &prompt(20)).await.unwrap_err().to_string();
    assert!(refused.contains("0 of 1024 are free"), "{refused}");
    assert_eq!(engine.status().broken, None);
    device.set(SOUND);
    ask(&engine, &prompt(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_device_fails_what_runs_with_the_reason_refuses_what_comes_and_is_told() {
    let (device, engine) = on_device();
    // More than a client may lag behind: it still runs when the device breaks.
    let long = Generate {
        max_tokens: 500,
        ..request(prompt(20))
    };
    let mut running = engine.generate(long);
    while !matches!(running.next().await, Some(Event::Token(_))) {}
    device.set(BROKEN);
    let failed = answer(running).await.unwrap_err().to_string();
    assert!(failed.contains("LAUNCH_FAILED"), "{failed}");
    let told = tokio::time::timeout(Duration::from_secs(5), engine.broken()).await;
    assert!(told.unwrap().contains("attend"), "the kernel's name");
    // Though the device would answer again: nobody asks it any more.
    device.set(SOUND);
    let refused = ask(&engine, &prompt(20)).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Broken(reason) if reason.contains("attend")),
        "{refused}"
    );
    assert!(
        engine
            .status()
            .broken
            .is_some_and(|reason| reason.contains("attend"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_whose_device_broke_says_so_is_unready_and_ends_and_the_prompt_is_recomputed() {
    let device = OnDevice::new(slice(0, 1));
    let server = StageServer::new(device.clone(), StageOptions::default());
    let probes = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let health = format!("http://{}", probes.local_addr().unwrap());
    let ended: Arc<Mutex<Option<StageError>>> = Arc::default();
    let end = Arc::clone(&ended);
    let probes = probes.into_std().unwrap();
    let stage = Served::start("127.0.0.1:0", move |listener, _| async move {
        let probes = Some(TcpListener::from_std(probes).unwrap());
        let served = server
            .serve_with_probes(listener, probes, std::future::pending())
            .await;
        *end.lock().unwrap() = served.err();
    });
    let options = EngineOptions {
        on_failure: OnFailure::RecomputeLocally,
        ..strict()
    };
    let engine = engine(2, &[&stage], options).await;
    assert_eq!(
        ask(&engine, &prompt(100)).await.unwrap().0.label(),
        "disaggregated"
    );
    let health = Endpoint::from_shared(health).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(health);
    device.set(BROKEN);
    let (decision, _) = ask(&engine, &prompt(90)).await.unwrap();
    assert!(
        decision.label() == "recomputed" && decision.to_string().contains("LAUNCH_FAILED"),
        "{decision}"
    );
    let probed = health.check(HealthCheckRequest::default()).await;
    // It may have ended by now, which a probe takes the same way.
    assert!(
        probed.map_or(true, |answer| answer.into_inner().status == 2),
        "not serving"
    );
    engine.shutdown().await;
    soon("the stage has ended", || ended.lock().unwrap().is_some()).await;
    let reason = ended.lock().unwrap().take().unwrap().to_string();
    assert!(reason.contains("attend"), "{reason}");
}
