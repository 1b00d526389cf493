//! Measures a running wallet service over HTTP, and then proves that every balance is right.
//!
//! [`run`] opens wallets, sends the credits, debits and transfers that a seed draws ([`plan`]), waits until the
//! projections have caught up, and holds every wallet's balance, ledger and read-model row against its own model of what
//! was acknowledged. It knows the HTTP contract and nothing of the code behind it.
//!
//! Every command has an idempotency key, so one that got no answer is sent again until it has one. A *rejection*
//! (too little money) is an answer; a *failure* is the service's fault. They are never added up.

mod client;
mod drain;
mod drive;
mod model;
pub mod plan;
mod prove;
mod report;

use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

pub use client::{Patience, parse_address};
pub use model::OPERATIONS_MAX;
pub use plan::Distribution;
pub use report::{Check, KindReport, Latencies, Operations, Proof, Report};

use client::Client;
use drain::Drain;
use drive::{Run, Tally};
use model::Model;
use plan::Plan;

/// The most wallets that a run may have.
pub const WALLETS_MAX: u32 = 1_000_000;
/// The most workers that a run may have; each needs a connection.
pub const WORKERS_MAX: usize = 1_024;

/// What to run, and against what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the service answers, such as `http://127.0.0.1:3000`.
    pub address: String,
    /// How many wallets to open: 2 to [`WALLETS_MAX`].
    pub wallets: u32,
    /// How many operations to send: 1 to [`OPERATIONS_MAX`].
    pub operations: u64,
    /// How many operations are under way at a time: 1 to [`WORKERS_MAX`].
    pub workers: usize,
    /// Draws the operations.
    pub seed: u64,
    /// Which wallets are drawn.
    pub distribution: Distribution,
    /// How long to wait for what does not come.
    pub patience: Patience,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Opening wallets.
    Wallets,
    /// Sending operations.
    Operations,
    /// Waiting for the projections; counted in log positions.
    Drain,
    /// Comparing.
    Proof,
}

/// How far a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which phase.
    pub phase: Phase,
    /// How much of it is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// Called after each step, from many tasks; it must be quick.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Why a run could not take place.
#[derive(Debug, Error)]
pub enum LoadTestError {
    /// A number is out of its bounds.
    #[error("{option} must be {min} to {max}, not {value}")]
    OutOfBounds {
        /// Which.
        option: &'static str,
        /// What it is.
        value: u64,
        /// The least that it may be.
        min: u64,
        /// The most that it may be.
        max: u64,
    },
    /// No address of a service.
    #[error("{address:?} is not an address such as http://127.0.0.1:3000: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there.
    #[error("nothing answers at {address}: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What happened instead.
        reason: String,
    },
}

impl Options {
    fn check(&self) -> Result<(), LoadTestError> {
        let bounds = [
            ("wallets", u64::from(self.wallets), 2, u64::from(WALLETS_MAX)),
            ("operations", self.operations, 1, OPERATIONS_MAX),
            ("workers", self.workers as u64, 1, WORKERS_MAX as u64),
        ];
        for (option, value, min, max) in bounds {
            if !(min..=max).contains(&value) {
                return Err(LoadTestError::OutOfBounds { option, value, min, max });
            }
        }
        Ok(())
    }
}

/// Runs the load test and proves what it left behind.
///
/// A service that misbehaves makes a report that says so ([`Report::ok`]), not an error.
///
/// # Errors
/// [`LoadTestError`] where the options are wrong or nobody answers at the address; nothing was done then.
///
/// # Panics
/// If one of its own tasks does.
pub async fn run(options: &Options, progress: OnProgress) -> Result<Report, LoadTestError> {
    options.check()?;
    let client = Client::new(&options.address, options.workers, options.patience)?;
    client.knock().await?;
    let run = Arc::new(Run {
        client,
        plan: Plan::new(options.seed, options.wallets, options.distribution),
        // Time-ordered, so that the keys of a later run sort behind those of an earlier one, as indexes like it.
        name: format!("loadtest-{}", Uuid::now_v7().simple()),
        workers: options.workers,
        progress,
    });

    let opened = run.open_wallets().await;
    let all_opened = report::opened_check(options.wallets, &opened);
    let report = if all_opened.ok {
        operate_and_prove(&run, options).await
    } else {
        // Operating on wallets that are not there would only bury the cause.
        not_operated(options, &opened, all_opened)
    };
    Ok(Report { retries: report.retries + opened.retries, wallet_prefix: run.name.clone(), ..report })
}

async fn operate_and_prove(run: &Arc<Run>, options: &Options) -> Report {
    let tally = run.operate(options.operations).await;
    let drain = drain::wait(run).await;
    let model = Arc::new(Model::new(&run.plan, &tally.outcomes));
    let mut report = Report::new(options.seed, options.wallets, options.operations, &tally, &drain);
    report.add_checks(prove::prove(run, &model).await);
    report
}

fn not_operated(options: &Options, opened: &Tally, all_opened: Check) -> Report {
    let drain = Drain::not_begun();
    let mut report = Report::new(options.seed, options.wallets, options.operations, &Tally::default(), &drain);
    report.rejections.clone_from(&opened.rejections);
    report.failures = opened.failures;
    report.first_failures.clone_from(&opened.first_failures);
    report.add_checks([all_opened]);
    report
}
