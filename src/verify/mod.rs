//! The proof that log, outbox, topic, ledger and read model tell the same story.

mod proof;

use std::time::Duration;

pub use proof::{Check, Proof};

/// How to verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyOptions {
    /// How long to wait for the relay and the projections to come through the position that is verified.
    pub wait_max: Duration,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions { wait_max: Duration::from_secs(30) }
    }
}

/// How far a verification has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// What it is doing, in a word or two.
    pub stage: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is; 0 where that is not known.
    pub total: u64,
}
