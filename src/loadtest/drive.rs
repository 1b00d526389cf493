//! Carries out a plan: workers that take one number after another, and a tally of what they were answered.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use reqwest::StatusCode;
use tokio::task::JoinSet;

use crate::loadtest::client::{Answer, Client, Unanswered};
use crate::loadtest::model::{CURRENCY, Outcome};
use crate::loadtest::plan::{Kind, Operation, Plan};
use crate::loadtest::{OnProgress, Phase, Progress};

/// After so many failures nothing more is sent: a service that is down is not asked 20,000 times.
const FAILURES_MAX: u64 = 100;
/// So many failures are told one by one.
const FAILURES_TOLD: usize = 5;
/// Latencies in microseconds up to ten minutes, which no operation waits, kept to three digits.
const LATENCY_MAX: u64 = 600_000_000;
const LATENCY_DIGITS: u8 = 3;

/// What is sent, to whom, under which name.
pub struct Run {
    pub client: Client,
    pub plan: Plan,
    /// Begins every wallet id and key of the run, and no other's.
    pub name: String,
    pub workers: usize,
    pub progress: OnProgress,
}

impl Run {
    /// The id of a wallet. In the order of ids the wallets of one run stand together, after the run's name.
    pub fn wallet_id(&self, number: u32) -> String {
        format!("{}-{number:06}", self.name)
    }

    /// The number of a wallet of this run.
    pub fn wallet_number(&self, id: &str) -> Option<u32> {
        let number = id.strip_prefix(self.name.as_str())?.strip_prefix('-')?.parse().ok()?;
        (number < self.plan.wallets()).then_some(number)
    }

    pub fn report_progress(&self, phase: Phase, done: u64, total: u64) {
        (self.progress)(Progress { phase, done, total });
    }

    /// Opens every wallet.
    pub async fn open_wallets(self: &Arc<Self>) -> Tally {
        let total = u64::from(self.plan.wallets());
        self.carry_out(Phase::Wallets, total, |run, number| async move {
            // Below the number of wallets, which is a u32.
            let wallet = number as u32;
            let (id, amount) = (run.wallet_id(wallet), run.plan.opening(wallet));
            let key = format!("{}-open-{wallet}", run.name);
            let body = format!(
                r#"{{"walletId":"{id}","ownerId":"owner-{wallet:06}","initialBalance":{amount},"currency":"{CURRENCY}"}}"#
            );
            (None, run.client.post("/wallets", &key, body).await)
        })
        .await
    }

    /// Carries out so many operations of the plan.
    pub async fn operate(self: &Arc<Self>, operations: u64) -> Tally {
        self.carry_out(Phase::Operations, operations, |run, number| async move {
            let operation = run.plan.operation(number);
            let (path, body) = run.request_of(&operation);
            let key = format!("{}-{number}", run.name);
            (Some(operation.kind), run.client.post(&path, &key, body).await)
        })
        .await
    }

    fn request_of(&self, operation: &Operation) -> (String, String) {
        let path = format!("/wallets/{}/{}", self.wallet_id(operation.wallet), operation.kind.name());
        let amount = operation.amount;
        let body = match operation.receiver {
            None => format!(r#"{{"amount":{amount}}}"#),
            Some(receiver) => format!(r#"{{"toWalletId":"{}","amount":{amount}}}"#, self.wallet_id(receiver)),
        };
        (path, body)
    }

    async fn carry_out<Sending>(
        self: &Arc<Self>,
        phase: Phase,
        total: u64,
        send: impl Fn(Arc<Run>, u64) -> Sending + Copy + Send + Sync + 'static,
    ) -> Tally
    where
        Sending: Future<Output = (Option<Kind>, Result<Answer, Unanswered>)> + Send + 'static,
    {
        let shared = Arc::new((Arc::clone(self), Mutex::new(Tally::new(total))));
        let tallied = Arc::clone(&shared);
        let started = Instant::now();
        in_parallel(self.workers, total, move |number| {
            let shared = Arc::clone(&tallied);
            async move {
                let (run, tally) = &*shared;
                let sent = Instant::now();
                let (kind, answer) = send(Arc::clone(run), number).await;
                let mut tally = lock(tally);
                tally.record(number, kind, answer, sent.elapsed());
                run.report_progress(phase, tally.issued(), total);
                if tally.given_up() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
        })
        .await;
        let mut tally = std::mem::take(&mut *lock(&shared.1));
        tally.duration = started.elapsed();
        tally
    }
}

/// Calls `work` with 0 to `total`, as many at a time as there are workers, until one of them says to break off.
pub async fn in_parallel<Working>(workers: usize, total: u64, work: impl Fn(u64) -> Working + Clone + Send + 'static)
where
    Working: Future<Output = ControlFlow<()>> + Send + 'static,
{
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (next, work) = (Arc::clone(&next), work.clone());
        tasks.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= total {
                    break;
                }
                if work(number).await.is_break() {
                    next.store(total, Ordering::Relaxed);
                }
            }
        });
    }
    // A worker's panic is ours, and goes on here.
    tasks.join_all().await;
}

/// A lock whose holder cannot leave half a change behind: a panic within ends the whole run anyway.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the answers were.
#[derive(Debug, Default)]
pub struct Tally {
    /// By number of the operation.
    pub outcomes: Vec<Outcome>,
    /// By kind, in the order of [`Kind::ALL`].
    pub kinds: [KindTally; 3],
    /// By code.
    pub rejections: BTreeMap<String, u64>,
    pub failures: u64,
    /// The first few failures, in words.
    pub first_failures: Vec<String>,
    pub retries: u64,
    /// From the first request's start to the last one's answer.
    pub duration: Duration,
    issued: u64,
}

/// The answers to one kind of operation.
#[derive(Debug)]
pub struct KindTally {
    pub ok: u64,
    pub rejected: u64,
    pub failed: u64,
    /// Microseconds from an operation's first request to its answer, retries included.
    pub latencies: Histogram<u64>,
}

impl Default for KindTally {
    fn default() -> Self {
        let latencies =
            Histogram::new_with_bounds(1, LATENCY_MAX, LATENCY_DIGITS).expect("a histogram can keep these bounds");
        KindTally { ok: 0, rejected: 0, failed: 0, latencies }
    }
}

impl Tally {
    fn new(total: u64) -> Self {
        // The totals are bounded by `OPERATIONS_MAX`.
        Tally { outcomes: vec![Outcome::NotIssued; total as usize], ..Tally::default() }
    }

    /// How many have an end, good or bad.
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// How many were answered.
    pub fn answered(&self) -> u64 {
        self.issued - self.failures
    }

    /// Whether the rest was not sent, for want of hope.
    pub fn given_up(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    fn record(&mut self, number: u64, kind: Option<Kind>, answer: Result<Answer, Unanswered>, latency: Duration) {
        self.issued += 1;
        let outcome = self.outcome_of(number, answer);
        self.outcomes[number as usize] = outcome;
        let Some(kind) = kind else { return };
        let tally = &mut self.kinds[kind as usize];
        match outcome {
            Outcome::Ok => tally.ok += 1,
            Outcome::Rejected => tally.rejected += 1,
            Outcome::Failed | Outcome::NotIssued => {
                tally.failed += 1;
                return;
            }
        }
        tally.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn outcome_of(&mut self, number: u64, answer: Result<Answer, Unanswered>) -> Outcome {
        let reason = match answer {
            Ok(answer) => {
                self.retries += answer.retries;
                if answer.status == StatusCode::CREATED {
                    return Outcome::Ok;
                }
                if let Some(code) = answer.refusal() {
                    *self.rejections.entry(code).or_default() += 1;
                    return Outcome::Rejected;
                }
                answer.quoted()
            }
            Err(unanswered) => {
                self.retries += unanswered.retries;
                format!("never answered: {}", unanswered.reason)
            }
        };
        self.failures += 1;
        if self.first_failures.len() < FAILURES_TOLD {
            self.first_failures.push(format!("request {number} {reason}"));
        }
        Outcome::Failed
    }
}
