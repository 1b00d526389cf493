//! One transaction: rows, parked records and checkpoints of a batch, all or nothing.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use crate::kafka::{ConsumedRecord, EVENTS_TOPIC, EventRecord};
use crate::log::Position;
use crate::postgres::sqlx::{self, Connection, PgPool};
use crate::postgres::{
    CheckpointMove, ParkedRecord, PgConnection, move_checkpoints, park, park_foreign, parked_wallets,
};
use crate::projection::record::{Foreign, Item};
use crate::projection::{ApplyError, Projection};

/// Waits between the attempts at an event that has failed for good, as it seems: it is tried once more after each.
const ATTEMPT_WAITS: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(300)];

/// The longest error text that is kept.
const ERROR_CHARACTERS_MAX: usize = 2_000;

/// What is applied together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Events that can be read, in order.
    events: Vec<EventRecord>,
    /// Where each of `events` came from.
    origins: Vec<Origin>,
    /// Events that cannot be read.
    unreadable: Vec<Item>,
    /// Records that are not the relay's, and why.
    pub(super) foreign: Vec<Foreign>,
    pub(super) moves: Vec<CheckpointMove>,
}

#[derive(Debug)]
struct Origin {
    partition: i32,
    record: Option<ConsumedRecord>,
}

impl Batch {
    pub(super) fn push(&mut self, item: Item) {
        match item.event {
            Ok(event) => {
                self.events.push(event);
                self.origins.push(Origin { partition: item.partition, record: item.record });
            }
            Err(_) => self.unreadable.push(item),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.unreadable.is_empty() && self.foreign.is_empty() && self.moves.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len() + self.unreadable.len() + self.foreign.len()
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// It is durable.
    Done,
    /// Somebody else has moved a checkpoint: the partition is theirs now. Nothing was written.
    Fenced,
}

/// From which position on each wallet's events are not applied but parked.
type Blocked = HashMap<String, Position>;

/// Why an event is parked.
struct Failure {
    class: &'static str,
    error: String,
    attempts: i32,
    first_failed_at: DateTime<Utc>,
}

impl Failure {
    fn now(class: &'static str, error: impl Into<String>) -> Self {
        let error: String = error.into();
        let error = error.chars().take(ERROR_CHARACTERS_MAX).collect();
        Failure { class, error, attempts: 1, first_failed_at: Utc::now() }
    }
}

/// A projection with what it needs to apply batches. Lives on the runner's thread, outside of any async task, so that a
/// panic in a projection's handler can be caught like any other of its failures.
pub(super) struct Applier<P> {
    projection: P,
    name: String,
    pool: PgPool,
    runtime: Handle,
}

impl<P: Projection> Applier<P> {
    pub(super) fn new(projection: P, pool: PgPool, runtime: Handle) -> Self {
        Applier { name: projection.name().to_owned(), projection, pool, runtime }
    }

    /// Lets the projection make its tables.
    pub(super) fn prepare(&mut self) -> Result<(), ApplyError> {
        let Applier { projection, pool, runtime, .. } = self;
        runtime.block_on(async {
            let mut transaction = pool.begin().await?;
            projection.prepare(&mut transaction).await?;
            Ok(transaction.commit().await?)
        })
    }

    /// Applies a batch. Events that fail for good are parked, each with its wallet's later ones.
    ///
    /// # Errors
    /// [`ApplyError::Transient`]: nothing was written, try again. [`ApplyError::Permanent`]: not even what failed could be
    /// kept.
    pub(super) fn apply(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        match self.apply_whole(batch) {
            Err(ApplyError::Permanent(reason)) => {
                tracing::warn!(projection = self.name, reason, "a batch failed; applying its events one by one");
                self.apply_one_by_one(batch)
            }
            done => done,
        }
    }

    fn apply_whole(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let runtime = self.runtime.clone();
        let mut transaction = runtime.block_on(self.pool.begin())?;
        let Some(blocked) = runtime.block_on(self.begin(&mut transaction, batch))? else {
            return Ok(Applied::Fenced);
        };
        if blocked.is_empty() {
            self.call(&batch.events, &mut transaction)?;
        } else {
            let free = |event: &&EventRecord| !is_blocked(&blocked, event);
            let events: Vec<EventRecord> = batch.events.iter().filter(free).cloned().collect();
            self.call(&events, &mut transaction)?;
            runtime.block_on(self.park_blocked(&mut transaction, batch, &blocked))?;
        }
        runtime.block_on(transaction.commit())?;
        Ok(Applied::Done)
    }

    fn apply_one_by_one(&mut self, batch: &Batch) -> Result<Applied, ApplyError> {
        let runtime = self.runtime.clone();
        let mut transaction = runtime.block_on(self.pool.begin())?;
        let Some(mut blocked) = runtime.block_on(self.begin(&mut transaction, batch))? else {
            return Ok(Applied::Fenced);
        };
        for (event, origin) in batch.events.iter().zip(&batch.origins) {
            if is_blocked(&blocked, event) {
                continue;
            }
            if let Err(failure) = self.apply_one(event, &mut transaction)? {
                tracing::error!(
                    projection = self.name, wallet = %event.wallet_id, position = event.position, error = failure.error,
                    "an event cannot be applied; it is parked, and its wallet behind it"
                );
                let parked = parked_event(event, origin, failure);
                runtime.block_on(park(&mut transaction, &self.name, &parked))?;
                blocked.insert(event.wallet_id.to_string(), event.position);
            }
        }
        runtime.block_on(self.park_blocked(&mut transaction, batch, &blocked))?;
        runtime.block_on(transaction.commit())?;
        Ok(Applied::Done)
    }

    /// Applies one event under a savepoint, a few times if need be. The inner error is why it is to be parked.
    fn apply_one(
        &mut self,
        event: &EventRecord,
        transaction: &mut PgConnection,
    ) -> Result<Result<(), Failure>, ApplyError> {
        let runtime = self.runtime.clone();
        let mut waits = ATTEMPT_WAITS.into_iter();
        let mut failure: Option<Failure> = None;
        loop {
            let mut savepoint = runtime.block_on(transaction.begin())?;
            let error = match self.call(std::slice::from_ref(event), &mut savepoint) {
                Ok(()) => {
                    runtime.block_on(savepoint.commit())?;
                    return Ok(Ok(()));
                }
                Err(ApplyError::Permanent(error)) => error,
                Err(transient) => return Err(transient),
            };
            runtime.block_on(savepoint.rollback())?;
            let attempts = failure.as_ref().map_or(0, |failure| failure.attempts) + 1;
            let first_failed_at = failure.as_ref().map_or_else(Utc::now, |failure| failure.first_failed_at);
            let failed = Failure { attempts, first_failed_at, ..Failure::now("APPLY", error) };
            match waits.next() {
                Some(wait) => std::thread::sleep(wait),
                None => return Ok(Err(failed)),
            }
            failure = Some(failed);
        }
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

    /// Moves the checkpoints, keeps what no projection will see, and tells which wallets are to be parked from where on.
    /// `None` if another runner has moved a checkpoint.
    async fn begin(&self, transaction: &mut PgConnection, batch: &Batch) -> Result<Option<Blocked>, sqlx::Error> {
        if !move_checkpoints(transaction, &self.name, &batch.moves).await? {
            return Ok(None);
        }
        for Foreign { record, reason } in &batch.foreign {
            let parked = parked_record(record, None, None, Failure::now("FOREIGN", reason));
            park_foreign(transaction, &self.name, &parked).await?;
        }
        let wallets: HashSet<&str> = batch
            .events
            .iter()
            .map(|event| event.wallet_id.as_str())
            .chain(batch.unreadable.iter().map(|item| item.wallet_id.as_str()))
            .collect();
        let wallets: Vec<&str> = wallets.into_iter().collect();
        let parked = parked_wallets(transaction, &self.name, &wallets).await?;
        let mut blocked: Blocked = parked.into_iter().map(|wallet| (wallet, 0)).collect();
        for item in &batch.unreadable {
            blocked.entry(item.wallet_id.to_string()).or_insert(item.position);
        }
        Ok(Some(blocked))
    }

    /// Parks what waits behind a parked event of its wallet, and what cannot be read.
    async fn park_blocked(
        &self,
        transaction: &mut PgConnection,
        batch: &Batch,
        blocked: &Blocked,
    ) -> Result<(), sqlx::Error> {
        let mut parked = Vec::new();
        for (event, origin) in batch.events.iter().zip(&batch.origins) {
            // The culprit itself, at the very position, has been parked where it failed.
            if blocked.get(event.wallet_id.as_str()).is_some_and(|from| event.position > *from) {
                let failure =
                    Failure { attempts: 0, ..Failure::now("BEHIND", "an earlier event of this wallet is parked") };
                parked.push(parked_event(event, origin, failure));
            }
        }
        for item in &batch.unreadable {
            let error = item.event.as_ref().err().cloned().unwrap_or_default();
            tracing::error!(
                projection = self.name, wallet = %item.wallet_id, position = item.position, error,
                "an event cannot be read; it is parked, and its wallet behind it"
            );
            parked.push(parked_item(item, Failure::now("DECODE", error)));
        }
        parked.sort_by_key(|record| record.position);
        for record in &parked {
            park(transaction, &self.name, record).await?;
        }
        Ok(())
    }
}

fn is_blocked(blocked: &Blocked, event: &EventRecord) -> bool {
    blocked.get(event.wallet_id.as_str()).is_some_and(|from| event.position >= *from)
}

fn parked_event(event: &EventRecord, origin: &Origin, failure: Failure) -> ParkedRecord {
    let wallet_id = Some(event.wallet_id.to_string());
    match &origin.record {
        Some(record) => parked_record(record, wallet_id, Some(event.position), failure),
        None => without_record(origin.partition, wallet_id, Some(event.position), failure),
    }
}

fn parked_item(item: &Item, failure: Failure) -> ParkedRecord {
    let wallet_id = Some(item.wallet_id.to_string());
    match &item.record {
        Some(record) => parked_record(record, wallet_id, Some(item.position), failure),
        None => without_record(item.partition, wallet_id, Some(item.position), failure),
    }
}

/// An event that was read from the log: the log has its bytes, under its position.
fn without_record(
    partition: i32,
    wallet_id: Option<String>,
    position: Option<Position>,
    failure: Failure,
) -> ParkedRecord {
    ParkedRecord {
        wallet_id,
        position,
        topic: EVENTS_TOPIC,
        partition,
        kafka_offset: None,
        record_time: None,
        key: None,
        value: None,
        headers: serde_json::Value::Array(Vec::new()),
        error_class: failure.class,
        error: failure.error,
        attempts: failure.attempts,
        first_failed_at: failure.first_failed_at,
        last_failed_at: Utc::now(),
    }
}

fn parked_record(
    record: &ConsumedRecord,
    wallet_id: Option<String>,
    position: Option<Position>,
    failure: Failure,
) -> ParkedRecord {
    let header = |(name, value): &(String, Option<Vec<u8>>)| {
        let value = value.as_deref().map(|bytes| match std::str::from_utf8(bytes) {
            // PostgreSQL's JSON holds no NUL.
            Ok(text) if !text.contains('\0') => serde_json::Value::from(text),
            _ => serde_json::json!({ "hex": hex(bytes) }),
        });
        serde_json::json!([name.replace('\0', "\u{fffd}"), value])
    };
    ParkedRecord {
        kafka_offset: Some(record.offset),
        record_time: record.timestamp_ms.and_then(DateTime::from_timestamp_millis),
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.iter().map(header).collect(),
        ..without_record(record.partition, wallet_id, position, failure)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
