//! `wallex dlq list` and `wallex dlq history`.

use std::process::ExitCode;

use chrono::Utc;
use comfy_table::{Cell, CellAlignment};

use crate::cli::dlq::{Filters, Paging, wallet_text};
use crate::cli::text::{age_text, one_line, time};
use crate::cli::{Format, Outcome, Output};
use crate::dlq;
use crate::log::Position;
use crate::postgres::Database;

/// Which wallets are parked, why, since when, and how many events wait behind
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex dlq list
  wallex dlq list --group ledger-projector --error 'out of range' --older-than 1h
  wallex dlq list -o json | jq '.[] | {group, walletId, records, error}'

Records of no wallet, such as a foreign producer's, make one line a group. The longest parked stand first.")]
pub(super) struct Args {
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    paging: Paging,
}

/// Who has replayed or discarded what, when and why
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex dlq history
  wallex dlq history --wallet wallet-1
  wallex dlq history -o json --limit 1000")]
pub(super) struct HistoryArgs {
    /// What was done to this group's
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// What was done to this wallet's
    #[arg(long, value_name = "WALLET")]
    wallet: Option<String>,

    #[command(flatten)]
    paging: Paging,
}

pub(super) async fn list(args: &Args, database: &Database, output: &Output) -> Outcome {
    let queues = dlq::list(database, &args.filters.selection(), args.paging.page()).await?;
    if output.format == Format::Json {
        output.json(&queues)?;
        return Ok(ExitCode::SUCCESS);
    }
    note_withheld(database, output).await?;
    if queues.is_empty() {
        output.line("Nothing is parked, by what was asked for.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Utc::now();
    let mut table = output.table(&["group", "wallet", "record", "records", "behind", "since", "tried", "event", "why"]);
    for queue in &queues {
        let age = age_text((now - queue.since).num_milliseconds().max(0));
        table.add_row(vec![
            Cell::new(&queue.group),
            Cell::new(wallet_text(queue.wallet_id.as_deref())),
            right(queue.record_id),
            right(queue.records),
            right(queue.behind),
            Cell::new(format!("{}, {age} ago", time(queue.since))),
            right(queue.attempts),
            Cell::new(queue.event_type.as_deref().unwrap_or("-")),
            Cell::new(one_line(&format!("{}: {}", queue.error_class, queue.error))),
        ]);
    }
    output.line(table.to_string())?;
    args.paging.note_more(queues.len(), output);
    Ok(ExitCode::SUCCESS)
}

/// What the relay holds back never came as far as a group that could park it, but who looks here looks for it too.
async fn note_withheld(database: &Database, output: &Output) -> color_eyre::Result<()> {
    let withheld = database.relay_withheld().await?;
    if !withheld.is_empty() {
        output.note(format!(
            "{} wallets are withheld from the topic, as an event of theirs is larger than it takes: `wallex lag` lists them. The \
             relay publishes them by itself once the topic's max.message.bytes is raised",
            withheld.len()
        ));
    }
    Ok(())
}

pub(super) async fn history(args: &HistoryArgs, database: &Database, output: &Output) -> Outcome {
    let deeds = dlq::history(database, args.group.as_deref(), args.wallet.as_deref(), args.paging.page()).await?;
    if output.format == Format::Json {
        output.json(&deeds)?;
        return Ok(ExitCode::SUCCESS);
    }
    if deeds.is_empty() {
        output.line("Nothing was replayed or discarded, by what was asked for.")?;
        return Ok(ExitCode::SUCCESS);
    }
    let header = ["when", "who", "what", "group", "wallet", "records", "positions", "left", "why", "stopped at"];
    let mut table = output.table(&header);
    for deed in &deeds {
        table.add_row(vec![
            Cell::new(time(deed.begun_at)),
            Cell::new(one_line(&deed.by)),
            Cell::new(&deed.action),
            Cell::new(&deed.group),
            Cell::new(wallet_text(deed.wallet_id.as_deref())),
            right(deed.records),
            Cell::new(positions(deed.first_position, deed.last_position)),
            right(deed.remaining),
            Cell::new(one_line(deed.reason.as_deref().unwrap_or("-"))),
            Cell::new(one_line(deed.error.as_deref().unwrap_or("-"))),
        ]);
    }
    output.line(table.to_string())?;
    args.paging.note_more(deeds.len(), output);
    Ok(ExitCode::SUCCESS)
}

/// A number in a table.
pub(super) fn right(number: impl std::fmt::Display) -> Cell {
    Cell::new(number.to_string()).set_alignment(CellAlignment::Right)
}

/// The positions of a stretch of a wallet's history.
pub(super) fn positions(first: Option<Position>, last: Option<Position>) -> String {
    match (first, last) {
        (Some(first), Some(last)) if first == last => first.to_string(),
        (Some(first), Some(last)) => format!("{first} … {last}"),
        _ => "-".to_owned(),
    }
}
