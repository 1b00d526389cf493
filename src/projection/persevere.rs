//! What a runner does while it cannot go on: it tries again for as long as it takes, and stays a member of its group.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::log::{EventLog, LogError};
use crate::postgres::sqlx;
use crate::projection::runner::Loop;
use crate::projection::{ApplyError, Projection};

/// The waits between attempts while something is away, before jitter.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What kept an attempt from going well.
pub(super) enum Setback {
    /// It will go later; why it did not.
    Later(String),
    /// Another runner has moved a checkpoint.
    Fenced,
}

/// Why what was begun is not gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// The runner is being stopped.
    Stopped,
    /// Another runner has moved a checkpoint: what is in hand may be its business now.
    Fenced,
}

impl From<String> for Setback {
    fn from(reason: String) -> Self {
        Setback::Later(reason)
    }
}

impl From<ApplyError> for Setback {
    fn from(error: ApplyError) -> Self {
        // What could not even be parked is tried again and again, loudly: it is never passed over.
        Setback::Later(error.to_string())
    }
}

impl From<sqlx::Error> for Setback {
    fn from(error: sqlx::Error) -> Self {
        Setback::Later(error.to_string())
    }
}

impl From<LogError> for Setback {
    fn from(error: LogError) -> Self {
        Setback::Later(error.to_string())
    }
}

impl<P: Projection, L: EventLog> Loop<P, L> {
    /// Attempts something for as long as it takes. Meanwhile the partitions are paused and the consumer is polled, so that
    /// the group does not take this member for dead.
    pub(super) fn persevere<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self) -> Result<T, Setback>,
    ) -> Result<T, Interrupted> {
        let mut waits = backoff();
        let mut was_held_up = false;
        let ended = loop {
            match attempt(self) {
                Ok(done) => break Ok(done),
                Err(Setback::Fenced) => break Err(Interrupted::Fenced),
                Err(Setback::Later(_)) if self.stop.is_cancelled() => return Err(Interrupted::Stopped),
                Err(Setback::Later(reason)) => {
                    was_held_up = true;
                    self.assigned.is_held_up(&reason);
                    self.stay_a_member();
                    wait(&self.name, &reason, &mut waits, &self.stop, &self.runtime);
                }
            }
        };
        if was_held_up {
            tracing::info!(projection = self.name, "going on");
            self.assigned.is_running();
            self.resume();
        }
        ended
    }

    /// Polls without taking anything on: what comes all the same, from partitions that have just been assigned, waits.
    pub(super) fn stay_a_member(&mut self) {
        self.consumer.pause();
        match self.poll(Duration::ZERO, self.options.batch_max) {
            Ok(records) => self.waiting.extend(records),
            Err(error) => self.broken = Some(error),
        }
    }

    /// Fetches again from all partitions that are not held.
    pub(super) fn resume(&self) {
        self.consumer.resume_but(&self.assigned.held());
    }
}

/// Waits before the next attempt, or until stopped.
pub(super) fn wait(
    name: &str,
    reason: &str,
    waits: &mut impl Iterator<Item = Duration>,
    stop: &CancellationToken,
    runtime: &Handle,
) {
    let pause = waits.next().unwrap_or(RETRY_MAX);
    tracing::warn!(projection = name, reason, retry_in_ms = pause.as_millis() as u64, "held up; trying again");
    // Over early if stopped: that is what the time limit is for.
    let _ = runtime.block_on(async { tokio::time::timeout(pause, stop.cancelled()).await });
}

/// The waits between attempts.
pub(super) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(RETRY_MIN)
        .with_max_delay(RETRY_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}
