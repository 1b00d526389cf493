//! `wallex relay` and `wallex project`: parts in processes of their own, beside a `serve` or on a named database and broker.

use clap::ValueEnum;

use crate::cli::serve::until_stopped;
use crate::cli::{Outcome, Output};
use crate::runtime::{Config, Parts, Wallex};

/// Publish the log to Kafka, in a process of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex relay                                   beside the running serve of the data directory
  WALLEX_DATABASE_URL=… WALLEX_KAFKA_BROKERS=kafka:9092 wallex relay

One relay is active for a log; any number may stand by and take over.")]
pub(super) struct RelayArgs {}

/// Keep ledger and read model, in a process of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex project                                 both projections
  wallex project ledger                          one of them
  wallex project read-model --data-dir /srv/wallex")]
pub(super) struct ProjectArgs {
    /// Which projection; both if left out
    #[arg(value_enum)]
    projection: Option<Which>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Double entry, group ledger-projector
    Ledger,
    /// Balances, group read-model-projector
    ReadModel,
}

pub(super) async fn run_relay(_args: &RelayArgs, config: Config, output: &Output) -> Outcome {
    let parts = Parts { relay: true, ..Parts::NONE };
    run(parts, config, output, "relay").await
}

pub(super) async fn run_project(args: &ProjectArgs, config: Config, output: &Output) -> Outcome {
    let has = |which| args.projection.is_none_or(|only| only == which);
    let parts = Parts { ledger: has(Which::Ledger), read_model: has(Which::ReadModel), ..Parts::NONE };
    run(parts, config, output, "projections").await
}

async fn run(parts: Parts, config: Config, output: &Output, what: &str) -> Outcome {
    let wallex = Wallex::attach(Config { parts, ..config }).await?;
    output.note(format!(
        "{what} running: {} and {}; stop with Ctrl-C",
        wallex.database().masked_url(),
        wallex.kafka().brokers
    ));
    until_stopped(wallex).await
}
