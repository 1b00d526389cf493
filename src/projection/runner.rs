//! The runner: a thread that polls, applies and keeps checkpoints. A thread and not a task, because librdkafka's poll
//! blocks, and because plain sequential code is what can be read when it matters.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::kafka::{ConsumedRecord, EVENTS_TOPIC, GroupConsumer, KafkaConfig};
use crate::log::EventLog;
use crate::postgres::sqlx::PgPool;
use crate::postgres::{Checkpoint, Database, load_checkpoints};
use crate::projection::apply::{Applier, unless_stopped};
use crate::projection::assignment::Assigned;
use crate::projection::gaps::Looks;
use crate::projection::persevere::{Interrupted, backoff, wait};
use crate::projection::{ApplyError, Projection};

/// How long a poll waits for a record at most: this is also how soon a stop is noticed.
const POLL_PATIENCE: Duration = Duration::from_millis(100);
/// How often offsets are mirrored to Kafka while records come.
const MIRROR_EVERY: Duration = Duration::from_millis(100);

/// Under load, how long to gather more records for one transaction: a commit costs the same for ten as for a hundred.
const GATHER: Duration = Duration::from_millis(10);
/// The load is on if the last records came less than this ago.
const UNDER_LOAD: Duration = Duration::from_millis(40);

/// Bounds of a runner.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// How many events are applied in one transaction at most; at least 1.
    pub batch_max: usize,
    /// The name under which this process is a static member of the group (`group.instance.id`), unlike that of any other: after
    /// a restart within the session's timeout it gets its partitions back, and no other member is disturbed. `None`: a member
    /// like any other.
    pub instance_id: Option<String>,
    /// How many records the group may have parked; at least 1. Once there are as many, a partition that would have to park more is
    /// paused until there is room, and the others go on. What is applied at once is parked at once, so there may be that many
    /// more for each member of the group.
    pub parked_max: i64,
}

/// How many records a group may have parked unless it is told otherwise.
pub const PARKED_MAX: i64 = 100_000;

impl Default for RunnerOptions {
    fn default() -> Self {
        RunnerOptions { batch_max: 1_000, instance_id: None, parked_max: PARKED_MAX }
    }
}

/// What a runner is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerState {
    /// It has not joined its group yet.
    Starting,
    /// It is at work on these partitions, in order; there may be none while the group is being balanced.
    Running {
        /// The partitions' numbers.
        partitions: Vec<i32>,
    },
    /// It would go on but cannot now, and tries again by itself.
    HeldUp {
        /// What is in its way, in words for an operator.
        reason: String,
    },
}

/// Why a runner ended by itself. Outages are not among the reasons: it waits until they are over.
#[derive(Debug, Error)]
pub enum RunnerError {
    /// The consumer could not be made, by a setting that librdkafka refuses; or it can never go on.
    #[error("the consumer of group {group}: {reason}")]
    Consumer {
        /// The consumer group.
        group: String,
        /// What librdkafka says.
        reason: String,
    },
    /// The projection's tables could not be made.
    #[error("the projection cannot be prepared: {0}")]
    Prepare(String),
    /// The thread could not be started, or ended without a word.
    #[error("the runner's thread: {0}")]
    Thread(String),
}

/// Runs a projection as a member of the consumer group of its name. Any number of them, in any number of processes, share the
/// partitions.
pub struct ProjectionRunner<P, L> {
    projection: P,
    database: Database,
    log: L,
    kafka: KafkaConfig,
    options: RunnerOptions,
    state: watch::Sender<RunnerState>,
}

impl<P: Projection, L: EventLog> ProjectionRunner<P, L> {
    /// A runner; [`ProjectionRunner::run`] starts it. The log must be the one in this database.
    pub fn new(projection: P, database: Database, log: L, kafka: KafkaConfig, options: RunnerOptions) -> Self {
        let state = watch::Sender::new(RunnerState::Starting);
        ProjectionRunner { projection, database, log, kafka, options, state }
    }

    /// What it is doing, to be asked for before it runs and watched from then on.
    pub fn state(&self) -> watch::Receiver<RunnerState> {
        self.state.subscribe()
    }

    /// Runs until stopped, or until this future is dropped. Whatever is away meanwhile, database or broker, is waited for.
    ///
    /// # Errors
    /// [`RunnerError`], for what waiting will not mend.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunnerError> {
        let (done, ended) = oneshot::channel();
        let runtime = Handle::current();
        let stop = stop.child_token();
        let _stopped_with_this = stop.clone().drop_guard();
        std::thread::Builder::new()
            .name(self.projection.name().chars().take(15).collect())
            .spawn(move || {
                // A connection that is dropped half-way, as after a refusal, is cleaned up by a task.
                let handle = runtime.clone();
                let _entered = handle.enter();
                let name = self.projection.name().to_owned();
                let ran = Loop::run(self, runtime, stop);
                tracing::debug!(projection = name, ?ran, "runner ended");
                // Nobody listens any more if the caller has been dropped.
                let _ = done.send(ran);
            })
            .map_err(|error| RunnerError::Thread(error.to_string()))?;
        ended.await.map_err(|_| RunnerError::Thread("it ended without a word".to_owned()))?
    }
}

/// The runner at work, on its own thread.
pub(super) struct Loop<P, L> {
    pub(super) name: String,
    pub(super) applier: Applier<P>,
    pub(super) pool: PgPool,
    pub(super) log: L,
    pub(super) consumer: GroupConsumer<Assigned>,
    pub(super) assigned: Arc<Assigned>,
    pub(super) runtime: Handle,
    pub(super) options: RunnerOptions,
    pub(super) stop: CancellationToken,
    pub(super) looks: Looks,
    /// Offsets that Kafka has not been told yet, by partition.
    pub(super) mirror: BTreeMap<i32, i64>,
    mirrored_at: Instant,
    /// Records that came while something else was waited for.
    pub(super) waiting: Vec<ConsumedRecord>,
    /// When it was last looked whether there is room for what held partitions have to park.
    pub(super) room_looked_at: Instant,
    /// What has ended the consumer while something else was waited for.
    pub(super) broken: Option<RunnerError>,
}

impl<P: Projection, L: EventLog> Loop<P, L> {
    fn run(runner: ProjectionRunner<P, L>, runtime: Handle, stop: CancellationToken) -> Result<(), RunnerError> {
        let ProjectionRunner { projection, database, log, kafka, options, state } = runner;
        let name = projection.name().to_owned();
        let pool = database.by_index().clone();
        let mut applier = Applier::new(projection, pool.clone(), runtime.clone(), stop.clone());
        applier.parked_max = options.parked_max.max(1);
        let mut waits = backoff();
        while let Err(error) = applier.prepare() {
            match error {
                ApplyError::Permanent(reason) => return Err(RunnerError::Prepare(reason)),
                ApplyError::Transient(reason) => {
                    state.send_replace(RunnerState::HeldUp { reason: reason.clone() });
                    wait(&name, &reason, &mut waits, &stop, &runtime);
                }
            }
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        let load = checkpoints_loader(&name, &pool, &runtime, &stop);
        let assigned = Arc::new(Assigned::new(load, state));
        let instance_id = options.instance_id.as_deref();
        let consumer = GroupConsumer::join(&kafka, &name, instance_id, EVENTS_TOPIC, Arc::clone(&assigned))
            .map_err(|error| RunnerError::Consumer { group: name.clone(), reason: error.to_string() })?;
        let mut this = Loop {
            name,
            applier,
            pool,
            log,
            consumer,
            assigned,
            runtime,
            options,
            stop,
            looks: Looks::default(),
            mirror: BTreeMap::new(),
            mirrored_at: Instant::now(),
            waiting: Vec::new(),
            room_looked_at: Instant::now(),
            broken: None,
        };
        let ran = this.go();
        this.mirror_offsets();
        ran
    }

    fn go(&mut self) -> Result<(), RunnerError> {
        while !self.stop.is_cancelled() {
            self.release_held();
            let records = self.next_records()?;
            let outcome = if records.is_empty() { self.rest() } else { self.work(records) };
            match outcome {
                Ok(()) => {}
                Err(Interrupted::Stopped) => break,
                Err(Interrupted::Fenced) => self.begin_again(),
            }
        }
        Ok(())
    }

    fn next_records(&mut self) -> Result<Vec<ConsumedRecord>, RunnerError> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        if !self.waiting.is_empty() {
            return Ok(std::mem::take(&mut self.waiting));
        }
        let patience = self.looks.until_next().clamp(Duration::from_millis(1), POLL_PATIENCE);
        let mut records = self.poll(patience, self.options.batch_max)?;
        if (1..self.options.batch_max).contains(&records.len()) && self.looks.idle_for() < UNDER_LOAD {
            std::thread::sleep(GATHER);
            records.extend(self.poll(Duration::ZERO, self.options.batch_max - records.len())?);
        }
        if self.assigned.take_change() {
            // What has just been assigned is given time to come. It may have been paused when it was here before.
            self.looks.records_came();
            self.resume();
        }
        Ok(records)
    }

    pub(super) fn poll(&self, patience: Duration, records_max: usize) -> Result<Vec<ConsumedRecord>, RunnerError> {
        self.consumer
            .poll(patience, records_max)
            .map_err(|error| RunnerError::Consumer { group: self.name.clone(), reason: error.to_string() })
    }

    fn work(&mut self, records: Vec<ConsumedRecord>) -> Result<(), Interrupted> {
        self.deal_with(records)?;
        self.looks.records_came();
        if self.mirrored_at.elapsed() >= MIRROR_EVERY {
            self.mirror_offsets();
        }
        if self.looks.is_overdue() {
            self.look()?;
            self.looks.looked();
        }
        Ok(())
    }

    fn rest(&mut self) -> Result<(), Interrupted> {
        if self.looks.until_next().is_zero() {
            self.look()?;
            self.looks.looked();
            self.mirror_offsets();
        }
        Ok(())
    }

    /// Tells Kafka how far the tables are, for those who look there.
    fn mirror_offsets(&mut self) {
        self.mirrored_at = Instant::now();
        let mut offsets = std::mem::take(&mut self.mirror);
        offsets.retain(|partition, _| self.assigned.places().contains_key(partition));
        if !offsets.is_empty() {
            self.consumer.commit(&offsets);
        }
    }

    /// Reads the checkpoints again and goes on from there.
    fn begin_again(&mut self) {
        tracing::warn!(projection = self.name, "another runner has moved a checkpoint; reading it again");
        self.waiting.clear();
        self.mirror.clear();
        for (partition, offset) in self.assigned.reload().unwrap_or_default() {
            if let Err(error) = self.consumer.seek(partition, offset) {
                // Wherever it reads on instead: the log is asked what lies between.
                tracing::warn!(projection = self.name, partition, %error, "could not go back to the checkpoint's offset");
            }
        }
        self.resume();
    }
}

fn checkpoints_loader(
    name: &str,
    pool: &PgPool,
    runtime: &Handle,
    stop: &CancellationToken,
) -> impl Fn(&[i32]) -> Option<Vec<Checkpoint>> + Send + Sync + 'static {
    let (name, pool, runtime, stop) = (name.to_owned(), pool.clone(), runtime.clone(), stop.clone());
    move |partitions| {
        let mut waits = backoff();
        while !stop.is_cancelled() {
            match runtime.block_on(unless_stopped(&stop, load_checkpoints(&pool, &name, partitions))) {
                Ok(checkpoints) => return Some(checkpoints),
                Err(_) if stop.is_cancelled() => {}
                Err(error) => wait(&name, &error.to_string(), &mut waits, &stop, &runtime),
            }
        }
        None
    }
}
