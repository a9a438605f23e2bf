//! `ds4-operator check`: is the resource served, and do its rules hold? Dry runs only; nothing is created.

use anyhow::{Context, Result, bail, ensure};
use ds4_api::DS4Deployment;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

/// Asks the API server.
pub(crate) async fn run(namespace: &str) -> Result<()> {
    let client = Client::try_default()
        .await
        .context("the API server: no cluster configuration")?;
    let api: Api<DS4Deployment> = Api::namespaced(client, namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let sound = parsed(deployment(&[(0, Some(0)), (1, None)]))?;
    api.create(&dry_run, &sound)
        .await
        .context("a sound DS4Deployment was refused")?;
    println!("a sound DS4Deployment is accepted");
    let gap = parsed(deployment(&[(0, Some(0)), (2, None)]))?;
    match api.create(&dry_run, &gap).await {
        Ok(_) => bail!(
            "a DS4Deployment with a gap in its layers was accepted: is the CustomResourceDefinition an older one?"
        ),
        Err(kube::Error::Api(status)) => {
            ensure!(
                status.message.contains("spec.pipeline"),
                "a gap was refused for another reason: {}",
                status.message
            );
            println!("a gap in the layers is refused: {}", status.message);
        }
        Err(error) => return Err(error).context("asking about a gap"),
    }
    Ok(())
}

fn parsed(value: Value) -> Result<DS4Deployment> {
    Ok(serde_json::from_value(value)?)
}

fn deployment(ranges: &[(i32, Option<i32>)]) -> Value {
    let stages: Vec<Value> = ranges
        .iter()
        .enumerate()
        .map(|(i, (first, last))| {
            let layers = last.map_or_else(
                || json!({"first": first}),
                |last| json!({"first": first, "last": last}),
            );
            json!({"name": format!("s{i}"), "layers": layers})
        })
        .collect();
    json!({
        "apiVersion": "ds4.dev/v1alpha1", "kind": "DS4Deployment", "metadata": {"name": "ds4-check"},
        "spec": {"model": {"name": "check", "source": {"synthetic": {"preset": "micro"}}}, "pipeline": {"stages": stages}},
    })
}
