//! Copies of what is parked, for the topic `wallet-events-dlq`.
//!
//! A copy is made after the record was parked, by any process that runs projections, one process at a time. It has the original's key,
//! value and headers, and the headers below. It is made *at least* once: whoever reads the topic tells copies of one record by
//! [`HEADER_PARKED_ID`]. Where a record fails again in a replay, there is one more copy with the same number and the newer failure; the
//! newest counts. A record that was replayed or discarded before its copy was made has none.
//!
//! An event that the topic did not have, so that it was read from the log, is copied as the relay would have sent it, without the
//! original's offset. A copy that is larger than the topic takes goes without its value, and says so; the value is in the database.
//!
//! Keys are placed as the original topic's are (murmur2), so that the copies of one wallet keep their order; what has no key goes by its
//! original partition.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::{DateTime, SecondsFormat, Utc};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::kafka::{
    CopyError, DeadLetterCopy, DeadLetterProducer, HEADER_FOLLOWS, KafkaConfig, OutgoingRecord, RecordHeader,
    TopicsError, kept_headers,
};
use crate::log::{Position, RecordedEvent};
use crate::postgres::sqlx;
use crate::postgres::{Database, StoredRecord, events_at, lock_copies, note_copies, uncopied};

/// The record's number, by which copies of the same are told.
pub const HEADER_PARKED_ID: &str = "dlq-parked-id";
/// The consumer group that could not process it.
pub const HEADER_CONSUMER_GROUP: &str = "dlq-consumer-group";
/// The topic that the original is in.
pub const HEADER_ORIGINAL_TOPIC: &str = "dlq-original-topic";
/// Its partition there.
pub const HEADER_ORIGINAL_PARTITION: &str = "dlq-original-partition";
/// Its offset there; left out where the topic did not have it.
pub const HEADER_ORIGINAL_OFFSET: &str = "dlq-original-offset";
/// Its timestamp there, RFC 3339; left out where it has none.
pub const HEADER_ORIGINAL_TIMESTAMP: &str = "dlq-original-timestamp";
/// What kind of failure it was: `APPLY`, `DECODE`, `FOREIGN`, `BEHIND`.
pub const HEADER_ERROR_CLASS: &str = "dlq-error-class";
/// Why it failed, cut to [`ERROR_CHARACTERS_MAX`].
pub const HEADER_ERROR_MESSAGE: &str = "dlq-error-message";
/// How often it was tried; 0 of one that only waits for another.
pub const HEADER_ATTEMPTS: &str = "dlq-attempts";
/// When it failed first, RFC 3339.
pub const HEADER_FIRST_FAILURE: &str = "dlq-first-failure";
/// When it failed last, RFC 3339.
pub const HEADER_LAST_FAILURE: &str = "dlq-last-failure";
/// The event's id; left out where the record stands for no event of the log.
pub const HEADER_EVENT_ID: &str = "dlq-event-id";
/// There where the value was too large for the topic: how many bytes it has.
pub const HEADER_VALUE_OMITTED: &str = "dlq-value-omitted";

/// How much of an error a copy has, in characters.
pub const ERROR_CHARACTERS_MAX: usize = 1_000;

/// How many copies are made in one go.
const PAGE: usize = 200;
/// How often to look for records without a copy. Those who park may be other processes, and do not tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The waits while the broker or the database is away, before jitter.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Why copies could not be made just now.
#[derive(Debug, Error)]
enum Setback {
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Topics(#[from] TopicsError),
    #[error("a copy was not delivered: {0}")]
    Delivery(String),
}

/// Makes copies until stopped. Whatever is away meanwhile is waited for.
///
/// # Errors
/// None; the type is that of a supervised task.
pub async fn copy_dead_letters(
    database: Database,
    kafka: KafkaConfig,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let copying = async {
        let mut copier = Copier { database, kafka, producer: None };
        let mut waits = backoff();
        loop {
            let wait = match copier.step().await {
                Ok(copied) => {
                    waits = backoff();
                    if copied == PAGE { Duration::ZERO } else { LOOK_EVERY }
                }
                Err(setback) => {
                    let wait = waits.next().unwrap_or(RETRY_MAX);
                    let retry_in_ms = wait.as_millis() as u64;
                    tracing::warn!(reason = %setback, retry_in_ms, "dead letters are not copied to their topic for now");
                    wait
                }
            };
            tokio::time::sleep(wait).await;
        }
    };
    // What is on its way may arrive all the same, and is sent again then by whoever goes on.
    tokio::select! {
        () = copying => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(RETRY_MIN)
        .with_max_delay(RETRY_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

struct Copier {
    database: Database,
    kafka: KafkaConfig,
    /// Made when there is something to send.
    producer: Option<DeadLetterProducer>,
}

impl Copier {
    /// Copies what has no copy yet, up to a page of it; how many it was.
    async fn step(&mut self) -> Result<usize, Setback> {
        let mut transaction = self.database.by_index().begin().await?;
        let waiting = uncopied(&mut transaction, 1).await?;
        if waiting.is_empty() || !lock_copies(&mut transaction).await? {
            return Ok(0);
        }
        let records = uncopied(&mut transaction, PAGE as i64).await?;
        let positions: Vec<Position> = records.iter().filter_map(|stored| stored.record.position).collect();
        let events: HashMap<Position, RecordedEvent> =
            events_at(&mut transaction, &positions).await?.into_iter().map(|event| (event.position, event)).collect();
        let event = |stored: &StoredRecord| stored.record.position.and_then(|position| events.get(&position));
        let copies: Vec<DeadLetterCopy> = records.iter().map(|stored| copy(stored, event(stored))).collect();

        let producer = match &mut self.producer {
            Some(producer) => producer,
            producer => producer.insert(DeadLetterProducer::new(self.kafka.clone())?),
        };
        producer.prepare().await?;
        let mut copied: Vec<(i64, DateTime<Utc>)> = Vec::with_capacity(records.len());
        let mut failed = None;
        for ((stored, copy), sent) in records.iter().zip(&copies).zip(producer.send(&copies).await) {
            let sent = match sent {
                Err(CopyError::TooLarge) => {
                    producer.send(&[without_value(copy)]).await.pop().unwrap_or(Err(CopyError::TooLarge))
                }
                sent => sent,
            };
            match sent {
                Ok(()) => copied.push((stored.parked_id, stored.record.last_failed_at)),
                Err(CopyError::TooLarge) => failed = Some(format!("record {} is too large", stored.parked_id)),
                Err(CopyError::Failed(reason)) => failed = Some(reason),
            }
        }
        note_copies(&mut transaction, &copied).await?;
        transaction.commit().await?;
        match failed {
            None => Ok(copied.len()),
            Some(reason) => Err(Setback::Delivery(reason)),
        }
    }
}

/// The copy of a record, by what is kept of it and what the log says.
fn copy(stored: &StoredRecord, event: Option<&RecordedEvent>) -> DeadLetterCopy {
    let StoredRecord { parked_id, group, record } = stored;
    let (key, value, mut headers) = match (event, record.kafka_offset) {
        // The topic did not have it, so there is nothing that it follows there.
        (Some(event), None) => {
            let sent = OutgoingRecord::of(event, 0);
            let headers = sent.headers.into_iter().filter(|(name, _)| *name != HEADER_FOLLOWS);
            let headers = headers.map(|(name, value)| (name.to_owned(), Some(value.into_bytes())));
            (Some(sent.key.into_bytes()), Some(sent.value), headers.collect())
        }
        _ => (record.key.clone(), record.value.clone(), kept_headers(&record.headers)),
    };
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Millis, true);
    let ours = [
        (HEADER_PARKED_ID, Some(parked_id.to_string())),
        (HEADER_CONSUMER_GROUP, Some(group.clone())),
        (HEADER_ORIGINAL_TOPIC, Some(record.topic.to_string())),
        (HEADER_ORIGINAL_PARTITION, Some(record.partition.to_string())),
        (HEADER_ORIGINAL_OFFSET, record.kafka_offset.map(|offset| offset.to_string())),
        (HEADER_ORIGINAL_TIMESTAMP, record.record_time.map(time)),
        (HEADER_ERROR_CLASS, Some(record.error_class.to_string())),
        (HEADER_ERROR_MESSAGE, Some(record.error.chars().take(ERROR_CHARACTERS_MAX).collect())),
        (HEADER_ATTEMPTS, Some(record.attempts.to_string())),
        (HEADER_FIRST_FAILURE, Some(time(record.first_failed_at))),
        (HEADER_LAST_FAILURE, Some(time(record.last_failed_at))),
        (HEADER_EVENT_ID, event.map(|event| event.event_id.to_string())),
    ];
    let ours = ours.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Some(value?.into_bytes()))));
    headers.extend::<Vec<RecordHeader>>(ours.collect());
    DeadLetterCopy { key, value, headers, original_partition: record.partition }
}

/// A copy that says how large its value is instead of having it.
fn without_value(copy: &DeadLetterCopy) -> DeadLetterCopy {
    let bytes = copy.value.as_ref().map_or(0, Vec::len);
    let mut small = DeadLetterCopy { value: None, ..copy.clone() };
    // A foreign producer's own headers may be what is too large.
    small.headers.retain(|(name, _)| name.starts_with("dlq-"));
    small.headers.push((HEADER_VALUE_OMITTED.to_owned(), Some(bytes.to_string().into_bytes())));
    small
}
