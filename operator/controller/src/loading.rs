//! How far the pods' models are: what the init container says while it runs, by HTTP, and its last words once it has ended.
//!
//! The operator asks rather than the pods telling: a pod needs no right to write to the API server for it, and a pod that cannot be asked
//! costs a number and nothing else.

use std::time::Duration;

use ds4_api::PROGRESS_PORT;
use futures::future::join_all;
use k8s_openapi::api::core::v1::ContainerState;
use serde::Deserialize;

use crate::observe::Member;
use crate::probe;

/// The init container that brings the model.
const CONTAINER: &str = "model";
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// One pod's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loading {
    pub(crate) stage: String,
    pub(crate) loaded: i64,
    pub(crate) total: i64,
}

/// What `ds4 fetch` says.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Words {
    #[serde(default)]
    loaded_bytes: i64,
    #[serde(default)]
    total_bytes: i64,
    error: Option<String>,
}

/// The error in a fetch's last words, if they are such.
pub(crate) fn error(last_words: &str) -> Option<String> {
    serde_json::from_str::<Words>(last_words).ok()?.error
}

/// Asks all pods that should be there, at once; those whose model is not fetched say nothing.
pub(crate) async fn loading(pods: &[Member]) -> Vec<Loading> {
    let asked = pods.iter().filter(|pod| !pod.leaving).map(one);
    join_all(asked).await.into_iter().flatten().collect()
}

async fn one(member: &Member) -> Option<Loading> {
    let status = member.pod.status.as_ref()?;
    let container = status
        .init_container_statuses
        .iter()
        .flatten()
        .find(|container| container.name == CONTAINER)?;
    let text = match container.state.as_ref()? {
        ContainerState {
            terminated: Some(ended),
            ..
        } => ended.message.clone()?,
        ContainerState { running: Some(_), .. } => {
            let ip = status.pod_ip.as_deref()?;
            let answer = tokio::time::timeout(PATIENCE, probe::get(ip, PROGRESS_PORT, "/progress"));
            answer.await.ok()?.ok()?
        }
        _ => return None,
    };
    read(&member.stage, &text)
}

fn read(stage: &str, text: &str) -> Option<Loading> {
    let body = text.rsplit("\r\n\r\n").next()?;
    let words: Words = serde_json::from_str(body).ok()?;
    Some(Loading {
        stage: stage.to_owned(),
        loaded: words.loaded_bytes,
        total: words.total_bytes,
    })
}

/// Bytes there and bytes wanted over some pods; none when no total is known yet.
pub(crate) fn sum<'a>(pods: impl Iterator<Item = &'a Loading>) -> Option<(i64, i64)> {
    let all = pods.fold((0, 0), |(loaded, total), pod| {
        (loaded + pod.loaded, total + pod.total)
    });
    (all.1 > 0).then_some(all)
}

/// `41 % of 38.9 GiB`.
#[allow(clippy::cast_precision_loss)] // for people
pub(crate) fn share((loaded, total): (i64, i64)) -> String {
    let percent = i128::from(loaded) * 100 / i128::from(total.max(1));
    format!("{percent} % of {:.1} GiB", total as f64 / 1_073_741_824.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::observe::tests::pod;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn member(state: &Value, ip: &str) -> Member {
        let mut member = pod("early", "aaaa", 0, false);
        let mut whole = serde_json::to_value(&*member.pod).expect("a pod");
        whole["status"] = json!({"podIP": ip, "initContainerStatuses": [
            {"name": "model", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state}]});
        member.pod = Arc::new(serde_json::from_value(whole).expect("a pod"));
        member
    }

    #[tokio::test]
    async fn a_running_fetch_is_asked_and_an_ended_one_has_left_its_words() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.9", PROGRESS_PORT))
            .await
            .expect("a port");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let mut request = [0; 64];
            let read = stream.read(&mut request).await.expect("a request");
            assert!(request[..read].starts_with(b"GET /progress "));
            let answer = "HTTP/1.0 200 OK\r\n\r\n{\"phase\":\"fetching\",\"loadedBytes\":40,\"totalBytes\":100,\"retries\":0}";
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        });
        let done = json!({"terminated": {"exitCode": 0, "message": "{\"phase\":\"done\",\"loadedBytes\":60,\"totalBytes\":60}"}});
        let pods = [
            member(&json!({"running": {}}), "127.0.0.9"),
            member(&done, "127.0.0.1"),
            member(
                &json!({"terminated": {"exitCode": 0, "message": "tiny.gguf: 7 layers"}}),
                "127.0.0.1",
            ),
            pod("output", "aaaa", 0, true),
        ];
        let found = loading(&pods).await;
        assert_eq!(sum(found.iter()), Some((100, 160)), "{found:?}");
        assert_eq!(share((100, 160)), "62 % of 0.0 GiB");
        assert_eq!(sum([].iter()), None);
    }

    #[test]
    fn the_error_of_a_failed_fetch_is_found() {
        assert_eq!(
            error("{\"phase\":\"failed\",\"error\":\"404\"}").as_deref(),
            Some("404")
        );
        assert_eq!(error("{\"phase\":\"fetching\"}"), None);
        assert_eq!(error("ds4: something"), None);
    }
}
