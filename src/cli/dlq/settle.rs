//! `wallex dlq replay` and `wallex dlq discard`: the plan first, and then what it says.

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;

use color_eyre::eyre::eyre;
use comfy_table::Cell;
use nix::unistd::{User, gethostname, getuid};
use serde::Serialize;

use crate::cli::dlq::list::{positions, right};
use crate::cli::dlq::{Filters, wallet_text};
use crate::cli::text::one_line;
use crate::cli::{EXIT_NO, Format, Outcome, Output};
use crate::dlq::{self, Action, ActionKind, Plan, Reach, Settled};
use crate::postgres::Database;
use crate::projection::{BUILT_IN, LedgerProjection, ReadModelProjection};

/// Queues and events that the tables name; JSON has more.
const QUEUES_SHOWN_MAX: usize = 50;

/// Apply what is parked again, in order; shows the plan, and with --execute does it
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex dlq replay --all                              the plan: what, in which order, balances before and after
  wallex dlq replay --all --execute
  wallex dlq replay --wallet wallet-1 --group ledger-projector --execute --reason 'migration 17 is in'
  wallex dlq replay --error 'out of range' --execute -o json

A wallet whose events have all been applied goes on by itself. Where one fails again, those before it are applied and the rest \
stays parked; the exit code is 1 then. It may be interrupted, repeated, and run twice at once.")]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    what: What,

    /// Do it; without this the plan is shown, and at a terminal you are asked
    #[arg(long)]
    execute: bool,

    /// Why, for the account of what was done
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// Do without what is parked, for good; shows the plan, and with --execute and --reason does it
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex dlq discard --wallet wallet-1                 the plan: what the group will lack
  wallex dlq discard --wallet wallet-1 --reason 'posted by hand, ticket 7' --execute
  wallex dlq discard --wallet wallet-1 --with-those-behind --reason 'a test wallet' --execute
  wallex dlq discard --error foreign --reason 'a stray producer' --execute

Of each wallet only the first event is discarded, the one that fails: those behind it stay parked for a replay. The log keeps \
every event; `wallex verify` names what was discarded.")]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    what: What,

    /// Not only the first event of a wallet, but all that are parked behind it
    #[arg(long)]
    with_those_behind: bool,

    /// Do it
    #[arg(long, requires = "reason")]
    execute: bool,

    /// Why, for the account of what was done
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
struct What {
    #[command(flatten)]
    filters: Filters,

    /// Everything that is parked
    #[arg(long)]
    all: bool,

    /// Who does it, for the account of what was done; left out: who you are to the operating system
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl What {
    /// Nothing is done to everything by leaving something out.
    fn check(&self) -> color_eyre::Result<()> {
        match (self.all, self.filters.select()) {
            (false, false) => Err(eyre!("say what is meant: --wallet, --error or another filter, or --all")),
            _ => Ok(()),
        }
    }

    fn by(&self) -> String {
        self.by.clone().unwrap_or_else(who)
    }
}

/// A plan, and what has come of it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    plan: &'a Plan,
    executed: bool,
    settled: Vec<Settled>,
}

pub(super) async fn replay(args: &ReplayArgs, database: &Database, output: &Output) -> Outcome {
    args.what.check()?;
    let selection = args.what.filters.selection();
    let plan = dlq::plan(database, ActionKind::Replay, &selection, Reach::Whole, &BUILT_IN).await?;
    show_plan(&plan, output)?;
    if plan.records == 0 || !(args.execute || agreed(output)) {
        return not_done(&plan, output, "--execute");
    }
    let action = Action::new(ActionKind::Replay, args.what.by(), args.reason.clone());
    let bar = output.bar(plan.records as u64, "replaying");
    let told = bar.clone();
    let progress = move |records| told.inc(records);
    let mut settled = dlq::replay(LedgerProjection::new(), database, &plan.queues, &action, progress.clone()).await?;
    settled.extend(dlq::replay(ReadModelProjection::new(), database, &plan.queues, &action, progress).await?);
    bar.finish_and_clear();
    done(&plan, settled, output, "applied")
}

pub(super) async fn discard(args: &DiscardArgs, database: &Database, output: &Output) -> Outcome {
    args.what.check()?;
    let reach = if args.with_those_behind { Reach::Whole } else { Reach::First };
    let selection = args.what.filters.selection();
    let plan = dlq::plan(database, ActionKind::Discard, &selection, reach, &[]).await?;
    show_plan(&plan, output)?;
    // A yes at a terminal is not enough here: the reason is part of it.
    if plan.records == 0 || !args.execute {
        return not_done(&plan, output, "--execute and --reason");
    }
    let action = Action::new(ActionKind::Discard, args.what.by(), args.reason.clone());
    let bar = output.bar(plan.records as u64, "discarding");
    let settled = dlq::discard(database, &plan.queues, &action, &mut |records| bar.inc(records)).await?;
    bar.finish_and_clear();
    done(&plan, settled, output, "discarded")
}

fn show_plan(plan: &Plan, output: &Output) -> io::Result<()> {
    if output.format == Format::Json || plan.queues.is_empty() {
        return Ok(());
    }
    let discards = plan.action == ActionKind::Discard;
    let mut header = vec!["group", "wallet", "records", "positions", "holds now", "before", "after", "stays"];
    header.extend(discards.then_some("will lack"));
    header.push("in the way");
    let mut table = output.table(&header);
    for queue in plan.queues.iter().take(QUEUES_SHOWN_MAX) {
        let money = |amount: &Option<String>| match (amount, &queue.currency) {
            (Some(amount), Some(currency)) => format!("{amount} {currency}"),
            _ => "-".to_owned(),
        };
        let mut row = vec![
            Cell::new(&queue.group),
            Cell::new(wallet_text(queue.wallet_id.as_deref())),
            right(queue.records),
            Cell::new(positions(queue.first_position, queue.last_position)),
            right(money(&queue.held)),
            right(money(&queue.balance_before)),
            right(money(&queue.balance_after)),
            right(queue.stays),
        ];
        row.extend(discards.then(|| Cell::new(queue.lacks.as_deref().unwrap_or("-"))));
        row.push(Cell::new(queue.obstacle.as_deref().unwrap_or("-")));
        table.add_row(row);
    }
    output.line(table.to_string())?;
    if plan.queues.len() > QUEUES_SHOWN_MAX {
        output.line(format!("… and {} more queues", plan.queues.len() - QUEUES_SHOWN_MAX))?;
    }
    if let [queue] = &plan.queues[..]
        && !queue.events.is_empty()
    {
        let mut table = output.table(&["in this order", "revision", "event", "balance after"]);
        for event in &queue.events {
            table.add_row(vec![
                right(event.position),
                right(event.revision),
                Cell::new(&event.event_type),
                right(event.balance_after.as_deref().unwrap_or("(cannot be read)")),
            ]);
        }
        output.line(table.to_string())?;
        let more = queue.records - queue.events.len() as i64;
        if more > 0 {
            output.line(format!("… and {more} more events"))?;
        }
    }
    if plan.more {
        output.note(format!("there are more queues than the {} of one command: run it again", plan.queues.len()));
    }
    Ok(())
}

fn not_done(plan: &Plan, output: &Output, how: &str) -> Outcome {
    if output.format == Format::Json {
        output.json(&Report { plan, executed: false, settled: Vec::new() })?;
        return Ok(ExitCode::SUCCESS);
    }
    output.line(match plan.records {
        0 => format!("Nothing to {}, by what was asked for.", plan.action.as_str()),
        records => format!("Nothing was done. To {} {records} records: {how}", plan.action.as_str()),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn done(plan: &Plan, settled: Vec<Settled>, output: &Output, word: &str) -> Outcome {
    let stopped = settled.iter().filter(|settled| settled.error.is_some()).count();
    let code = if stopped == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) };
    if output.format == Format::Json {
        output.json(&Report { plan, executed: true, settled })?;
        return Ok(code);
    }
    let mut table = output.table(&["group", "wallet", word, "positions", "still parked", "stopped at"]);
    for settled in settled.iter().take(QUEUES_SHOWN_MAX) {
        table.add_row(vec![
            Cell::new(&settled.group),
            Cell::new(wallet_text(settled.wallet_id.as_deref())),
            right(settled.records),
            Cell::new(positions(settled.first_position, settled.last_position)),
            right(settled.remaining),
            Cell::new(one_line(settled.error.as_deref().unwrap_or("-"))),
        ]);
    }
    output.line(table.to_string())?;
    let records: i64 = settled.iter().map(|settled| settled.records).sum();
    output.line(match stopped {
        0 => format!("{records} records {word}, of {} queues.", settled.len()),
        _ => format!("{records} records {word}; {stopped} of {} queues stopped at an event that fails.", settled.len()),
    })?;
    Ok(code)
}

/// Asks where somebody can answer.
fn agreed(output: &Output) -> bool {
    if output.format == Format::Json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    output.note("Do it? Type yes:");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

/// Who runs this, to the operating system.
fn who() -> String {
    // Whoever has become root says who he was.
    let before = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    let user = User::from_uid(getuid()).ok().flatten().map(|user| user.name);
    let name = before.or(user).unwrap_or_else(|| format!("uid {}", getuid()));
    match gethostname().ok().and_then(|host| host.into_string().ok()) {
        Some(host) => format!("{name}@{host}"),
        None => name,
    }
}
