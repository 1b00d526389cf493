//! `wallex dlq show`: one dead letter after the other, with all that is known of each.

use std::process::ExitCode;

use color_eyre::eyre::eyre;

use crate::cli::dlq::Paging;
use crate::cli::text::time;
use crate::cli::{Format, Outcome, Output};
use crate::dlq::{self, Bytes, Letter, Selection};
use crate::postgres::Database;

/// Bytes that a person is shown of a key or value; JSON has them all.
const BYTES_SHOWN_MAX: usize = 4_096;

/// How many bytes stand in one line of hexadecimal digits.
const BYTES_A_LINE: usize = 32;

/// What is kept of a wallet's dead letters, or of one: event, bytes, headers, error, balance
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wallex dlq show wallet-1                             of every group that has it parked
  wallex dlq show wallet-1 --group ledger-projector --limit 1
  wallex dlq show --record 17                          one record, by the number that `wallex dlq list` shows
  wallex dlq show --no-wallet                          records of no wallet, such as a foreign producer's
  wallex dlq show wallet-1 -o json | jq '.[0].errorChain'")]
pub(super) struct Args {
    /// The wallet
    #[arg(required_unless_present_any = ["record", "no_wallet"])]
    wallet: Option<String>,

    /// One record, by its number
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["wallet", "no_wallet", "group", "limit", "offset"])]
    record: Option<i64>,

    /// Records of no wallet
    #[arg(long, conflicts_with = "wallet")]
    no_wallet: bool,

    /// Of this group only
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    #[command(flatten)]
    paging: Paging,
}

pub(super) async fn show(args: &Args, database: &Database, output: &Output) -> Outcome {
    let mut letters = Vec::new();
    if let Some(record) = args.record {
        letters.extend(dlq::show_record(database, record).await?);
        if letters.is_empty() {
            return Err(eyre!("no record {record} is parked; `wallex dlq list` shows what is"));
        }
    } else {
        let selection = Selection { group: args.group.clone(), wallet: args.wallet.clone(), ..Selection::default() };
        let groups = dlq::Page { limit: 1_000, offset: 0 };
        for queue in dlq::list(database, &selection, groups).await? {
            if queue.wallet_id.is_none() == args.no_wallet {
                let page = args.paging.page();
                letters.extend(dlq::show(database, &queue.group, queue.wallet_id.as_deref(), page).await?);
            }
        }
    }
    if output.format == Format::Json {
        output.json(&letters)?;
        return Ok(ExitCode::SUCCESS);
    }
    if letters.is_empty() {
        output.line("Nothing is parked, by what was asked for.")?;
    }
    for letter in &letters {
        output.line(describe(letter))?;
    }
    args.paging.note_more(letters.len(), output);
    Ok(ExitCode::SUCCESS)
}

fn describe(letter: &Letter) -> String {
    let mut text = Text::default();
    let whose = match (&letter.wallet_id, letter.position) {
        (Some(wallet), Some(position)) => format!("wallet {wallet}, position {position}"),
        _ => "of no wallet".to_owned(),
    };
    text.0.push(format!("record {} of {}: {whose}", letter.record_id, letter.group));
    let mut chain = letter.error_chain.iter();
    text.line("error", format!("{}: {}", letter.error_class, chain.next().map_or("", String::as_str)));
    chain.for_each(|cause| text.line("caused by", cause));
    text.line("tried", format!("{} times", letter.attempts));
    text.line("failed", format!("first {}, last {}", time(letter.first_failed_at), time(letter.last_failed_at)));
    if let Some(event) = &letter.event {
        text.line("event", format!("{} (version {}), {}", event.event_type, event.event_version, event.id));
        text.line("revision", format!("{}, recorded {}", event.revision, time(event.recorded_at)));
        match (&event.unreadable, &event.payload) {
            (Some(reason), _) => text.line("unreadable", reason),
            (None, Some(payload)) => text.line("payload", payload),
            (None, None) => {}
        }
    }
    if let Some(balance) = &letter.balance {
        let held = balance.held.as_deref().unwrap_or("nothing");
        let change = format!("{} would become {} {}", balance.before, balance.after, balance.currency);
        text.line("balance", format!("{change}; {} holds {held} now", letter.group));
    }
    match letter.offset {
        Some(offset) => {
            let at = letter.timestamp.map_or(String::new(), |at| format!(", {}", time(at)));
            text.line("came from", format!("{}, partition {}, offset {offset}{at}", letter.topic, letter.partition));
        }
        None => text.line("came from", "the log: the topic did not have it"),
    }
    for header in &letter.headers {
        match &header.value {
            Some(value) => text.bytes(&format!("header {}", header.name), value),
            None => text.line(&format!("header {}", header.name), "(none)"),
        }
    }
    if letter.offset.is_some() {
        for (name, bytes) in [("key", &letter.key), ("value", &letter.value)] {
            match bytes {
                Some(bytes) => text.bytes(name, bytes),
                None => text.line(name, "(none)"),
            }
        }
    }
    text.0.join("\n") + "\n"
}

/// Lines that are put together.
#[derive(Default)]
struct Text(Vec<String>);

impl Text {
    /// What comes from elsewhere stays within its line, and does nothing to a terminal.
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = value.to_string().replace(char::is_control, " ");
        let name = name.replace(char::is_control, " ");
        self.0.push(format!("  {name:<11} {value}"));
    }

    /// Text where it is text, else lines of hexadecimal digits.
    fn bytes(&mut self, name: &str, bytes: &Bytes) {
        match &bytes.text {
            Some(text) if !text.contains(char::is_control) => {
                let shown: String = text.chars().take(BYTES_SHOWN_MAX).collect();
                let rest = if shown.len() < text.len() { " …" } else { "" };
                self.line(name, format!("{shown}{rest}"));
            }
            _ => {
                let count = bytes.hex.len() / 2;
                self.line(name, format!("{count} bytes, as hexadecimal digits:"));
                let digits = bytes.hex.as_bytes().chunks(BYTES_A_LINE * 2).take(BYTES_SHOWN_MAX / BYTES_A_LINE);
                digits.for_each(|digits| self.line("", String::from_utf8_lossy(digits)));
                if count > BYTES_SHOWN_MAX {
                    self.line("", "…");
                }
            }
        }
    }
}
