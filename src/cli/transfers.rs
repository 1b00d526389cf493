//! `wallex transfers`: transfers whose money is between their two legs.

use std::process::ExitCode;

use comfy_table::{Cell, CellAlignment};

use crate::cli::text::{age_text, time};
use crate::cli::{Connections, Format, Outcome, Output};
use crate::lanes::{PendingTransfer, pending_transfers};
use crate::postgres::EventHome;

/// Transfers whose money is in transit: it has left the payer and has not come to the receiver yet
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex transfers --pending                 the longest in transit first
  wallex transfers --pending -o json | jq '.[] | select(.ageMs > 60000)'

Only where the events are in an event store (--event-store): there a transfer is two appends. The second one follows within \
milliseconds, or, where the server ended in between, some seconds after another one runs. What stays is a return to a payer who \
has no room for it. As the copy in the database knows it: `wallex lag` says how far that is behind.")]
pub(super) struct Args {
    /// Those that are not whole yet
    #[arg(long, required = true)]
    pending: bool,

    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1_000))]
    limit: i64,
}

pub(super) async fn run(args: &Args, connections: &Connections, output: &Output) -> Outcome {
    let database = &connections.database;
    let pending = pending_transfers(database, args.limit).await?;
    if output.format == Format::Json {
        output.json(&pending)?;
    } else if !pending.is_empty() {
        show(&pending, output)?;
    }
    match database.event_home().await? {
        Some(EventHome::EventStore) if pending.is_empty() && output.format == Format::Table => {
            output.line("No money is in transit.")?;
        }
        Some(EventHome::EventStore) => {}
        Some(EventHome::Database) => {
            output.note("none can be: the events are in the database itself, where a transfer is one commit");
        }
        None => output.note("none can be: nobody has written to this database yet"),
    }
    if pending.len() as i64 == args.limit {
        output.note(format!("there may be more than these {}: --limit", args.limit));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(pending: &[PendingTransfer], output: &Output) -> std::io::Result<()> {
    let mut table = output.table(&["transfer", "from", "to", "amount", "since", "age"]);
    for transfer in pending {
        table.add_row(vec![
            Cell::new(transfer.transfer_id),
            Cell::new(&transfer.from_wallet_id),
            Cell::new(&transfer.to_wallet_id),
            Cell::new(format!("{} {}", transfer.amount, transfer.currency)).set_alignment(CellAlignment::Right),
            Cell::new(time(transfer.since)),
            Cell::new(age_text(transfer.age_ms)).set_alignment(CellAlignment::Right),
        ]);
    }
    output.line(table.to_string())
}
