//! Why a batch was not answered at once, and how long to wait before it is tried again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

use crate::log::LogError;
use crate::sequencer::CommandError;

/// Why an attempt at a batch did not end with durable answers.
pub(crate) enum Setback {
    /// The log is away; the reason. Nothing is under way: try the batch again from the start.
    Away(String),
    /// An append's outcome is unknown and will not be found out: the process is stopping, or the log refuses to tell; why.
    Unknown(String),
    /// No retry can help; what callers are told.
    Hopeless(CommandError),
}

impl From<LogError> for Setback {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Away(reason) => Setback::Away(reason),
            other => Setback::corrupt(other.to_string()),
        }
    }
}

impl Setback {
    /// Something is wrong that no retry can help.
    pub(crate) fn corrupt(reason: String) -> Self {
        Setback::Hopeless(CommandError::Corrupt(reason))
    }
}

/// How long to wait before each further attempt, without an end.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}
