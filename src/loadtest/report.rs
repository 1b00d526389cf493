//! What a run found out, in the numbers and words of its report.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::loadtest::drain::Drain;
use crate::loadtest::drive::{KindTally, Tally};
use crate::loadtest::model::Outcome;
use crate::loadtest::plan::Kind;

/// The refusal that this workload must expect: a wallet has less than is asked of it.
const EXPECTED_REJECTION: &str = "INSUFFICIENT_FUNDS";

/// One line of a proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What must be.
    pub expected: String,
    /// What is; of several differences the first.
    pub actual: String,
}

impl Check {
    /// A line of a proof.
    pub fn new(name: &str, ok: bool, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        Check { name: name.to_owned(), ok, expected: expected.into(), actual: actual.into() }
    }
}

/// Whether everything is as it must be, line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Whether every line is as it must be.
    pub ok: bool,
    /// The lines.
    pub checks: Vec<Check>,
}

/// Latencies in milliseconds, from an operation's first request to its answer; `None` where nothing was answered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latencies {
    /// Half of the answers came sooner.
    pub p50: Option<f64>,
    /// 95 of 100 came sooner.
    pub p95: Option<f64>,
    /// 99 of 100 came sooner.
    pub p99: Option<f64>,
    /// The last to come.
    pub max: Option<f64>,
}

/// What became of the operations of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KindReport {
    /// Acknowledged.
    pub ok: u64,
    /// Refused, which is an answer.
    pub rejected: u64,
    /// Not answered, or wrongly: a failure of the service.
    pub failed: u64,
    /// How long the answers took, refusals included.
    pub latency_ms: Latencies,
}

/// The operations by kind.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Operations {
    /// Money from outside.
    pub credit: KindReport,
    /// Money to outside.
    pub debit: KindReport,
    /// Money between two wallets.
    pub transfer: KindReport,
}

impl Operations {
    /// The kinds with their names, in the order of the plan.
    pub fn by_kind(&self) -> [(Kind, &KindReport); 3] {
        [(Kind::Credit, &self.credit), (Kind::Debit, &self.debit), (Kind::Transfer, &self.transfer)]
    }
}

/// A run's report. As JSON it has exactly the keys of its stable schema; what is for people alone is left out there.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Repeats the run's operations.
    pub seed: u64,
    /// How many wallets there were.
    pub wallets: u32,
    /// What became of the operations.
    pub operations: Operations,
    /// How many operations were refused, by the refusal's code.
    pub rejections: BTreeMap<String, u64>,
    /// How many requests failed, those that open wallets included. Never added to the rejections.
    pub failures: u64,
    /// From the first operation's start to the last one's answer.
    pub duration_ms: f64,
    /// Answered operations a second while they were issued.
    pub ops_per_second: f64,
    /// The same, the drain's time included; `None` if the projections never caught up.
    pub drained_ops_per_second: Option<f64>,
    /// From the last operation's answer until the projections held every event; `None` if they never did.
    pub drain_ms: Option<f64>,
    /// Whether everything is as it must be.
    pub proof: Proof,
    /// How many requests were sent again, for want of an answer.
    #[serde(skip)]
    pub retries: u64,
    /// The first few failures, in words.
    #[serde(skip)]
    pub first_failures: Vec<String>,
    /// Begins the id of every wallet of the run.
    #[serde(skip)]
    pub wallet_prefix: String,
}

impl Report {
    /// Whether nothing failed and nothing differs.
    pub fn ok(&self) -> bool {
        self.failures == 0 && self.proof.ok
    }

    /// Adds lines to the proof, such as those of `verify`.
    pub fn add_checks(&mut self, checks: impl IntoIterator<Item = Check>) {
        self.proof.checks.extend(checks);
        self.proof.ok = self.proof.checks.iter().all(|check| check.ok);
    }

    /// The report of a run that opened its wallets.
    pub(super) fn new(seed: u64, wallets: u32, planned: u64, tally: &Tally, drain: &Drain) -> Self {
        let [credit, debit, transfer] = tally.kinds.each_ref().map(kind_report);
        let drained = drain.duration.map(|waited| tally.duration + waited);
        let mut report = Report {
            seed,
            wallets,
            operations: Operations { credit, debit, transfer },
            rejections: tally.rejections.clone(),
            failures: tally.failures,
            duration_ms: milliseconds(tally.duration),
            ops_per_second: per_second(tally.answered(), tally.duration),
            drained_ops_per_second: drained.map(|duration| per_second(tally.answered(), duration)),
            drain_ms: drain.duration.map(milliseconds),
            proof: Proof::default(),
            retries: tally.retries,
            first_failures: tally.first_failures.clone(),
            wallet_prefix: String::new(),
        };
        report.add_checks([
            answered_check(planned, tally),
            rejections_check(&tally.rejections),
            Check::new("projections", drain.duration.is_some(), &drain.expected, &drain.actual),
        ]);
        report
    }
}

/// Whether every wallet was opened.
pub(super) fn opened_check(wallets: u32, tally: &Tally) -> Check {
    let refused = match tally.rejections.first_key_value() {
        None => String::new(),
        Some((code, count)) => format!(", {count} refused with {code}"),
    };
    let opened = tally.outcomes.iter().filter(|outcome| **outcome == Outcome::Ok).count();
    let actual = format!("{opened}{refused}{}", failures_in_words(tally));
    Check::new("wallets opened", opened == wallets as usize, wallets.to_string(), actual)
}

/// Whether every operation was sent and answered.
fn answered_check(planned: u64, tally: &Tally) -> Check {
    let actual = format!("{}{}", tally.answered(), failures_in_words(tally));
    Check::new("operations answered", tally.answered() == planned, planned.to_string(), actual)
}

fn failures_in_words(tally: &Tally) -> String {
    match (tally.first_failures.first(), tally.given_up()) {
        (None, _) => String::new(),
        (Some(first), false) => format!(", {} failed: {first}", tally.failures),
        (Some(first), true) => format!(", given up after {} failures: {first}", tally.failures),
    }
}

fn rejections_check(rejections: &BTreeMap<String, u64>) -> Check {
    let ok = rejections.keys().all(|code| code == EXPECTED_REJECTION);
    let found: Vec<_> = rejections.iter().map(|(code, count)| format!("{count} {code}")).collect();
    let actual = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    Check::new("rejections", ok, format!("none but {EXPECTED_REJECTION}"), actual)
}

fn kind_report(tally: &KindTally) -> KindReport {
    let answered = !tally.latencies.is_empty();
    let at =
        |quantile| answered.then(|| milliseconds(Duration::from_micros(tally.latencies.value_at_quantile(quantile))));
    let max = answered.then(|| milliseconds(Duration::from_micros(tally.latencies.max())));
    let latency_ms = Latencies { p50: at(0.5), p95: at(0.95), p99: at(0.99), max };
    KindReport { ok: tally.ok, rejected: tally.rejected, failed: tally.failed, latency_ms }
}

/// To the microsecond.
#[expect(clippy::float_arithmetic, reason = "a time for a report, not money")]
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// To a tenth.
#[expect(clippy::float_arithmetic, reason = "a rate for a report, not money")]
fn per_second(count: u64, duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    if seconds > 0.0 { (count as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 }
}
