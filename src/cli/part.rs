//! `wallex relay` and `wallex project`: parts in processes of their own, beside a `serve` or on a named database and broker.

use clap::ValueEnum;

use crate::cli::rebuild::{Maintenance, Task};
use crate::cli::serve::{place, until_stopped};
use crate::cli::{Outcome, Output, topics};
use crate::projection::PARKED_MAX;
use crate::projection::rebuild::Rebuildable;
use crate::runtime::{Config, Parts, Wallex};

/// Publish the log to Kafka, in a process of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex relay                                   beside the running serve of the data directory
  WALLEX_DATABASE_URL=… WALLEX_KAFKA_BROKERS=kafka:9092 wallex relay

One relay is active for a log; any number may stand by and take over. With --event-store it also copies the events from there \
into the database, where nobody else does.")]
pub(super) struct RelayArgs {}

/// Keep ledger and read model, in a process of its own
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex project                                 both projections
  wallex project ledger                          one of them
  wallex project read-model --data-dir /srv/wallex
  wallex project --instance-id projector-1       one of several, which keeps its partitions over a restart
  wallex project ledger --rebuild                make the ledger anew from the log, compare, and swap if nothing differs
  wallex project ledger --rebuild --execute      swap although rows differ; the old table is kept
  wallex project ledger --drop-previous          what is kept; with --execute it is dropped

A rebuild runs beside everything else: readers and the live projection go on. Exit code 1 if rows differ and nothing was \
swapped.")]
pub(super) struct ProjectArgs {
    /// Which projection; both if left out
    #[arg(value_enum)]
    projection: Option<Which>,

    #[command(flatten)]
    member: Member,

    /// Make the projection's table anew from the log, compare it row by row with the live one, and put it in its place
    #[arg(long, requires = "projection", group = "maintenance")]
    rebuild: bool,

    /// Name the table that the last rebuild has replaced; with --execute, drop it
    #[arg(long, requires = "projection", group = "maintenance")]
    drop_previous: bool,

    /// Do it: swap although rows differ, or drop what was kept
    #[arg(long, requires = "maintenance")]
    execute: bool,
}

/// What a process is in the groups of its projections.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Member {
    /// A name for this process in its consumer groups, unlike that of any other: back within session.timeout.ms (10 s), it has
    /// its partitions again, and no other member is disturbed
    #[arg(long, env = "WALLEX_INSTANCE_ID", value_name = "NAME")]
    instance_id: Option<String>,

    /// How many records a projection may park; a partition that would have to park more is paused until there is room
    #[arg(long, env = "WALLEX_PARKED_MAX", value_name = "N", default_value_t = PARKED_MAX, value_parser = clap::value_parser!(i64).range(1..))]
    parked_max: i64,
}

impl Member {
    pub(super) fn parked_max(&self) -> i64 {
        self.parked_max
    }

    pub(super) fn instance_id(&self) -> Option<String> {
        self.instance_id.clone().filter(|id| !id.is_empty())
    }
}

impl ProjectArgs {
    /// What is to be done to a projection's table, if it is not to be run.
    pub(super) fn maintenance(&self) -> Option<Maintenance> {
        let task = match (self.rebuild, self.drop_previous) {
            (true, _) => Task::Rebuild,
            (_, true) => Task::DropPrevious,
            _ => return None,
        };
        let projection = match self.projection? {
            Which::Ledger => Rebuildable::Ledger,
            Which::ReadModel => Rebuildable::ReadModel,
        };
        Some(Maintenance { projection, task, execute: self.execute })
    }
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
    let config =
        Config { instance_id: args.member.instance_id(), parked_max: Some(args.member.parked_max()), ..config };
    run(parts, config, output, "projections").await
}

async fn run(parts: Parts, config: Config, output: &Output, what: &str) -> Outcome {
    let wallex = Wallex::attach(Config { parts, ..config }).await?;
    output.note(format!(
        "{what} running: {} and {}; stop with Ctrl-C",
        wallex.database().masked_url(),
        wallex.kafka().brokers
    ));
    if let Some(store) = wallex.event_store().filter(|_| parts.relay) {
        output.note(format!(
            "events: in KurrentDB at {}; they are copied into the database from here, unless another does",
            place(store)
        ));
    }
    topics::check_at_start(wallex.kafka(), *output);
    until_stopped(wallex).await
}
