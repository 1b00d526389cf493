//! `wallex dlq`: what could not be processed, and how it is put right.

mod list;
mod settle;
mod show;

use chrono::Utc;
use clap::Subcommand;
use std::time::Duration;

use crate::cli::text::parse_age;
use crate::cli::{Connections, Outcome, Output};
use crate::dlq::{self, Selection};

/// Dead letters: what a consumer group could not process, and how it is put right
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex dlq list                          which wallets are parked, why, and how many events wait behind
  wallex dlq show wallet-1                 the events, the error, what the balance was and would become
  wallex dlq replay --wallet wallet-1      what a replay would do; with --execute it is done
  wallex dlq discard --wallet wallet-1 --reason 'entered twice' --execute
  wallex dlq history                       who has done what, when and why

An event that a group cannot process is parked, and every later event of its wallet behind it, in order; other wallets go on. \
Once the cause is mended, a replay applies them in order, and the wallet goes on.")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Debug, Subcommand)]
enum Verb {
    List(list::Args),
    Show(show::Args),
    Replay(settle::ReplayArgs),
    Discard(settle::DiscardArgs),
    History(list::HistoryArgs),
}

/// Runs it.
///
/// # Errors
/// Where the database does not answer, or stdout cannot be written.
pub async fn run(args: &Args, connections: &Connections, output: &Output) -> Outcome {
    let database = &connections.database;
    match &args.verb {
        Verb::List(args) => list::list(args, database, output).await,
        Verb::Show(args) => show::show(args, database, output).await,
        Verb::Replay(args) => settle::replay(args, database, output).await,
        Verb::Discard(args) => settle::discard(args, database, output).await,
        Verb::History(args) => list::history(args, database, output).await,
    }
}

/// Which dead letters are meant; of a wallet's the first one decides, it is the cause.
#[derive(Clone, Debug, Default, clap::Args)]
struct Filters {
    /// Those of this group, such as ledger-projector
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Those of this wallet
    #[arg(long, value_name = "WALLET")]
    wallet: Option<String>,

    /// Those whose error, or its class, has this in it
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,

    /// Those whose event is of this type, such as WalletDebited
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,

    /// Those that failed first this long ago or longer: 90s, 10m, 2h, 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    older_than: Option<Duration>,

    /// The one that begins with the record of this number
    #[arg(long, value_name = "NUMBER")]
    record: Option<i64>,
}

impl Filters {
    fn selection(&self) -> Selection {
        Selection {
            group: self.group.clone(),
            wallet: self.wallet.clone(),
            error: self.error.clone(),
            event_type: self.event_type.clone(),
            // An age before all time is before everything.
            failed_before: self.older_than.map(|age| Utc::now() - age),
            record: self.record,
        }
    }

    /// Whether they leave anything out.
    fn select(&self) -> bool {
        self.selection() != Selection::default()
    }
}

/// Which part of a list.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Paging {
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1_000))]
    limit: i64,

    /// How many to pass over first
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    offset: i64,
}

impl Paging {
    fn page(self) -> dlq::Page {
        dlq::Page { limit: self.limit, offset: self.offset }
    }

    /// Says where to go on where a page is full.
    fn note_more(self, shown: usize, output: &Output) {
        if shown as i64 == self.limit {
            output.note(format!("there may be more: --offset {}", self.offset + self.limit));
        }
    }
}

/// A wallet as it is shown.
fn wallet_text(wallet: Option<&str>) -> &str {
    wallet.unwrap_or("(of no wallet)")
}
