//! `ds4 bench`: a model by its file; as `ds4 bench serve`, a server by its address; as `ds4 bench policy`, the choice of the way by a trace.

use std::path::PathBuf;

use clap::error::Error;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::{BenchArguments, ServerArguments};

/// What is measured.
#[derive(Debug)]
pub(crate) enum Bench {
    Engine(BenchArguments),
    Serve(BenchServeArguments),
    Policy(BenchPolicyArguments),
}

const SERVE: &str = "serve";
const POLICY: &str = "policy";

/// The flags of the one and the subcommand of the other exclude each other; derive cannot say that, since --model is required of the one only.
impl Args for Bench {
    fn augment_args(command: Command) -> Command {
        let serve = Command::new(SERVE)
            .about("Send requests to a server and show how long they took")
            .after_help("Examples:\n  ds4 bench serve --requests 64 --concurrency 8 --prompt-tokens 2000 --output-tokens 128\n  ds4 bench serve --rate 2 --slo-ttft 2s --slo-itl 50ms --csv runs.csv --svg runs.svg");
        let policy = Command::new(POLICY)
            .about("Replay turns through the policy that chooses between here and the route, beside hindsight")
            .after_help("A trace has a line for each turn: tokens,replay,local_seconds,route_seconds. Without one an example is made, with a route\nthat becomes slow for a while.\n\nExamples:\n  ds4 bench policy\n  ds4 bench policy --trace turns.csv --json");
        BenchArguments::augment_args(command)
            .subcommand(BenchServeArguments::augment_args(serve))
            .subcommand(BenchPolicyArguments::augment_args(policy))
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Bench {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        match matches.subcommand() {
            Some((SERVE, matches)) => BenchServeArguments::from_arg_matches(matches).map(Self::Serve),
            Some((POLICY, matches)) => BenchPolicyArguments::from_arg_matches(matches).map(Self::Policy),
            _ => BenchArguments::from_arg_matches(matches).map(Self::Engine),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchPolicyArguments {
    /// The turns, a CSV file [default: an example that is made].
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Fewest tokens that go over the route.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) min_prompt_tokens: u64,
    /// Equal seeds give equal examples.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct BenchServeArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Requests in all.
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub(crate) requests: usize,
    /// Clients that each send the next request when they have an answer.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) concurrency: usize,
    /// Requests a second at random times, whether there are answers or not, instead of clients.
    #[arg(long, conflicts_with = "concurrency", value_name = "R", value_parser = crate::sizes::rate)]
    pub(crate) rate: Option<f64>,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub(crate) prompt_tokens: usize,
    /// Of these, the same in all prompts.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) shared_tokens: usize,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) output_tokens: u32,
    /// A good request has its first token within this time.
    #[arg(long, value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) slo_ttft: Option<std::time::Duration>,
    /// A good request has its next token within this time, in the mean.
    #[arg(long, value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) slo_itl: Option<std::time::Duration>,
    /// A good request ends within this time.
    #[arg(long, value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) slo_e2e: Option<std::time::Duration>,
    /// Equal seeds give equal prompts and times.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a line for each request.
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Draw the distributions.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use crate::args::{Arguments, Bench, Command};

    #[test]
    fn a_file_or_a_server_is_measured() {
        Arguments::command().debug_assert();
        let parsed =
            |line: &str| Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.command);
        assert!(matches!(
            parsed("ds4 bench --model x").expect("sound"),
            Command::Bench(Bench::Engine(_))
        ));
        assert!(matches!(
            parsed("ds4 bench serve --rate 2").expect("sound"),
            Command::Bench(Bench::Serve(_))
        ));
        assert!(matches!(
            parsed("ds4 bench policy --json").expect("sound"),
            Command::Bench(Bench::Policy(_))
        ));
        assert!(parsed("ds4 bench").is_err() && parsed("ds4 bench --model x serve").is_err());
    }
}
