//! `wallex lag`: what is behind, and by how much.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table};

use crate::cli::signals::stop_signal;
use crate::cli::text::{age_text, one_line, time};
use crate::cli::{Connections, EXIT_NO, Format, Outcome, Output};
use crate::kafka::EVENTS_TOPIC;
use crate::lag::{GroupLag, InTransit, IngestLag, LagProbe, LagReport, PartitionLag, Strays};
use crate::postgres::WithheldWallet;

/// How long the broker may take to answer. Its clients are new, and a machine in trouble is slow: that is when `lag` is asked.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);

/// Parked wallets that the table names; JSON has them all.
const PARKED_ROWS_MAX: usize = 20;

/// What is behind, and by how much: the copy of an event store, the outbox, each consumer group, parked wallets.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex lag                    once, as tables
  wallex lag --watch            again every 2 seconds until Ctrl-C
  wallex lag --max 1000         exit code 1 if the outbox or a group has more than 1000 waiting
  wallex lag -o json | jq '.groups[] | {group, state, lag, behindMs}'

States, the most urgent first: another store (the event store is not the one that was copied), store away (the event store), \
broker away, topic absent, group absent (it has no member), transfer overdue (money has been on its way for more than a minute), \
never committed, stuck (something \
waits and nothing has moved for 30 seconds), full (no more may be parked, so partitions are paused), parked (some wallets wait for `wallex dlq`, all others go on), moving, idle.

A dash stands where nothing is committed, or where the broker does not say. `position` is the checkpoint in the database, \
from which a group really goes on; it is known with the broker away too. `next` is the offset that belongs to it, and \
`committed` what Kafka was told of it. --max asks for certainty: with the broker or the event store away, or another store than was \
copied, its answer is no. It is so too, whatever N is, where a transfer is overdue: that is not a matter of how much waits.

Where the events are in an event store, the first row is the ingest, which copies them into the database; its position is the \
store's own. At most 10,000 events beyond it are counted. A `serve` that runs here says which store that is; else name it with \
--event-store.")]
pub struct Args {
    /// Ask again every SECONDS (2 if left out) until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,

    /// Exit with 1 if more than N wait in the event store, in the outbox or for any group, if any transfer has been in transit for more
    /// than a minute, or if the broker or the event store does not answer; with --watch, as soon as that is so
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    pub max: Option<i64>,
}

/// Runs it.
///
/// # Errors
/// Where the database does not answer, or stdout cannot be written.
pub async fn run(args: &Args, connections: &Connections, output: &Output) -> Outcome {
    let probe = LagProbe::new(connections.database.clone(), connections.kafka.clone())
        .with_event_store(connections.event_store.clone())
        .with_patience(BROKER_PATIENCE);
    let Some(seconds) = args.watch else {
        let report = probe.report().await?;
        show(&report, output)?;
        return Ok(verdict(&report, args.max));
    };
    let mut stop = std::pin::pin!(stop_signal());
    let mut ticks = tokio::time::interval(Duration::from_secs(seconds));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = async {
            ticks.tick().await;
            probe.report().await
        };
        let report = tokio::select! {
            code = &mut stop => return Ok(ExitCode::from(code?)),
            report = next => report?,
        };
        if output.format == Format::Table && std::io::stdout().is_terminal() {
            // Home, and clear from there: the last picture gives way without flicker.
            output.line("\x1b[H\x1b[J")?;
        }
        show(&report, output)?;
        if args.max.is_some_and(|max| is_above(&report, max)) {
            return Ok(ExitCode::from(EXIT_NO));
        }
    }
}

fn verdict(report: &LagReport, max: Option<i64>) -> ExitCode {
    if max.is_some_and(|max| is_above(report, max)) { ExitCode::from(EXIT_NO) } else { ExitCode::SUCCESS }
}

fn is_above(report: &LagReport, max: i64) -> bool {
    // What lies in the topic is not known then, and not to know is no reason to say yes.
    !report.broker.connected
        || report.ingest.as_ref().is_some_and(|ingest| ingest.is_above(max))
        || report.outbox.depth > max
        || report.groups.iter().any(|group| group.waiting(report.outbox.head) > max)
}

fn show(report: &LagReport, output: &Output) -> color_eyre::Result<()> {
    if output.format == Format::Json {
        return Ok(output.json(report)?);
    }
    output.line(summary_table(report, output).to_string())?;
    output.line(topic_table(report, output).to_string())?;
    output.line(partition_table(report, output).to_string())?;
    if !report.parked.is_empty() {
        output.line(parked_table(report, output).to_string())?;
    }
    if report.parked.len() > PARKED_ROWS_MAX {
        output.line(format!("… and {} more parked; -o json lists them", report.parked.len() - PARKED_ROWS_MAX))?;
    }
    if let Some(ingest) = &report.ingest {
        show_ingest(ingest, output)?;
    }
    for withheld in report.outbox.withheld.iter().take(PARKED_ROWS_MAX) {
        let WithheldWallet { wallet_id, events, position, reason, .. } = withheld;
        output.line(format!(
            "withheld from the topic: {events} events of {wallet_id} from position {position} on: {reason}"
        ))?;
    }
    let relay = &report.outbox.relay;
    let holder = relay.holder.as_ref().map_or(String::new(), |holder| format!(" ({holder})"));
    let reason = relay.reason.as_ref().map_or(String::new(), |reason| format!(": {}", one_line(reason)));
    output.line(format!("relay{holder}: {} since {}{reason}", relay.state.name(), time(relay.since)))?;
    if let Some(error) = &report.broker.error {
        output.note(format!("broker: {error}"));
    }
    Ok(())
}

/// What the row of the ingest has no room for.
fn show_ingest(ingest: &IngestLag, output: &Output) -> color_eyre::Result<()> {
    if ingest.more {
        output.line("ingest: more events wait in the event store than were counted")?;
    }
    if let Some(unmoved) = ingest.unmoved_ms {
        output.line(format!("ingest: came on last {} ago", age_text(unmoved)))?;
    }
    let InTransit { transfers, oldest_age_ms, overdue } = ingest.in_transit;
    if let Some(age) = oldest_age_ms {
        let overdue = match overdue {
            0 => String::new(),
            overdue => format!(", {overdue} of them overdue"),
        };
        output.line(format!(
            "in transit: the money of {transfers} transfers, the oldest for {}{overdue}; `wallex transfers --pending` lists them",
            age_text(age)
        ))?;
    }
    if let Strays { events, first: Some(first) } = &ingest.strays {
        output.line(format!(
            "strays: {events} events in streams that are called like a wallet's and are none, the first of them {:?}; they stay in the \
             event store",
            one_line(first)
        ))?;
    }
    if let Some(error) = &ingest.store.error {
        output.note(format!("event store: {error}"));
    }
    Ok(())
}

/// A row for the ingest, if there is one, for the outbox, for each group and for all of them.
fn summary_table(report: &LagReport, output: &Output) -> Table {
    let (outbox, total) = (&report.outbox, &report.total);
    let copying = report.ingest.as_ref().map_or(Some(0), |ingest| ingest.events);
    let mut table =
        output.table(&["what", "topic", "state", "members", "waiting", "oldest", "parked", "position", "head"]);
    if let Some(ingest) = &report.ingest {
        table.add_row(vec![
            Cell::new("ingest"),
            Cell::new("-"),
            Cell::new(ingest.state.map_or("not known".to_owned(), |state| state.to_string())),
            number(None),
            number(ingest.events),
            age(ingest.behind_ms),
            number(None),
            number(ingest.copied),
            number(None),
        ]);
    }
    table.add_row(vec![
        Cell::new("outbox"),
        Cell::new(EVENTS_TOPIC),
        Cell::new(outbox.state),
        number(None),
        number(Some(outbox.depth)),
        age(outbox.oldest_age_ms),
        number(None),
        number(Some(outbox.published)),
        number(Some(outbox.head)),
    ]);
    for group in &report.groups {
        table.add_row(vec![
            Cell::new(&group.group),
            Cell::new(&group.topic),
            Cell::new(group.state),
            number(group.members.map(|members| members as i64)),
            number(group.lag),
            age(group.behind_ms),
            parked_text(group),
            number(Some(group.position)),
            number(Some(outbox.head)),
        ]);
    }
    table.add_row(vec![
        Cell::new("all").set_alignment(CellAlignment::Right),
        Cell::new(""),
        Cell::new(total.state),
        number(None),
        number(total.lag.zip(copying).map(|(lag, events)| lag + events + outbox.depth)),
        age(total.behind_ms),
        number(Some(total.parked)),
        number(None),
        number(Some(outbox.head)),
    ]);
    table
}

fn topic_table(report: &LagReport, output: &Output) -> Table {
    let mut table = output.table(&["topic", "is", "partitions", "records"]);
    for topic in &report.topics {
        let is = match topic.exists {
            Some(true) => "there",
            Some(false) => "absent",
            None => "not known",
        };
        table.add_row(vec![
            Cell::new(&topic.topic),
            Cell::new(is),
            number((topic.exists == Some(true)).then_some(i64::from(topic.partitions))),
            number(topic.records),
        ]);
    }
    table
}

fn partition_table(report: &LagReport, output: &Output) -> Table {
    let mut table =
        output.table(&["group", "partition", "state", "end", "committed", "next", "lag", "behind", "position"]);
    for group in &report.groups {
        for partition in &group.partitions {
            table.add_row(vec![
                Cell::new(&group.group),
                number(Some(i64::from(partition.partition))),
                Cell::new(partition.state),
                number(partition.end),
                number(partition.committed),
                number(partition.next_offset),
                number(partition.lag),
                age(partition.behind_ms),
                number(partition.position),
            ]);
        }
        table.add_row(total_row(group));
    }
    table
}

fn total_row(group: &GroupLag) -> Vec<Cell> {
    // Nothing committed in a partition adds nothing. What is to be read is another matter: the report has that sum.
    let sum =
        |of: fn(&PartitionLag) -> Option<i64>| group.partitions.iter().filter_map(of).reduce(|sum, next| sum + next);
    vec![
        Cell::new(&group.group),
        Cell::new("all").set_alignment(CellAlignment::Right),
        Cell::new(group.state),
        number(sum(|partition| partition.end)),
        number(sum(|partition| partition.committed)),
        number(sum(|partition| partition.next_offset)),
        number(group.lag),
        age(group.behind_ms),
        number(Some(group.position)),
    ]
}

/// How many are parked, and where there are any, of how many that may be.
fn parked_text(group: &GroupLag) -> Cell {
    let text = match group.parked_max {
        Some(parked_max) if group.parked > 0 => format!("{} of {parked_max}", group.parked),
        _ => group.parked.to_string(),
    };
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn parked_table(report: &LagReport, output: &Output) -> Table {
    let mut table = output.table(&["group", "parked wallet", "records", "since", "why"]);
    for parked in report.parked.iter().take(PARKED_ROWS_MAX) {
        table.add_row(vec![
            Cell::new(&parked.group),
            Cell::new(parked.wallet_id.as_deref().unwrap_or("(of no wallet)")),
            number(Some(parked.records)),
            Cell::new(time(parked.since)),
            Cell::new(one_line(&parked.error)),
        ]);
    }
    table
}

fn number(value: Option<i64>) -> Cell {
    Cell::new(value.map_or("-".to_owned(), |value| value.to_string())).set_alignment(CellAlignment::Right)
}

fn age(milliseconds: Option<i64>) -> Cell {
    Cell::new(milliseconds.map_or("-".to_owned(), age_text)).set_alignment(CellAlignment::Right)
}
