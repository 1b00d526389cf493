//! The four zeros: what each means, and how it is counted from sources that know nothing of each other.
//!
//! - **the callers**: the keys of the commands that were answered with 201, and what each wallet must be by them alone;
//! - **the log**, the **ledger** and the **read model**: plain SQL;
//! - **the topic**: Kafka's own console consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, partition_of};
use wallex::postgres::sqlx;

use crate::kafka::CONSOLE_CONSUMER;
use crate::load::Model;
use crate::system::System;

/// Findings that are printed of each kind.
const SHOWN_MAX: usize = 8;

/// What was counted.
#[derive(Default)]
pub struct Verdict {
    accepted: usize,
    events: usize,
    records: usize,
    foreign: usize,
    repeated: usize,
    lost: Vec<String>,
    doubled: Vec<String>,
    out_of_order: Vec<String>,
    drifted: Vec<String>,
}

/// An event, as far as it matters here.
struct Event {
    position: i64,
    wallet: String,
    moves_money: bool,
}

/// What the console consumer has printed of one record of ours.
struct Printed {
    partition: i32,
    position: i64,
    key: String,
}

impl Verdict {
    /// Counts what callers, log, ledger and read model have. Nothing may be under way any more.
    pub async fn judge_effects(&mut self, system: &System, callers: &Model) {
        let events = events(system).await;
        (self.accepted, self.events) = (callers.keys.len(), events.len());
        self.judge_keys(system, callers).await;
        self.judge_wallets(system, callers, &events).await;
        self.judge_ledger(system).await;
    }

    pub fn is_clean(&self) -> bool {
        [&self.lost, &self.doubled, &self.out_of_order, &self.drifted].iter().all(|found| found.is_empty())
    }

    /// Each accepted command is in the log by its key, and no other is.
    async fn judge_keys(&mut self, system: &System, callers: &Model) {
        let keys: Vec<String> = sqlx::query_scalar("SELECT key FROM idempotency_keys")
            .fetch_all(system.database.pool())
            .await
            .expect("the keys");
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let lost =
            callers.keys.difference(&keys).map(|key| format!("command {key} was accepted and is not in the log"));
        self.lost.extend(lost);
        let extra = keys.difference(&callers.keys).map(|key| format!("command {key} is in the log, and was refused"));
        self.doubled.extend(extra);
    }

    /// Each wallet has as many events and postings as its callers caused, and the balance that they make, everywhere.
    async fn judge_wallets(&mut self, system: &System, callers: &Model, events: &[Event]) {
        let mut in_the_log: BTreeMap<&str, i64> = BTreeMap::new();
        for event in events.iter().filter(|event| event.moves_money) {
            *in_the_log.entry(&event.wallet).or_default() += 1;
        }
        let ledger: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT substr(account, 8), count(*), sum(amount)::bigint FROM ledger_postings WHERE leg = 0 GROUP BY account",
        )
        .fetch_all(system.database.pool())
        .await
        .expect("the ledger");
        let ledger: BTreeMap<String, (i64, i64)> =
            ledger.into_iter().map(|(wallet, count, sum)| (wallet, (count, sum))).collect();
        let read_model: Vec<(String, i64, i64)> =
            sqlx::query_as("SELECT wallet_id, version, balance FROM read_model_wallets")
                .fetch_all(system.database.pool())
                .await
                .expect("the read model");
        let read_model: BTreeMap<String, (i64, i64)> =
            read_model.into_iter().map(|(wallet, version, balance)| (wallet, (version, balance))).collect();
        for (wallet, account) in &callers.accounts {
            // Whole dollars are what callers move; minor units are what the tables hold.
            let balance = account.balance * 100;
            let (posted, sum) = ledger.get(wallet).copied().unwrap_or_default();
            let (version, shown) = read_model.get(wallet).copied().unwrap_or_default();
            let logged = in_the_log.get(wallet.as_str()).copied().unwrap_or(0);
            for (place, count) in [("log", logged), ("ledger", posted), ("read model", version)] {
                let text = || format!("{wallet}: {count} movements in the {place}, {} accepted", account.postings);
                match count - account.postings {
                    0 => {}
                    ..0 => self.lost.push(text()),
                    1.. => self.doubled.push(text()),
                }
            }
            for (place, found) in [("ledger", sum), ("read model", shown)] {
                if found != balance {
                    self.drifted.push(format!("{wallet}: {found} in the {place}, {balance} by what was accepted"));
                }
            }
        }
        let known = callers.accounts.keys().collect::<BTreeSet<_>>();
        let strange = ledger.keys().chain(read_model.keys()).filter(|wallet| !known.contains(wallet));
        self.drifted.extend(strange.map(|wallet| format!("{wallet}: nobody has opened it")));
    }

    /// The ledger beside the log, position by position, and each wallet's balances in their order.
    async fn judge_ledger(&mut self, system: &System) {
        let pool = system.database.pool();
        let missing: Vec<i64> = sqlx::query_scalar(
            "SELECT e.position FROM events e WHERE e.event_type <> 'WalletCreated'
                AND (SELECT count(*) FROM ledger_postings l WHERE l.position = e.position) <> 2 ORDER BY 1",
        )
        .fetch_all(pool)
        .await
        .expect("the ledger");
        self.lost.extend(missing.iter().map(|position| format!("position {position} has not two postings")));
        let strange: Vec<i64> = sqlx::query_scalar(
            "SELECT DISTINCT l.position FROM ledger_postings l
               LEFT JOIN events e ON e.position = l.position AND e.event_type <> 'WalletCreated'
              WHERE e.position IS NULL ORDER BY 1",
        )
        .fetch_all(pool)
        .await
        .expect("the ledger");
        self.doubled.extend(strange.iter().map(|position| format!("postings at {position}, where no money moved")));
        let broken: Vec<(i64, String)> = sqlx::query_as(
            "SELECT position, account FROM (
                SELECT position, account, balance_after,
                       coalesce(lag(balance_after) OVER (PARTITION BY account ORDER BY position), 0) + amount AS expected
                  FROM ledger_postings WHERE leg = 0) AS chain
              WHERE balance_after <> expected ORDER BY 1",
        )
        .fetch_all(pool)
        .await
        .expect("the ledger");
        self.out_of_order.extend(
            broken
                .iter()
                .map(|(position, account)| format!("{account} does not go on from its last balance at {position}")),
        );
        let overtaken: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT account, position, before FROM (
                SELECT account, position, place,
                       max(position) OVER (PARTITION BY account ORDER BY place
                                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
                  FROM soak_applied) AS applied
              WHERE before > position ORDER BY place",
        )
        .fetch_all(pool)
        .await
        .expect("what was applied when");
        self.out_of_order.extend(
            overtaken
                .iter()
                .map(|(account, position, before)| format!("{account}: {position} was applied after {before}")),
        );
        let unbalanced: Vec<(String, i64)> = sqlx::query_as(
            "SELECT currency, sum(amount)::bigint FROM ledger_postings GROUP BY currency HAVING sum(amount) <> 0",
        )
        .fetch_all(pool)
        .await
        .expect("the ledger");
        self.drifted.extend(unbalanced.iter().map(|(currency, sum)| format!("all {currency} sums up to {sum}")));
    }

    /// From the first record of each partition on, the topic has each event of the log that belongs there, in order. (A topic that
    /// was made anew begins where the projections were.) Where a relay has been halted while another took over, records may be there
    /// twice; otherwise that counts as doubled. The relay must be through.
    pub async fn judge_topic(&mut self, system: &System, a_relay_was_halted: bool) {
        let (events, held, before) = (events(system).await, held(system), self.records);
        let mut found: BTreeMap<i32, Vec<Printed>> = BTreeMap::new();
        for printed in printed(system, held) {
            self.records += 1;
            match printed {
                Some(printed) => found.entry(printed.partition).or_default().push(printed),
                None => self.foreign += 1,
            }
        }
        if self.records - before != held {
            self.lost.push(format!("Kafka's consumer read {} of {held} records", self.records - before));
        }
        let mut expected: BTreeMap<i32, BTreeMap<i64, &str>> = BTreeMap::new();
        for event in &events {
            let partition = partition_of(event.wallet.as_bytes(), EVENTS_PARTITIONS);
            expected.entry(partition).or_default().insert(event.position, &event.wallet);
        }
        for (partition, records) in found {
            let mut open = expected.remove(&partition).unwrap_or_default();
            let first = records.iter().map(|record| record.position).min().unwrap_or(0);
            open.retain(|position, _| *position >= first);
            let (mut seen, mut last) = (BTreeSet::new(), 0);
            for record in &records {
                let place = format!("position {} in partition {partition}", record.position);
                if !seen.insert(record.position) {
                    self.repeated += 1;
                    if !a_relay_was_halted {
                        self.doubled.push(format!("{place}: a record once more, and no relay was halted"));
                    }
                } else if record.position < last {
                    self.out_of_order.push(format!("{place} after {last}"));
                } else {
                    last = record.position;
                    if open.remove(&record.position) != Some(record.key.as_str()) {
                        self.doubled.push(format!("{place} is of no event of {}", record.key));
                    }
                }
            }
            self.lost
                .extend(open.keys().map(|position| format!("position {position} is not in partition {partition}")));
        }
    }

    /// The table, and below it what was found.
    pub fn table(&self, seed: u64, rounds: usize, took: Duration) -> String {
        let mut text =
            format!("\nseed {seed}, {rounds} rounds in {} min {} s\n\n", took.as_secs() / 60, took.as_secs() % 60);
        let mut row = |name: &str, count: usize, meaning: &str| {
            writeln!(text, "{name:<13}{count:>9}  {meaning}").expect("a string takes everything");
        };
        row("accepted", self.accepted, "commands that callers were answered 201 for, each with a key");
        row("events", self.events, "in the log");
        row("records", self.records, "read by Kafka's own consumer, before the topic was deleted last and at the end");
        row("foreign", self.foreign, "of them that no relay wrote: parked, or passed over");
        row(
            "repeated",
            self.repeated,
            "of them that say again what an earlier one said, after a relay was halted; their effects count below",
        );
        row("lost", self.lost.len(), "accepted and not in log, ledger, read model or topic");
        row(
            "doubled",
            self.doubled.len(),
            "in effect more than once in log, ledger or read model, or of no command at all",
        );
        row(
            "out of order",
            self.out_of_order.len(),
            "after a later one of its partition, or of its wallet in the ledger",
        );
        row(
            "drifted",
            self.drifted.len(),
            "balances that differ between callers, ledger and read model; sums that are not 0",
        );
        for (name, found) in [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("out of order", &self.out_of_order),
            ("drifted", &self.drifted),
        ] {
            for line in found.iter().take(SHOWN_MAX) {
                writeln!(text, "{name}: {line}").expect("a string takes everything");
            }
        }
        text
    }
}

async fn events(system: &System) -> Vec<Event> {
    let rows: Vec<(i64, String, bool)> = sqlx::query_as(
        "SELECT e.position, s.name, e.event_type <> 'WalletCreated' FROM events e JOIN streams s USING (stream_id)
          ORDER BY e.position",
    )
    .fetch_all(system.database.pool())
    .await
    .expect("the log");
    rows.into_iter().map(|(position, wallet, moves_money)| Event { position, wallet, moves_money }).collect()
}

/// How many records the topic holds.
fn held(system: &System) -> usize {
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", system.kafka.address()).create().expect("a client");
    let count = |partition| {
        let (low, end) =
            client.fetch_watermarks(EVENTS_TOPIC, partition, Duration::from_secs(30)).expect("the topic's ends");
        usize::try_from(end - low).expect("an end after the beginning")
    };
    (0..EVENTS_PARTITIONS).map(count).sum()
}

/// Every record of the topic as Kafka's own consumer prints it; `None` for one that carries no position of ours.
fn printed(system: &System, count: usize) -> Vec<Option<Printed>> {
    if count == 0 {
        return Vec::new();
    }
    let count = count.to_string();
    let mut arguments =
        vec!["--topic", EVENTS_TOPIC, "--from-beginning", "--max-messages", &count, "--timeout-ms", "60000"];
    for property in ["print.partition=true", "print.headers=true", "print.key=true", "print.value=true"] {
        arguments.extend(["--formatter-property", property]);
    }
    let mut consumer = system
        .kafka
        .tool_command(CONSOLE_CONSUMER, &arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Java's console consumer");
    let lines = BufReader::new(consumer.stdout.take().expect("its output")).split(b'\n');
    let printed = lines.map(|line| read(&String::from_utf8_lossy(&line.expect("a line")))).collect();
    assert!(consumer.wait().expect("its end").success(), "Java's console consumer");
    printed
}

fn read(line: &str) -> Option<Printed> {
    let mut fields = line.splitn(4, '\t');
    let partition = fields.next()?.strip_prefix("Partition:")?.parse().ok()?;
    let headers = fields.next()?;
    let key = fields.next()?.to_owned();
    // Foreign records of the soak have an empty value, or claim a position that no log comes to.
    let position = headers.split(',').find_map(|header| header.strip_prefix("position:"))?.parse().ok()?;
    (position < 999_999_999_999).then_some(Printed { partition, position, key })
}
