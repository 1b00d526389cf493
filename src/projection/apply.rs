//! One transaction: rows, parked records and checkpoints of a batch, all or nothing.

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::Utc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::crash_point::CrashPoint;
use crate::kafka::EventRecord;
use crate::log::Position;
use crate::postgres::sqlx::{self, Connection, PgPool, Postgres, Transaction};
use crate::postgres::{
    CheckpointMove, ParkedRecord, PgConnection, count_parked, lock_preparation, move_checkpoints, note_parked_max,
    park, parked_wallets,
};
use crate::projection::batch::{Batch, Blocked, is_blocked};
use crate::projection::parking::Failure;
use crate::projection::runner::PARKED_MAX;
use crate::projection::{ApplyError, Projection};

/// How often an event that the projection refuses is tried, the first time included.
const ATTEMPTS_MAX: usize = 5;
/// The waits between attempts, before jitter; doubled from the one to the other.
const ATTEMPT_WAIT_MIN: Duration = Duration::from_millis(10);
const ATTEMPT_WAIT_MAX: Duration = Duration::from_millis(200);
/// How long all such waits of one batch may take together: other wallets wait meanwhile. Once it is used up, an event that is
/// refused is parked at once.
const BATCH_WAIT_MAX: Duration = Duration::from_secs(2);

/// Less than this part of the room for parked records being left is alarming.
const NEARLY_PART: i64 = 5;
/// How often that is said at most.
const ALARM_EVERY: Duration = Duration::from_secs(60);

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// It is durable.
    Done,
    /// Somebody else has moved a checkpoint: the partition is theirs now. Nothing was written.
    Fenced,
    /// These partitions have something to park, and there is no room for it. Nothing was written.
    Full(BTreeSet<i32>),
}

/// The search for the events of a batch that the projection refuses.
struct Search {
    blocked: Blocked,
    /// The events that were found.
    parked: Vec<ParkedRecord>,
    /// What is left of the time for waits.
    patience: Duration,
}

/// A projection with what it needs to apply batches. Lives on the runner's thread, outside of any async task, so that a
/// panic in a projection's handler can be caught like any other of its failures.
pub(crate) struct Applier<P> {
    projection: P,
    name: String,
    pool: PgPool,
    runtime: Handle,
    stop: CancellationToken,
    /// How many records may be parked.
    pub(super) parked_max: i64,
    /// When it was last said that there are nearly as many.
    alarmed_at: Option<Instant>,
}

impl<P: Projection> Applier<P> {
    pub(crate) fn new(projection: P, pool: PgPool, runtime: Handle, stop: CancellationToken) -> Self {
        let name = projection.name().to_owned();
        Applier { name, projection, pool, runtime, stop, parked_max: PARKED_MAX, alarmed_at: None }
    }

    /// Lets the projection make its tables.
    pub(super) fn prepare(&mut self) -> Result<(), ApplyError> {
        let mut transaction = self.begin()?;
        self.runtime.block_on(lock_preparation(&mut transaction, &self.name))?;
        self.runtime.block_on(note_parked_max(&mut transaction, &self.name, self.parked_max))?;
        self.runtime.block_on(self.projection.prepare(&mut transaction))?;
        Ok(self.runtime.block_on(transaction.commit())?)
    }

    /// Applies a batch. Events that the projection refuses are parked, each with its wallet's later ones.
    ///
    /// # Errors
    /// [`ApplyError::Transient`]: nothing was written, try again. [`ApplyError::Permanent`]: not even what was refused could
    /// be kept.
    pub(super) fn apply(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        if batch.len() == 0 {
            return self.move_only(&batch.moves);
        }
        match self.apply_whole(batch) {
            Err(ApplyError::Permanent(reason)) => {
                tracing::warn!(
                    projection = self.name,
                    reason,
                    "a batch was refused; looking for the event that is meant"
                );
                self.apply_in_parts(batch)
            }
            done => done,
        }
    }

    /// One statement is enough where there are no rows.
    fn move_only(&self, moves: &[CheckpointMove]) -> Result<Applied, ApplyError> {
        let moved = self.runtime.block_on(async {
            let mut connection = unless_stopped(&self.stop, self.pool.acquire()).await?;
            move_checkpoints(&mut connection, &self.name, moves).await
        })?;
        Ok(if moved { Applied::Done } else { Applied::Fenced })
    }

    fn apply_whole(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let mut transaction = self.begin()?;
        let Some(blocked) = self.enter(&mut transaction, batch)? else {
            return Ok(Applied::Fenced);
        };
        self.call(&batch.free(0..batch.events.len(), &blocked), &mut transaction)?;
        let full = self.park_rest(&mut transaction, batch, &blocked, Vec::new())?;
        if !full.is_empty() {
            return Ok(Applied::Full(full));
        }
        CrashPoint::InTransaction.pass();
        self.runtime.block_on(transaction.commit())?;
        Ok(Applied::Done)
    }

    fn apply_in_parts(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let mut transaction = self.begin()?;
        let Some(blocked) = self.enter(&mut transaction, batch)? else {
            return Ok(Applied::Fenced);
        };
        let mut search = Search { blocked, parked: Vec::new(), patience: BATCH_WAIT_MAX };
        self.apply_part(batch, 0..batch.events.len(), &mut transaction, &mut search)?;
        let full = self.park_rest(&mut transaction, batch, &search.blocked, search.parked)?;
        if !full.is_empty() {
            return Ok(Applied::Full(full));
        }
        CrashPoint::InTransaction.pass();
        self.runtime.block_on(transaction.commit())?;
        Ok(Applied::Done)
    }

    /// Applies a range of events under a savepoint; where that is refused, its halves, one after the other, down to the
    /// single event that is meant. So one bad event among a thousand costs some twenty calls.
    fn apply_part(
        &mut self,
        batch: &Batch,
        range: Range<usize>,
        transaction: &mut PgConnection,
        search: &mut Search,
    ) -> Result<(), ApplyError> {
        let events = batch.free(range.clone(), &search.blocked);
        if events.is_empty() {
            return Ok(());
        }
        if range.len() == 1 {
            return self.apply_one(batch, range.start, transaction, search);
        }
        match self.try_under_savepoint(&events, transaction) {
            Err(ApplyError::Permanent(_)) => {
                let middle = range.start + range.len() / 2;
                self.apply_part(batch, range.start..middle, transaction, search)?;
                self.apply_part(batch, middle..range.end, transaction, search)
            }
            done => done,
        }
    }

    /// Applies a single event, a few times if need be, and parks it if it is refused each time.
    fn apply_one(
        &mut self,
        batch: &Batch,
        at: usize,
        transaction: &mut PgConnection,
        search: &mut Search,
    ) -> Result<(), ApplyError> {
        let event = &batch.events[at];
        let first_failed_at = Utc::now();
        let mut attempts = 0;
        let mut waits = ExponentialBuilder::new()
            .with_min_delay(ATTEMPT_WAIT_MIN)
            .with_max_delay(ATTEMPT_WAIT_MAX)
            .with_max_times(ATTEMPTS_MAX - 1)
            .with_jitter()
            .build();
        let error = loop {
            attempts += 1;
            let error = match self.try_under_savepoint(std::slice::from_ref(event), transaction) {
                Err(ApplyError::Permanent(error)) => error,
                done => return done,
            };
            match waits.next() {
                Some(wait) if wait <= search.patience && !self.stop.is_cancelled() => {
                    search.patience -= wait;
                    std::thread::sleep(wait);
                }
                _ => break error,
            }
        };
        tracing::error!(
            projection = self.name, wallet = %event.wallet_id, position = event.position, attempts, error,
            "an event cannot be applied; it is parked, and its wallet behind it"
        );
        search.parked.push(batch.parked(at, Failure::refused(&error, attempts, first_failed_at)));
        // The first one that cannot be read may stand before it.
        let from = search.blocked.entry(event.wallet_id.to_string()).or_insert(event.position);
        *from = event.position.min(*from);
        Ok(())
    }

    /// Applies one wallet's events as far as they go: how many went, and why the next one did not. Each is tried once.
    ///
    /// # Errors
    /// [`ApplyError::Transient`]: try again, in another transaction.
    pub(crate) fn apply_in_order(
        &mut self,
        events: &[EventRecord],
        transaction: &mut PgConnection,
    ) -> Result<(usize, Option<Failure>), ApplyError> {
        match self.try_under_savepoint(events, transaction) {
            Err(ApplyError::Permanent(_)) => {}
            done => return done.map(|()| (events.len(), None)),
        }
        for (at, event) in events.iter().enumerate() {
            match self.try_under_savepoint(std::slice::from_ref(event), transaction) {
                Ok(()) => {}
                Err(ApplyError::Permanent(error)) => return Ok((at, Some(Failure::refused(&error, 1, Utc::now())))),
                Err(transient) => return Err(transient),
            }
        }
        Ok((events.len(), None))
    }

    fn try_under_savepoint(
        &mut self,
        events: &[EventRecord],
        transaction: &mut PgConnection,
    ) -> Result<(), ApplyError> {
        let mut savepoint = self.runtime.block_on(transaction.begin())?;
        let called = self.call(events, &mut savepoint);
        match called {
            Ok(()) => self.runtime.block_on(savepoint.commit())?,
            Err(_) => self.runtime.block_on(savepoint.rollback())?,
        }
        called
    }

    /// Calls the projection; a panic of its handler is its failure and not ours.
    fn call(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        if events.is_empty() {
            return Ok(());
        }
        let Applier { projection, runtime, .. } = self;
        let called = catch_unwind(AssertUnwindSafe(|| runtime.block_on(projection.apply(events, transaction))));
        called.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(ApplyError::Permanent(format!("the projection panicked: {text}")))
        })
    }

    pub(crate) fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.runtime.block_on(unless_stopped(&self.stop, self.pool.begin()))
    }

    /// Moves the checkpoints and tells which wallets' events are to be parked from where on; `None` if another runner has
    /// moved a checkpoint.
    fn enter(&self, transaction: &mut PgConnection, batch: &Batch) -> Result<Option<Blocked>, sqlx::Error> {
        let entering = async {
            if !move_checkpoints(transaction, &self.name, &batch.moves).await? {
                return Ok(None);
            }
            let parked = parked_wallets(transaction, &self.name, &batch.wallets()).await?;
            let mut blocked: Blocked = parked.into_iter().map(|wallet| (wallet, 0)).collect();
            for item in &batch.unreadable {
                blocked.entry(item.wallet_id.to_string()).or_insert(item.position);
            }
            Ok(Some(blocked))
        };
        self.runtime.block_on(entering)
    }

    /// Parks, in order, the events found to be refused, what cannot be read, and what waits behind either; and keeps what
    /// is foreign. Where there is no room for them it parks nothing, and tells which partitions they are from.
    fn park_rest(
        &mut self,
        transaction: &mut PgConnection,
        batch: &Batch,
        blocked: &Blocked,
        refused: Vec<ParkedRecord>,
    ) -> Result<BTreeSet<i32>, sqlx::Error> {
        if blocked.is_empty() && batch.foreign.is_empty() {
            return Ok(BTreeSet::new());
        }
        let refused_at: BTreeSet<Option<Position>> = refused.iter().map(|record| record.position).collect();
        let mut parked = refused;
        for (at, event) in batch.events.iter().enumerate() {
            if is_blocked(blocked, event) && !refused_at.contains(&Some(event.position)) {
                parked.push(batch.parked(at, Failure::behind()));
            }
        }
        for item in &batch.unreadable {
            let error = item.event.as_ref().err().map_or("", String::as_str);
            tracing::error!(
                projection = self.name, wallet = %item.wallet_id, position = item.position, error,
                "an event cannot be read; it is parked, and its wallet behind it"
            );
            let failure = Failure::unreadable(error);
            parked.push(failure.of_event(&item.wallet_id, item.position, item.partition, item.record.as_ref()));
        }
        parked.sort_by_key(|record| record.position);
        parked.extend(batch.foreign.iter().map(|foreign| Failure::foreign(&foreign.reason).of_record(&foreign.record)));
        if parked.is_empty() {
            return Ok(BTreeSet::new());
        }
        let already = self.runtime.block_on(count_parked(transaction, &self.name, self.parked_max))?;
        if already >= self.parked_max {
            return Ok(parked.iter().map(|record| record.partition).collect());
        }
        self.runtime.block_on(park(transaction, &self.name, &parked))?;
        self.sound_alarm(already + parked.len() as i64);
        Ok(BTreeSet::new())
    }

    /// Says that there is little room left, while there is some.
    fn sound_alarm(&mut self, parked: i64) {
        let is_due = self.alarmed_at.is_none_or(|at| at.elapsed() >= ALARM_EVERY);
        if is_nearly_full(parked, self.parked_max) && is_due {
            self.alarmed_at = Some(Instant::now());
            tracing::error!(
                projection = self.name,
                parked,
                parked_max = self.parked_max,
                "nearly as many records are parked as may be; beyond that partitions are paused. \
                 `wallex dlq list` shows why, `wallex dlq replay` and `discard` make room"
            );
        }
    }
}

/// Whether there is little room left for parked records.
pub(crate) fn is_nearly_full(parked: i64, parked_max: i64) -> bool {
    parked > parked_max - parked_max / NEARLY_PART
}

/// A connection may take long to get while the database is away; a stop does not wait for it.
pub(super) async fn unless_stopped<T>(
    stop: &CancellationToken,
    getting: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::select! {
        got = getting => got,
        () = stop.cancelled() => Err(sqlx::Error::PoolClosed),
    }
}
