//! `kubectl ds4 split`: stages for a model on nodes. The search is `ds4-plan`'s; here are its facts and its words.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use ds4_api::quantity;
use ds4_plan::{Machine, Parts, Share, arrange};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::{Value, json};

/// Prompt tokens per second that a node computes through the whole model.
const RATE: &str = "ds4.dev/prefill-tokens-per-second";
/// Bytes per second of a node's link.
const LINK: &str = "ds4.dev/link-bytes-per-second";

pub(crate) const HELP: &str = "Examples:
  ds4 inspect flash.gguf --json --context 65536 > flash.json
  kubectl ds4 split --model flash.json --selector ds4.dev/pool=flash
  kubectl ds4 split --model flash.json --machine spark=110GiB,rate=350,link=1.2GB --machine studio=192GiB,rate=60,link=1.2GB

Without --machine the cluster's nodes are taken, with their allocatable memory. What you measured goes into two annotations:
  kubectl annotate node NODE ds4.dev/prefill-tokens-per-second=350   (prompt tokens per second through the whole model)
  kubectl annotate node NODE ds4.dev/link-bytes-per-second=1.2e9
Rates count once every node has one; until then nodes of equal share are assumed.";

/// What `split` is asked.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What `ds4 inspect FILE --json` printed; - is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Nodes by label [default: all].
    #[arg(short = 'l', long, value_name = "LABEL=VALUE", conflicts_with = "machines")]
    pub(crate) selector: Option<String>,
    /// Machines instead of the cluster's nodes.
    #[arg(
        long = "machine",
        value_name = "NAME=MEMORY,...",
        help = "A machine instead of the cluster's nodes: NAME=MEMORY[,rate=TOKENS/S][,link=BYTES/S]"
    )]
    pub(crate) machines: Vec<Named>,
}

/// A machine and its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    name: String,
    machine: Machine,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected NAME=MEMORY[,rate=TOKENS/S][,link=BYTES/S], found {text:?}");
        let (name, rest) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(wrong)?;
        let mut parts = rest.split(',');
        let memory = quantity(parts.next().unwrap_or_default())
            .filter(|bytes| *bytes >= 1.0)
            .ok_or_else(wrong)?;
        let mut machine = Machine::of(whole(memory));
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let value = quantity(value).filter(|value| *value > 0.0).ok_or_else(wrong)?;
            match key {
                "rate" => machine.rate = Some(value),
                "link" => machine.link = Some(value),
                _ => return Err(wrong()),
            }
        }
        Ok(Self {
            name: name.to_owned(),
            machine,
        })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bytes, checked to be positive
const fn whole(bytes: f64) -> u64 {
    bytes as u64
}

/// Reads what `ds4 inspect --json` printed.
pub(crate) fn parts(path: &Path) -> Result<Parts> {
    let parts: Parts = serde_json::from_str(&crate::trace::read(path)?).with_context(|| {
        format!(
            "--model {}: expected what `ds4 inspect FILE --json` prints",
            path.display()
        )
    })?;
    if parts.layers.is_empty() {
        bail!("--model {}: expected layers, found none", path.display());
    }
    Ok(parts)
}

/// The nodes that could run a stage, by name.
pub(crate) fn nodes(nodes: &[Node]) -> Vec<Named> {
    let mut named: Vec<Named> = nodes
        .iter()
        .filter(|node| usable(node))
        .filter_map(machine)
        .collect();
    named.sort_by(|a, b| a.name.cmp(&b.name));
    named
}

/// Ready, and neither cordoned nor reserved for the control plane.
fn usable(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let kept_away = spec.is_some_and(|spec| {
        let taints = spec.taints.iter().flatten();
        spec.unschedulable == Some(true)
            || taints
                .filter(|taint| taint.key == "node-role.kubernetes.io/control-plane")
                .count()
                > 0
    });
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions
        .filter(|condition| condition.type_ == "Ready" && condition.status == "True")
        .count()
        > 0;
    ready && !kept_away
}

fn machine(node: &Node) -> Option<Named> {
    let memory = node.status.as_ref()?.allocatable.as_ref()?.get("memory")?;
    let measured = |key: &str| {
        node.annotations()
            .get(key)
            .and_then(|text| quantity(text))
            .filter(|value| *value > 0.0)
    };
    let memory = whole(quantity(&memory.0)?);
    Some(Named {
        name: node.name_any(),
        machine: Machine {
            memory,
            rate: measured(RATE),
            link: measured(LINK),
        },
    })
}

/// The proposal as the `pipeline.stages` of a resource, with the reasons as comments.
pub(crate) fn propose(parts: &Parts, nodes: &[Named]) -> Result<String> {
    let machines: Vec<Machine> = nodes.iter().map(|node| node.machine).collect();
    let shares = arrange(parts, &machines).with_context(|| names(nodes))?;
    let mut text = comments(parts, nodes, &shares);
    let stages: Vec<Value> = shares
        .iter()
        .enumerate()
        .map(|(i, share)| stage(i, share, &nodes[share.machine].name))
        .collect();
    text.push_str(&serde_yaml::to_string(&json!({"pipeline": {"stages": stages}}))?);
    Ok(text)
}

fn names(nodes: &[Named]) -> String {
    let all: Vec<String> = nodes
        .iter()
        .map(|node| format!("{} {}", node.name, gibibytes(node.machine.memory)))
        .collect();
    format!("machines {}", all.join(", "))
}

fn comments(parts: &Parts, nodes: &[Named], shares: &[Share]) -> String {
    let mut text = format!(
        "# {} layers, room for {} tokens of KV; the last stage decodes and holds the whole model.\n",
        parts.layers.len(),
        parts.context
    );
    let measured = nodes.iter().all(|node| node.machine.rate.is_some());
    let slowest = shares.iter().map(|share| share.seconds).fold(0.0, f64::max);
    for share in shares {
        let busy = 100.0 * share.seconds / slowest;
        let _ = writeln!(
            text,
            "# {:<16} {:<10} needs {} of {}, busy {busy:.0} % of a step",
            nodes[share.machine].name,
            share.span.to_string(),
            gibibytes(share.needed),
            gibibytes(share.memory)
        );
    }
    if measured {
        let _ = writeln!(
            text,
            "# Prefill at most {:.0} tokens per second, by the measured rates and links.",
            1.0 / slowest
        );
    } else {
        let _ = writeln!(
            text,
            "# Not every machine has a measured rate, so equal ones are assumed: see --help."
        );
    }
    text
}

#[allow(clippy::cast_precision_loss)] // for people
fn gibibytes(bytes: u64) -> String {
    format!("{:.1}Gi", bytes as f64 / 1_073_741_824.0)
}

fn stage(i: usize, share: &Share, node: &str) -> Value {
    let name = if share.span.head {
        "output".to_owned()
    } else {
        format!("stage-{i}")
    };
    let layers = if share.span.head {
        json!({"first": share.span.first})
    } else {
        json!({"first": share.span.first, "last": share.span.last})
    };
    let memory = format!("{}Mi", share.needed.div_ceil(1 << 20));
    json!({
        "name": name, "layers": layers, "resources": {"requests": {"memory": memory}},
        "podTemplate": {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_api::Pipeline;
    use ds4_plan::Part;

    fn model() -> Parts {
        Parts {
            layers: vec![
                Part {
                    weights: 2 << 30,
                    kv: 1 << 20
                };
                12
            ],
            embedding: 1 << 30,
            head: 1 << 30,
            context: 4096,
            activation: 65_536,
        }
    }

    fn node(name: &str, memory: &str, more: Value) -> Node {
        let mut value = json!({"metadata": {"name": name, "annotations": {RATE: "300", LINK: "1.2e9"}},
            "status": {"allocatable": {"memory": memory}, "conditions": [{"type": "Ready", "status": "True"}]}});
        value["spec"] = more;
        serde_json::from_value(value).expect("a node")
    }

    #[test]
    fn nodes_are_read_with_what_was_measured_and_unusable_ones_left_out() {
        let control =
            json!({"taints": [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]});
        let all = [
            node("b", "41943040Ki", json!({})),
            node("a", "10Gi", json!({})),
            node("c", "1Gi", control),
            node("d", "1Gi", json!({"unschedulable": true})),
        ];
        let found = nodes(&all);
        assert_eq!(
            found,
            ["a=10Gi,rate=300,link=1.2G", "b=40GiB,rate=300,link=1200MB"]
                .map(|text| text.parse::<Named>().expect("a machine"))
        );
    }

    #[test]
    fn the_proposal_is_a_pipeline_that_the_resource_accepts() {
        let machines =
            ["big=40GiB,rate=100", "small=6GiB,rate=100"].map(|text| text.parse().expect("a machine"));
        let text = propose(&model(), &machines).expect("a split");
        let value: Value = serde_yaml::from_str(&text).expect("YAML");
        let pipeline: Pipeline = serde_json::from_value(value["pipeline"].clone()).expect("a pipeline");
        let stages: Vec<(String, String)> = pipeline
            .ordered()
            .iter()
            .map(|stage| (stage.name.clone(), stage.layers.argument()))
            .collect();
        assert_eq!(
            stages,
            [
                ("stage-0".into(), "0:1".into()),
                ("output".into(), "2:output".into())
            ]
        );
        assert_eq!(
            value["pipeline"]["stages"][1]["podTemplate"]["spec"]["nodeSelector"]["kubernetes.io/hostname"],
            "big"
        );
        assert!(text.contains("# Prefill at most 119 tokens per second"), "{text}");
    }

    #[test]
    fn what_cannot_be_is_said_with_the_machines() {
        let small = ["a=6GiB", "b=8GiB"].map(|text| text.parse().expect("a machine"));
        let error = format!("{:#}", propose(&model(), &small).expect_err("too small"));
        assert!(
            error.contains("a 6.0Gi, b 8.0Gi") && error.contains("decodes"),
            "{error}"
        );
        for text in [
            "a",
            "a=",
            "=1Gi",
            "a=1Gi,rate",
            "a=1Gi,speed=3",
            "a=-1Gi",
            "a=1Gi,rate=0",
        ] {
            assert!(text.parse::<Named>().is_err(), "{text}");
        }
    }
}
