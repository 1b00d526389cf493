//! The relay: the log, in order, to Kafka's topic `wallet-events`.
//!
//! The log is the outbox: the relay reads what lies after its checkpoint, sends it, and moves the checkpoint over what the
//! broker has acknowledged without a gap. One relay is active for a log, others stand by; the active one holds a lock in a session
//! of its own, and moves the checkpoint on that very session, so a relay that has lost its lock cannot move it.
//!
//! # What is in the topic
//! Each event once, in order within its partition. A relay that begins looks at what the topic holds behind the last record that
//! it is known to hold, partition by partition, and passes over what an earlier one has published there.
//!
//! A relay that is halted (a stopped process, a frozen container) loses its lease, and another one takes over. When it wakes it
//! notices before it hands another record to the client, and what lies in the client's queues is given up by then
//! (see `lease`). It stands by again.
//!
//! Kafka can refuse an old producer only where each batch is a transaction. That would fence a halted relay for certain, but
//! whoever reads without `read_committed`, as Java's consumers do unless told otherwise, would see what was aborted, so every
//! crash would show records twice; each commit would put a control record into each partition, so that offsets jump and lag as
//! Kafka's tools count it never becomes nought; and each batch would wait for it. So the protocol does not promise that a record
//! is in the topic once, and these are the places where it may not be:
//! - What a process had handed to its sockets when it was halted, and the broker had not read: it reads that as soon as it can,
//!   which may be after the next relay has looked. The same goes for a request that a broker has in hand meanwhile.
//! - Between the look at the clock and the client's own queue lie some instructions. A process that is halted just there sends
//!   that one record when it wakes, if the broker is quicker than the purge that follows.
//! - A leader shows consumers only what all replicas in sync have, and nothing new while those are fewer than
//!   `min.insync.replicas`. A session does not begin while they are too few, and while some are missing it looks until nothing
//!   more comes to light. But if those in sync are gone and not yet counted out, it cannot know, and may send again what is there.
//! - The clock of a machine that sleeps stands still, the client's too.
//!
//! In all of these the records lie in the topic twice. Effects stay exactly once, because a projection passes over every
//! position that it has.
//!
//! # Another topic
//! If the topic does not hold what was noted of it last (it was made anew, it is another cluster's, it was restored from the
//! past, or the broker is the embedded one after a restart), the checkpoint goes back, and the relay goes on, partition by
//! partition, from what the topic ends with, or where a partition is empty, from where wallex's own projections are. That is
//! noticed at the start of a session, by an acknowledgement whose offset has gone back, and by a look at the topic every ten
//! seconds.
//!
//! A gap inside the topic cannot come from a relay: the client is told to stop for good when a batch is refused, and a session
//! that ends looks at each record behind the last known one. What others remove from the middle of a topic stays removed; `verify`
//! names it, and projections read it from the log.
//!
//! # The embedded broker
//! It drops what is beyond 5 MiB a partition. So the relay never has more than [`EMBEDDED_AHEAD_BYTES`] in a partition that
//! the slower of the two projections has not taken.

mod acknowledged;
mod beginning;
mod bell;
mod budget;
mod lease;
mod session;
mod setback;
mod watch;
mod withheld;

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

/// What a relay does that has become the active one.
const BEGINNING: &str = "it compares the topic with what was published last";

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
                // A connection that is dropped half-way is cleaned up by a task.
                let handle = runtime.clone();
                let _entered = handle.enter();
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
        let mut standing = (RelayState::Waiting, BEGINNING.to_owned());
        let mut ask_limit = false;
        while !stop.is_cancelled() {
            match session::run(self, runtime, stop, (standing.0, &standing.1), ask_limit) {
                Ok(session::Ended::StandingBy | session::Ended::Changed) => {
                    waits = backoff();
                    standing = (RelayState::Waiting, BEGINNING.to_owned());
                }
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
                    ask_limit |= setback.ask_limit;
                    standing = (setback.state, setback.reason);
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
