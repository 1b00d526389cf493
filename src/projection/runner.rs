//! The runner: a thread that polls, applies and keeps checkpoints. A thread and not a task, because librdkafka's poll
//! blocks, and because plain sequential code is what can be read when it matters.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::kafka::{
    ConsumedRecord, EVENTS_PARTITIONS, EVENTS_TOPIC, GroupConsumer, KafkaConfig, KafkaError, partition_of,
};
use crate::log::{EventLog, LogError, Position};
use crate::postgres::sqlx::PgPool;
use crate::postgres::{Checkpoint, CheckpointMove, Database, event_ids, load_checkpoints, published};
use crate::projection::apply::{Applied, Applier, Batch};
use crate::projection::assignment::{Assigned, Place, begin_at};
use crate::projection::record::{Foreign, Item};
use crate::projection::{ApplyError, Projection};

/// How long a poll waits for a record: this is also how soon a stop is noticed.
const POLL_PATIENCE: Duration = Duration::from_millis(100);
/// Under load, how long to gather more records for one transaction: a commit costs the same for ten as for a hundred.
const GATHER: Duration = Duration::from_millis(10);
/// The load is on if the last records came less than this ago.
const UNDER_LOAD: Duration = Duration::from_millis(40);
/// After the last record, how soon the runner looks whether it is through; it looks less and less often then.
const IDLE_LOOK_MIN: Duration = Duration::from_millis(20);
const IDLE_LOOK_MAX: Duration = Duration::from_secs(1);
/// How many events are read from the log at once, where the topic does not have them.
const FILL_PAGE: usize = 2_000;

/// Bounds of a runner.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// How many events are applied in one transaction at most.
    pub batch_max: usize,
}

impl Default for RunnerOptions {
    fn default() -> Self {
        RunnerOptions { batch_max: 1_000 }
    }
}

/// Why a runner ended by itself.
#[derive(Debug, Error)]
pub enum RunnerError {
    /// The consumer could not be made: a setting that librdkafka refuses.
    #[error("the consumer cannot be made: {0}")]
    Consumer(String),
    /// The projection's tables could not be made.
    #[error("the projection cannot be prepared: {0}")]
    Prepare(String),
    /// The thread could not be started, or ended without a word.
    #[error("the runner's thread: {0}")]
    Thread(String),
}

/// Runs a projection.
pub struct ProjectionRunner<P, L> {
    projection: P,
    database: Database,
    log: L,
    kafka: KafkaConfig,
    options: RunnerOptions,
}

impl<P: Projection, L: EventLog> ProjectionRunner<P, L> {
    /// A runner; [`ProjectionRunner::run`] starts it.
    pub fn new(projection: P, database: Database, log: L, kafka: KafkaConfig, options: RunnerOptions) -> Self {
        ProjectionRunner { projection, database, log, kafka, options }
    }

    /// Runs until stopped. Whatever is away meanwhile, database or broker, is waited for.
    ///
    /// # Errors
    /// [`RunnerError`], for what waiting will not mend.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunnerError> {
        let (done, ended) = oneshot::channel();
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name(self.projection.name().chars().take(15).collect())
            .spawn(move || {
                // Nobody listens any more if the caller has been dropped.
                let _ = done.send(Loop::run(self, runtime, stop));
            })
            .map_err(|error| RunnerError::Thread(error.to_string()))?;
        ended.await.map_err(|_| RunnerError::Thread("it ended without a word".to_owned()))?
    }
}

/// The runner at work, on its own thread.
struct Loop<P, L> {
    name: String,
    applier: Applier<P>,
    pool: PgPool,
    log: L,
    consumer: GroupConsumer<Assigned>,
    assigned: Arc<Assigned>,
    runtime: Handle,
    options: RunnerOptions,
    stop: CancellationToken,
}

/// What kept records from being dealt with.
enum Setback {
    /// It will go later; why it did not.
    Later(String),
    /// Another runner has the partition: the rest of these records is its business.
    Fenced,
}

impl From<ApplyError> for Setback {
    fn from(error: ApplyError) -> Self {
        // What could not even be parked is tried again and again, loudly: it is never passed over.
        Setback::Later(error.to_string())
    }
}

impl From<crate::postgres::sqlx::Error> for Setback {
    fn from(error: crate::postgres::sqlx::Error) -> Self {
        Setback::Later(error.to_string())
    }
}

impl From<LogError> for Setback {
    fn from(error: LogError) -> Self {
        Setback::Later(error.to_string())
    }
}

impl From<KafkaError> for Setback {
    fn from(error: KafkaError) -> Self {
        Setback::Later(error.to_string())
    }
}

impl<P: Projection, L: EventLog> Loop<P, L> {
    fn run(runner: ProjectionRunner<P, L>, runtime: Handle, stop: CancellationToken) -> Result<(), RunnerError> {
        let ProjectionRunner { projection, database, log, kafka, options } = runner;
        let name = projection.name().to_owned();
        let pool = database.by_index().clone();
        let mut applier = Applier::new(projection, pool.clone(), runtime.clone());
        let mut waits = backoff();
        while let Err(error) = applier.prepare() {
            match error {
                ApplyError::Permanent(reason) => return Err(RunnerError::Prepare(reason)),
                ApplyError::Transient(reason) => wait(&name, &reason, &mut waits, &stop, &runtime),
            }
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        let assigned = Arc::new(Assigned::new(checkpoints_loader(&name, &pool, &runtime, &stop)));
        let consumer = GroupConsumer::join(&kafka, &name, EVENTS_TOPIC, Arc::clone(&assigned))
            .map_err(|error| RunnerError::Consumer(error.to_string()))?;
        Loop { name, applier, pool, log, consumer, assigned, runtime, options, stop }.go();
        Ok(())
    }

    fn go(mut self) {
        let mut looks = Looks::default();
        let mut waits = backoff();
        let mut last_records: Option<Instant> = None;
        while !self.stop.is_cancelled() {
            match self.consumer.poll(looks.patience(), self.options.batch_max) {
                Ok(records) if records.is_empty() => {}
                Ok(mut records) => {
                    if last_records.is_some_and(|at| at.elapsed() < UNDER_LOAD)
                        && records.len() < self.options.batch_max
                    {
                        std::thread::sleep(GATHER);
                        let room = self.options.batch_max - records.len();
                        records.extend(self.consumer.poll(Duration::ZERO, room).unwrap_or_default());
                    }
                    self.deal_with(records);
                    last_records = Some(Instant::now());
                    looks = Looks::default();
                    waits = backoff();
                    continue;
                }
                Err(error) => wait(&self.name, &error.to_string(), &mut waits, &self.stop, &self.runtime),
            }
            if looks.is_due() {
                match self.look_whether_through() {
                    Ok(()) => {}
                    Err(Setback::Fenced) => self.reload(),
                    Err(Setback::Later(reason)) => {
                        tracing::debug!(projection = self.name, reason, "not known how far it is")
                    }
                }
                looks.looked();
            }
        }
    }

    /// Deals with records, for as long as it takes. Meanwhile the partitions are paused and the consumer polled, so that the
    /// group does not take this member for dead.
    fn deal_with(&mut self, mut records: Vec<ConsumedRecord>) {
        let mut waits = backoff();
        let mut paused = false;
        loop {
            match self.try_to_deal_with(&records) {
                Ok(()) => break,
                Err(Setback::Fenced) => {
                    tracing::warn!(projection = self.name, "another runner has moved a checkpoint; reading it again");
                    self.reload();
                    break;
                }
                Err(Setback::Later(reason)) => {
                    self.consumer.pause();
                    paused = true;
                    wait(&self.name, &reason, &mut waits, &self.stop, &self.runtime);
                    // A partition that has just come is not paused yet: what it brings is dealt with in its turn.
                    records.extend(self.consumer.poll(Duration::ZERO, self.options.batch_max).unwrap_or_default());
                    if self.stop.is_cancelled() {
                        return;
                    }
                }
            }
        }
        if paused {
            tracing::info!(projection = self.name, "going on");
            self.consumer.resume();
        }
    }

    /// Deals with records in order. May be called again with the same ones: those that are done are passed over.
    fn try_to_deal_with(&mut self, records: &[ConsumedRecord]) -> Result<(), Setback> {
        let mut items = Vec::with_capacity(records.len());
        for record in records {
            items.push(Item::read(record.clone()));
        }
        let genuine = self.genuine(&items)?;
        let mut gathering = Gathering::default();
        for item in items {
            let (partition, offset) = match &item {
                Ok(item) => (item.partition, item.record.as_ref().map_or(0, |record| record.offset)),
                Err(foreign) => (foreign.record.partition, foreign.record.offset),
            };
            let item = item.and_then(|item| match genuine.get(&item.position) {
                Some(id) if item.event.as_ref().map_or(true, |event| event.event_id == *id) => Ok(item),
                _ => Err(Box::new(item.into_foreign())),
            });
            let Some(place) = gathering.place(&self.assigned, partition) else {
                // Revoked meanwhile: its new owner reads it.
                continue;
            };
            let continues = place.continues_at == Some(offset);
            match item {
                Ok(item) if item.position <= place.checkpoint.position => place.pass_over(offset, item.position),
                Ok(item) => {
                    if !continues {
                        self.flush(&mut gathering)?;
                        self.fill(item.position - 1)?;
                    }
                    let Some(place) = gathering.place(&self.assigned, partition) else { continue };
                    place.advance(offset, Some(item.position));
                    gathering.batch.push(item);
                }
                Err(_) if place.continues_at.is_some_and(|at| offset < at) => {}
                Err(foreign) => {
                    let reason = &foreign.reason;
                    tracing::warn!(
                        projection = self.name,
                        partition,
                        offset,
                        reason,
                        "a foreign record; it is kept aside"
                    );
                    place.advance(offset, None);
                    gathering.batch.foreign.push(*foreign);
                }
            }
            if gathering.batch.len() >= self.options.batch_max {
                self.flush(&mut gathering)?;
            }
        }
        self.flush(&mut gathering)
    }

    /// The ids of the log's events at the items' positions: only what stands in the log is applied, whoever wrote the
    /// record.
    fn genuine(&self, items: &[Result<Item, Box<Foreign>>]) -> Result<HashMap<Position, Uuid>, Setback> {
        let new =
            |item: &&Item| self.assigned.position(item.partition).is_some_and(|position| item.position > position);
        let ours = items.iter().filter_map(|item| item.as_ref().ok());
        // What is passed over needs no proof, and what a foreign record claims is looked at too.
        let positions: Vec<Position> = ours.clone().filter(new).map(|item| item.position).collect();
        let mut ids: HashMap<Position, Uuid> = self
            .runtime
            .block_on(async {
                let mut connection = self.pool.acquire().await?;
                event_ids(&mut connection, &positions).await
            })?
            .into_iter()
            .collect();
        for item in ours.filter(|item| !new(item)) {
            ids.entry(item.position).or_insert_with(|| item.event.as_ref().map_or(Uuid::nil(), |event| event.event_id));
        }
        Ok(ids)
    }

    /// Makes what was gathered durable.
    fn flush(&mut self, gathering: &mut Gathering) -> Result<(), Setback> {
        let Gathering { mut batch, places } = std::mem::take(gathering);
        if places.is_empty() {
            return Ok(());
        }
        {
            let now = self.assigned.places();
            for (partition, place) in &places {
                let Some(before) = now.get(partition) else { continue };
                if before.checkpoint != place.checkpoint {
                    batch.moves.push(CheckpointMove { from: before.checkpoint.position, to: place.checkpoint.clone() });
                }
            }
        }
        if !batch.is_empty() && self.applier.apply(&batch)? == Applied::Fenced {
            return Err(Setback::Fenced);
        }
        let mut offsets = Vec::with_capacity(places.len());
        let mut now = self.assigned.places();
        for (partition, place) in places {
            offsets.extend(place.checkpoint.next_offset.map(|offset| (partition, offset)));
            if let Some(kept) = now.get_mut(&partition) {
                *kept = place;
            }
        }
        drop(now);
        if !batch.moves.is_empty() {
            self.consumer.commit(&offsets);
        }
        Ok(())
    }

    /// Applies from the log what the topic may lack: for each partition whose topic has not shown the record that its
    /// checkpoint names, every event up to `to`.
    fn fill(&mut self, to: Position) -> Result<(), Setback> {
        let lacking: BTreeMap<i32, Position> = {
            let places = self.assigned.places();
            let lacks = |place: &&Place| place.continues_at.is_none() && place.checkpoint.position < to;
            places.values().filter(lacks).map(|place| (place.checkpoint.partition, place.checkpoint.position)).collect()
        };
        let Some(mut from) = lacking.values().min().copied() else {
            return Ok(());
        };
        let mut filled = 0;
        while from < to {
            let page = self.runtime.block_on(self.log.read(from, FILL_PAGE.min((to - from) as usize)))?;
            // Committed positions have no gap, so a page that ends early means that `to` is not in the log.
            let Some(last) = page.last().map(|event| event.position) else {
                return Err(Setback::Later(format!("the log ends at {from}, though the topic goes on to {to}")));
            };
            let mut gathering = Gathering::default();
            for recorded in &page {
                let partition = partition_of(recorded.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
                if lacking.get(&partition).is_some_and(|position| recorded.position > *position) {
                    gathering.batch.push(Item::from_log(partition, recorded));
                    filled += 1;
                }
            }
            for partition in lacking.keys() {
                if let Some(place) = gathering.place(&self.assigned, *partition) {
                    place.checkpoint.position = place.checkpoint.position.max(last);
                }
            }
            self.flush(&mut gathering)?;
            from = last;
        }
        if filled > 0 {
            tracing::info!(
                projection = self.name,
                filled,
                to,
                "events that the topic did not have were read from the log"
            );
        }
        Ok(())
    }

    /// Moves the checkpoints of partitions that have nothing left to read up to what the relay has published, so that a
    /// restart need not look at their past again, and so that everybody can see that this projection is through.
    fn look_whether_through(&mut self) -> Result<(), Setback> {
        // The order is what makes it right: everything up to `through` was in the topic before the ends are asked for. So a
        // partition whose end we have reached has shown us everything up to `through` that it holds.
        let through = self.runtime.block_on(published(&self.pool))?;
        self.fill(through)?;
        let behind: Vec<i32> = {
            let places = self.assigned.places();
            places
                .values()
                .filter(|place| place.checkpoint.position < through)
                .map(|place| place.checkpoint.partition)
                .collect()
        };
        if behind.is_empty() {
            return Ok(());
        }
        let ends = self.consumer.ends(&behind)?;
        let mut gathering = Gathering::default();
        for (partition, end) in ends {
            if let Some(place) = gathering.place(&self.assigned, partition)
                && place.continues_at == Some(end)
            {
                place.checkpoint.position = place.checkpoint.position.max(through);
            }
        }
        gathering.places.retain(|_, place| place.checkpoint.position == through);
        self.flush(&mut gathering)
    }

    /// Reads the checkpoints again and goes on from there.
    fn reload(&mut self) {
        let partitions = self.assigned.partitions();
        let load = checkpoints_loader(&self.name, &self.pool, &self.runtime, &self.stop);
        for checkpoint in load(&partitions).unwrap_or_default() {
            let (partition, begin) = (checkpoint.partition, begin_at(&checkpoint));
            if let Some(place) = self.assigned.places().get_mut(&partition) {
                *place = checkpoint.into();
            }
            if let Err(error) = self.consumer.seek(partition, begin) {
                // The next record does not continue the checkpoint then, and what is missing is read from the log.
                tracing::warn!(projection = self.name, partition, %error, "could not go back to the checkpoint's offset");
            }
        }
    }
}

/// What is applied next, and where each partition will be after it.
#[derive(Default)]
struct Gathering {
    batch: Batch,
    places: BTreeMap<i32, Place>,
}

impl Gathering {
    /// The place of a partition after what has been gathered; `None` if the runner no longer has it.
    fn place(&mut self, assigned: &Assigned, partition: i32) -> Option<&mut Place> {
        match self.places.entry(partition) {
            Entry::Occupied(gathered) => Some(gathered.into_mut()),
            Entry::Vacant(first) => Some(first.insert(assigned.places().get(&partition)?.clone())),
        }
    }
}

impl Place {
    /// A record that is in the tables already. If it is the very one that the checkpoint names, the topic is the one that
    /// the checkpoint was made on.
    fn pass_over(&mut self, offset: i64, position: Position) {
        let is_the_one =
            self.checkpoint.next_offset == Some(offset + 1) && self.checkpoint.record_position == Some(position);
        // Anywhere else, the topic has been made anew under us, or it is not yet known to be the same one.
        self.continues_at = (self.continues_at == Some(offset) || is_the_one).then_some(offset + 1);
    }

    /// A record that is dealt with now; `position` is none of a foreign one.
    fn advance(&mut self, offset: i64, position: Option<Position>) {
        if let Some(position) = position {
            self.checkpoint.position = position;
        }
        // After a foreign record the topic is known to continue only if it was known before.
        if position.is_some() || self.continues_at == Some(offset) {
            self.continues_at = Some(offset + 1);
        }
        self.checkpoint.next_offset = Some(offset + 1);
        self.checkpoint.record_position = position;
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
        loop {
            match runtime.block_on(load_checkpoints(&pool, &name, partitions)) {
                Ok(checkpoints) => return Some(checkpoints),
                Err(error) => wait(&name, &error.to_string(), &mut waits, &stop, &runtime),
            }
            if stop.is_cancelled() {
                return None;
            }
        }
    }
}

/// Waits before the next attempt, or until stopped.
fn wait(
    name: &str,
    reason: &str,
    waits: &mut impl Iterator<Item = Duration>,
    stop: &CancellationToken,
    runtime: &Handle,
) {
    let pause = waits.next().unwrap_or(IDLE_LOOK_MAX);
    tracing::warn!(projection = name, reason, retry_in_ms = pause.as_millis() as u64, "held up; trying again");
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

/// When an idle runner looks whether it is through: soon after the last record, then less and less often.
struct Looks {
    next: Instant,
    pause: Duration,
}

impl Default for Looks {
    fn default() -> Self {
        Looks { next: Instant::now() + IDLE_LOOK_MIN, pause: IDLE_LOOK_MIN }
    }
}

impl Looks {
    fn patience(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), POLL_PATIENCE)
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.next
    }

    fn looked(&mut self) {
        self.pause = (self.pause * 2).min(IDLE_LOOK_MAX);
        self.next = Instant::now() + self.pause;
    }
}
