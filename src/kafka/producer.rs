//! An idempotent producer that one thread feeds and polls.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode;

use crate::embedded::broker::PRODUCER_SETTINGS;
use crate::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig, OutgoingRecord, Replicas, client_log};
use crate::log::Position;

/// How long a question may take that is asked between records.
const QUICK_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a record may lie in the client and not be acknowledged. It is there for a process that is halted: when it wakes after
/// its lease has ended, what the client still has in its queues is given up rather than sent. A relay that is at work ends its
/// session earlier than that (see [`STALL_MAX`]), because the client goes on with later records when it gives one up.
pub(crate) const RECORD_TIMEOUT: Duration = Duration::from_secs(35);

/// How long a record may wait for its acknowledgement until the session ends: longer than a cluster takes to do without a broker
/// that is gone, and shorter than [`RECORD_TIMEOUT`].
pub(crate) const STALL_MAX: Duration = Duration::from_secs(30);

/// What a record, with its batch, may take in the topic where the topic does not say, in bytes: librdkafka's own bound.
pub(crate) const RECORD_BYTES_MAX: usize = 1_000_000;

/// What librdkafka takes at least for its bound on records.
const RECORD_BYTES_MIN: usize = 1_000;

/// What became of a record that was sent.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) position: Position,
    pub(crate) partition: i32,
    /// Its offset, where the broker said; or why the broker does not have it.
    pub(crate) offset: Result<Option<i64>, Refusal>,
}

/// Why the broker does not have a record.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    /// Whether its batch is larger than the topic takes.
    pub(crate) is_too_large: bool,
}

#[derive(Default)]
struct Deliveries(Mutex<Vec<Delivery>>);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::pass_on(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "producer");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, position: usize) {
        let delivery = match result {
            Ok(message) => Delivery {
                position: position as Position,
                partition: message.partition(),
                // A record that was sent again because the first answer was lost may have none.
                offset: Ok(Some(message.offset()).filter(|offset| *offset >= 0)),
            },
            Err((error, message)) => Delivery {
                position: position as Position,
                partition: message.partition(),
                offset: Err(Refusal {
                    reason: error.to_string(),
                    is_too_large: error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge),
                }),
            },
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(delivery);
    }
}

/// Why a record was not taken.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The queue is full: poll, and try again.
    Full,
    /// The record is larger than the client may send.
    TooLarge,
    /// Something else.
    Failed(String),
}

/// Sends records to [`EVENTS_TOPIC`]: acks=all, idempotent, gzip.
pub(crate) struct Publisher {
    producer: BaseProducer<Deliveries>,
}

impl Publisher {
    /// A producer for a topic that takes batches of at most so many bytes.
    pub(crate) fn new(kafka: &KafkaConfig, record_bytes_max: usize) -> Result<Self, KafkaError> {
        let record_timeout = RECORD_TIMEOUT.as_millis().to_string();
        let message_max = record_bytes_max.max(RECORD_BYTES_MIN).to_string();
        // The broker refuses a batch that is too large, even where each of its records would go.
        let batch_max = record_bytes_max.min(RECORD_BYTES_MAX).to_string();
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // A batch that the broker refuses ends the producer. Without this it is left out, later ones are taken, and the next
            // session takes the partition's last record for the proof that everything before it is there.
            ("enable.gapless.guarantee", "true"),
            ("compression.type", "gzip"),
            // The fastest level: a third of the size for a fraction of the time that the default level takes.
            ("compression.level", "1"),
            ("linger.ms", "1"),
            ("message.timeout.ms", record_timeout.as_str()),
            ("message.max.bytes", message_max.as_str()),
            ("batch.size", batch_max.as_str()),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "65536"),
        ];
        let config = kafka.client_config(&defaults, PRODUCER_SETTINGS);
        Ok(Publisher { producer: config.create_with_context(Deliveries::default())? })
    }

    /// Queues a record. It is sent, and its fate told by [`Publisher::deliveries`].
    pub(crate) fn send(
        &self,
        position: Position,
        partition: i32,
        timestamp_ms: i64,
        record: &OutgoingRecord,
    ) -> Result<(), SendError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (key, value) in &record.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let message = BaseRecord::with_opaque_to(EVENTS_TOPIC, position as usize)
            .partition(partition)
            .key(&record.key)
            .payload(&record.value)
            .timestamp(timestamp_ms)
            .headers(headers);
        self.producer.send(message).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => SendError::Full,
            KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge) => SendError::TooLarge,
            other => SendError::Failed(other.to_string()),
        })
    }

    /// Tells what has become of records sent, without waiting.
    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        let mut all = Vec::new();
        loop {
            // One poll serves one event, which may tell of many records. (A poll that waits does so to the end of its time
            // however early the news comes, and turns in circles for the last millisecond of it.)
            self.producer.poll(Duration::ZERO);
            let news = std::mem::take(&mut *self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner));
            if news.is_empty() {
                return all;
            }
            all.extend(news);
        }
    }

    /// Why this producer can never send again, if so.
    pub(crate) fn fatal_error(&self) -> Option<String> {
        self.producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    /// The offset that the next record of each partition will get; `None` where there is no such topic.
    pub(crate) fn ends(&self) -> Result<Option<Vec<i64>>, String> {
        let client = self.producer.client();
        // By its name it would be made, where the broker makes what it is asked for.
        let metadata = client.fetch_metadata(None, QUICK_ANSWER_TIMEOUT).map_err(|error| error.to_string())?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == EVENTS_TOPIC);
        if topic.is_none_or(|topic| topic.partitions().is_empty()) {
            return Ok(None);
        }
        let end = |partition| {
            let watermarks = client.fetch_watermarks(EVENTS_TOPIC, partition, QUICK_ANSWER_TIMEOUT);
            watermarks.map(|(_, end)| end).map_err(|error| error.to_string())
        };
        (0..EVENTS_PARTITIONS).map(end).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// Why the broker may not acknowledge, in words for an operator.
    pub(crate) fn trouble(&self) -> String {
        let metadata = match self.producer.client().fetch_metadata(None, QUICK_ANSWER_TIMEOUT) {
            Ok(metadata) => metadata,
            Err(error) => return format!("the broker does not answer: {error}"),
        };
        let topic = metadata.topics().iter().find(|topic| topic.name() == EVENTS_TOPIC);
        let partitions = topic.map_or(&[][..], |topic| topic.partitions());
        if partitions.is_empty() {
            return format!("the topic {EVENTS_TOPIC} is not there");
        }
        if let Some(partition) = partitions.iter().find(|partition| partition.leader() < 0) {
            return format!("partition {} of {EVENTS_TOPIC} has no leader", partition.id());
        }
        let lacking = partitions.iter().map(Replicas::of).find(Replicas::are_missing);
        lacking.map_or("the broker does not acknowledge".to_owned(), |replicas| replicas.to_string())
    }

    /// Lets go of everything that has not been acknowledged.
    pub(crate) fn abandon(self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.producer.poll(Duration::ZERO);
    }
}
