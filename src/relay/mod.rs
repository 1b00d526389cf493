//! The relay: the log, in order, to Kafka's topic `wallet-events`.
//!
//! The log is the outbox: the relay reads what lies after its checkpoint, sends it, and moves the checkpoint over what the
//! broker has acknowledged without a gap. One relay is active for a log, others stand by; the active one holds a session lock,
//! and moves the checkpoint on that very session, so a relay that has lost its lock cannot move it.
//!
//! # What is in the topic
//! Each event once, in order within its partition. A relay that begins looks at what the topic ends with, partition by
//! partition, and passes over what an earlier one has published beyond the checkpoint.
//!
//! Where the protocol cannot promise that: a relay that was halted (not ended) while its lock went to another one may still
//! have records in its socket's buffer, and the broker takes them when it wakes. They lie in the topic twice then. Effects
//! stay exactly once, because a projection passes over every position that it has.
//!
//! # Another topic
//! If the topic does not end with what the relay noted last (it was made anew, it is another cluster's, it was restored from
//! the past, or the broker is the embedded one after a restart), the relay begins, partition by partition, where wallex's
//! own projections are.
//!
//! # The embedded broker
//! It drops what is beyond 5 MiB a partition. So the relay never has more than [`EMBEDDED_AHEAD_BYTES`] in a partition that
//! the slower of the two projections has not taken.

mod acknowledged;
mod bell;
mod budget;
mod session;

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::kafka::KafkaConfig;
use crate::log::EventLog;
use crate::postgres::{Database, listen_for_appends};

pub use crate::postgres::{RelayState, RelayStatus, WithheldWallet};
pub use bell::Bell;
pub use budget::EMBEDDED_AHEAD_BYTES;

/// How the relay runs.
#[derive(Clone, Debug, Default)]
pub struct RelayOptions {
    /// Whether other processes write to the log: then the database wakes the relay too.
    pub listen: bool,
}

/// Why the relay ended by itself.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The thread could not be started, or ended without a word.
    #[error("the relay's thread: {0}")]
    Thread(String),
}

/// Publishes the log.
pub struct Relay<L> {
    log: L,
    database: Database,
    kafka: KafkaConfig,
    bell: Bell,
    options: RelayOptions,
}

impl<L: EventLog> Relay<L> {
    /// A relay; [`Relay::run`] starts it.
    pub fn new(log: L, database: Database, kafka: KafkaConfig, bell: Bell, options: RelayOptions) -> Self {
        Relay { log, database, kafka, bell, options }
    }

    /// Runs until stopped. Whatever is away meanwhile, database or broker, is waited for.
    ///
    /// # Errors
    /// [`RelayError`] where the thread it runs on fails.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RelayError> {
        let (done, ended) = oneshot::channel();
        let runtime = Handle::current();
        // Whoever drops this future wants no relay, though its thread does not end by itself.
        let stop = stop.child_token();
        let _stopped_with_this = stop.clone().drop_guard();
        let ears = self
            .options
            .listen
            .then(|| AbortOnDropHandle::new(tokio::spawn(listen(self.database.clone(), self.bell.clone()))));
        std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                self.go(&runtime, &stop);
                // Nobody listens any more if the caller has been dropped.
                let _ = done.send(());
            })
            .map_err(|error| RelayError::Thread(error.to_string()))?;
        let ended = ended.await.map_err(|_| RelayError::Thread("it ended without a word".to_owned()));
        drop(ears);
        ended
    }

    /// One session after another, for as long as it takes.
    fn go(&self, runtime: &Handle, stop: &CancellationToken) {
        let mut waits = backoff();
        while !stop.is_cancelled() {
            match session::run(self, runtime, stop) {
                Ok(session::Ended::StandingBy) => waits = backoff(),
                Ok(session::Ended::Stopped) => return,
                Err(setback) => {
                    let pause = waits.next().unwrap_or(session::STAND_BY);
                    tracing::warn!(
                        reason = setback.reason,
                        retry_in_ms = pause.as_millis() as u64,
                        "the relay begins again"
                    );
                    if setback.had_begun {
                        waits = backoff();
                    }
                    pause_for(pause, runtime, stop);
                }
            }
        }
    }
}

/// Rings the bell for what other processes append.
async fn listen(database: Database, bell: Bell) {
    let mut waits = backoff();
    loop {
        if let Err(error) = listen_for_appends(&database, || bell.ring()).await {
            // The relay looks by itself five times a second; this only makes it quicker.
            tracing::debug!(%error, "not listening for appends");
        }
        tokio::time::sleep(waits.next().unwrap_or(session::STAND_BY)).await;
    }
}

fn pause_for(pause: Duration, runtime: &Handle, stop: &CancellationToken) {
    // Over early if stopped: that is what the time limit is for.
    let _ = runtime.block_on(async { tokio::time::timeout(pause, stop.cancelled()).await });
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}
