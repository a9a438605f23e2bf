//! The project's own commands: `cargo xtask --help`.

mod crds;
mod reference;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use xtask::bench::Bench;
use xtask::cluster::{self, Cluster, Provider};
use xtask::fuzz::{self, Target};
use xtask::images::{self, Name};
use xtask::sanitize::{self, Tool};
use xtask::soak::Soak;
use xtask::{
    containers, darwin, demo, fatbin, formats, golden, journey, neon, oracle, page, processes, sdk, steps,
};

/// Commands of the DS4 repository.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 110)]
enum Xtask {
    /// Runs everything that CI runs, in order, and says how long each step took.
    Test {
        /// Leaves out the steps with these names.
        #[arg(long, value_name = "STEP")]
        skip: Vec<String>,
        /// Prints the steps and ends.
        #[arg(long)]
        list: bool,
    },
    /// Shows the main job on this machine: install, apply, ask, and the trace of the answer.
    Demo {
        /// Where the stages run.
        #[arg(long, value_enum, default_value = "auto")]
        provider: Where,
        /// Leaves the cluster running.
        #[arg(long)]
        keep: bool,
    },
    /// Measures side by side; every claim of speed or memory comes from here.
    #[command(subcommand)]
    Bench(Bench),
    /// Compares random blocks of every quantised format with gguf-py.
    Formats {
        /// Takes the blocks of this seed [default: the clock].
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Compares our logits with those of transformers on small random models, in both numerics (downloads torch, several GB).
    Oracle {
        /// Also writes the files under tests/oracle/golden anew.
        #[arg(long)]
        golden: bool,
    },
    /// Runs the tests of the crates with unsafe code under AddressSanitizer, Valgrind and Miri.
    Sanitize {
        /// Only these.
        #[arg(long = "tool", value_name = "TOOL")]
        tools: Vec<Tool>,
        /// Fewer and smaller cases, as CI runs them.
        #[arg(long)]
        short: bool,
    },
    /// Searches for bytes that the decoders of KV frames, session files and descriptions do not take well, guided by coverage.
    Fuzz {
        /// Only these.
        #[arg(long = "target", value_name = "TARGET")]
        targets: Vec<Target>,
        /// For so long, each.
        #[arg(long, default_value_t = 10, value_name = "N")]
        minutes: u64,
        /// Keeps in the repository's corpus what covers more than is there.
        #[arg(long)]
        merge: bool,
    },
    /// Takes a user's way through a fresh cluster, and what an operator has to live through, under a load of requests.
    Journey {
        /// All journeys, not only those of `cargo xtask test`.
        #[arg(long)]
        all: bool,
        /// Only journeys whose name contains this; may be repeated.
        #[arg(long, value_name = "TEXT")]
        only: Vec<String>,
        /// On this cluster, which is up and has the chart, instead of a fresh one.
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// Prints the journeys and ends.
        #[arg(long)]
        list: bool,
    },
    /// Runs the official clients of OpenAI and Anthropic and schemathesis against a real server.
    Sdk,
    /// Looks at the status page in headless Chromium: console, widths, dark and light.
    Page,
    /// Many streams at once over stages that are killed, stopped and restarted: every token checked, memory, fairness.
    Soak(Soak),
    /// A real Kubernetes of several nodes on this machine.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Builds the images as archives in .cache/images; no builder and no registry is needed.
    Images,
    /// Builds the Dockerfiles with podman, on bases made here, and runs the images (root; no registry is needed).
    Containers,
    /// Type-checks the code for macOS, which nothing here can run, and that a planted error in it is found.
    Darwin,
    /// Runs the CPU back end's tests for aarch64 on emulated processors, with and without the instructions that it looks for.
    Neon {
        /// Counts the instructions of products instead (needs a C compiler).
        #[arg(long)]
        count: bool,
    },
    /// Builds the CUDA kernels for devices into .cache/cuda, by nvcc from PyPI, and checks them; no GPU is needed.
    Fatbin {
        /// Renews the table in docs/gpu.
        #[arg(long)]
        write: bool,
        /// Leaves the checks out: they take the compilers of the emulated device.
        #[arg(long, conflicts_with = "write")]
        unchecked: bool,
    },
    /// Writes docs/gpu/roofline.md: what bandwidth and arithmetic of a GPU allow, kernel by kernel.
    Roofline {
        /// Writes nothing; fails when the document is not what the code gives.
        #[arg(long)]
        check: bool,
    },
    /// Writes what the Helm chart renders to under charts/golden.
    Chart {
        /// Writes nothing; fails when the files are not what the chart renders.
        #[arg(long)]
        check: bool,
    },
    /// Writes the CustomResourceDefinition, the chart's copy and docs/api.md from the types.
    Crds {
        /// Writes nothing; fails when the files are not what the types give.
        #[arg(long)]
        check: bool,
    },
}

/// Where the demo's stages run.
#[derive(Clone, Copy, ValueEnum)]
enum Where {
    /// A cluster of what this machine has.
    Auto,
    /// Pods of a cluster of Docker containers.
    Kind,
    /// Pods of a cluster of Linux namespaces (root).
    Namespaces,
    /// Processes, without a cluster.
    Processes,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Brings one up, or finds it up already.
    Up {
        /// Made with what; chosen by what this machine has.
        #[arg(long)]
        provider: Option<Provider>,
        /// Nodes, from 1 to 9.
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Its name.
        #[arg(long, default_value = "demo")]
        name: String,
    },
    /// Ends what `up` started and removes what it made.
    Down {
        /// Its name.
        #[arg(long, default_value = "demo")]
        name: String,
    },
    /// Shows its processes, nodes and pods.
    Status {
        /// Its name.
        #[arg(long, default_value = "demo")]
        name: String,
    },
    /// Builds the project's images and puts them on every node.
    Load {
        /// Its name.
        #[arg(long, default_value = "demo")]
        name: String,
    },
    /// Runs kubectl in it.
    Kubectl {
        /// Its name.
        #[arg(long, default_value = "demo")]
        name: String,
        /// What kubectl is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Prints a loopback address behind which a Service of the cluster is; it stays until `down`.
    Forward {
        /// Its name.
        #[arg(long, default_value = "demo")]
        name: String,
        /// The Service's namespace.
        #[arg(long, default_value = "default")]
        namespace: String,
        /// The Service.
        service: String,
        /// The Service's port.
        port: u16,
    },
}

fn main() -> ExitCode {
    match run(Xtask::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Xtask) -> Result<()> {
    match command {
        Xtask::Test { list: true, .. } => steps::print(),
        Xtask::Test { skip, list: false } => steps::run(&skip),
        Xtask::Demo { provider, keep } => match provider {
            Where::Auto => demo::run(None, keep),
            Where::Kind => demo::run(Some(Provider::Kind), keep),
            Where::Namespaces => demo::run(Some(Provider::Namespaces), keep),
            Where::Processes => processes::run(),
        },
        Xtask::Bench(bench) => bench.run(),
        Xtask::Formats { seed } => formats::run(seed),
        Xtask::Oracle { golden } => oracle::run(golden),
        Xtask::Sanitize { tools, short } => sanitize::run(&tools, short),
        Xtask::Fuzz {
            targets,
            minutes,
            merge,
        } => fuzz::run(&targets, minutes, merge),
        Xtask::Journey { list: true, .. } => journey::list(),
        Xtask::Journey {
            all, only, cluster, ..
        } => journey::run(&journey::Choice { all, only, cluster }),
        Xtask::Fatbin { unchecked: true, .. } => fatbin::build().map(drop),
        Xtask::Fatbin { write, .. } => fatbin::run(write),
        Xtask::Containers => containers::run(),
        Xtask::Darwin => darwin::run(),
        Xtask::Neon { count } => neon::run(count),
        Xtask::Sdk => sdk::run(),
        Xtask::Page => page::run(),
        Xtask::Soak(soak) => soak.run(),
        Xtask::Cluster(command) => run_cluster(command),
        Xtask::Images => {
            for archive in images::build(&Name::OURS)? {
                print(&archive.display().to_string())?;
            }
            Ok(())
        }
        Xtask::Roofline { check } => fatbin::roofline(check),
        Xtask::Crds { check } => crds::run(check),
        Xtask::Chart { check } => golden::run(check).map(drop),
    }
}

fn run_cluster(command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up {
            provider,
            nodes,
            name,
        } => {
            let provider = cluster::choose(provider)?;
            eprintln!("cluster {name}: {nodes} nodes, provider {provider}");
            let cluster = Cluster::up(&name, provider, nodes)?;
            print(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()))
        }
        ClusterCommand::Down { name } => match Cluster::find(&name)? {
            Some(cluster) => cluster.down(),
            None => {
                eprintln!("no cluster {name} is up");
                Ok(())
            }
        },
        ClusterCommand::Status { name } => print(&find(&name)?.describe()?),
        ClusterCommand::Load { name } => {
            images::build(&Name::OURS)?;
            find(&name)?.load(&Name::OURS)
        }
        ClusterCommand::Kubectl { name, arguments } => {
            let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
            print(&find(&name)?.kubectl(&arguments)?)
        }
        ClusterCommand::Forward {
            name,
            namespace,
            service,
            port,
        } => print(&find(&name)?.forward(&namespace, &service, port)?),
    }
}

fn find(name: &str) -> Result<Cluster> {
    Cluster::find(name)?
        .with_context(|| format!("no cluster {name} is up: `cargo xtask cluster up --name {name}`"))
}

fn print(text: &str) -> Result<()> {
    xtask::ask::print(text.trim_end())
}
