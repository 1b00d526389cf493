//! An idempotent producer that one thread feeds and polls.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig};
use rdkafka::types::RDKafkaErrorCode;

use crate::embedded::broker::PRODUCER_SETTINGS;
use crate::kafka::{EVENTS_TOPIC, KafkaConfig, OutgoingRecord};
use crate::log::Position;

/// What became of a record that was sent.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) position: Position,
    pub(crate) partition: i32,
    /// Its offset, or why the broker does not have it.
    pub(crate) offset: Result<i64, String>,
}

#[derive(Default)]
struct Deliveries(Mutex<Vec<Delivery>>);

impl ClientContext for Deliveries {
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
                offset: Ok(message.offset()),
            },
            Err((error, message)) => Delivery {
                position: position as Position,
                partition: message.partition(),
                offset: Err(error.to_string()),
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
    /// Something else.
    Failed(String),
}

/// Sends records to [`EVENTS_TOPIC`]: acks=all, idempotent, gzip.
pub(crate) struct Publisher {
    producer: BaseProducer<Deliveries>,
}

impl Publisher {
    pub(crate) fn new(kafka: &KafkaConfig) -> Result<Self, KafkaError> {
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
            // A broker that is away is waited for: a record is never given up, so that nothing behind it is sent first.
            ("message.timeout.ms", "0"),
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

    /// Lets go of everything that has not been acknowledged.
    pub(crate) fn abandon(self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.producer.poll(Duration::ZERO);
    }
}
