//! Kafka: how an event becomes a record and back, where it is placed, and how clients are made.
//!
//! The only room, beside the embedded broker's, that names the `rdkafka` crate's types.

mod administrator;
pub(crate) mod client_log;
mod consumer;
mod dead_letters;
mod headers;
mod kept_headers;
mod partitioner;
mod producer;
mod properties;
mod record;
mod replicas;
mod tail;
mod topic_reader;
mod topics;
mod watermarks;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;

pub use administrator::TopicsError;
pub(crate) use consumer::{Assignments, ConsumedRecord, GroupConsumer};
pub(crate) use dead_letters::{CopyError, DeadLetterCopy, DeadLetterProducer};
pub(crate) use kept_headers::{RecordHeader, keep_headers, kept_headers};
pub use partitioner::partition_of;
pub(crate) use producer::{Delivery, Publisher, RECORD_BYTES_MAX, RECORD_TIMEOUT, Refusal, STALL_MAX, SendError};
pub use properties::PropertyError;
pub(crate) use properties::is_secret;
pub use record::{
    EventRecord, HEADER_AGGREGATE_ID, HEADER_CAUSATION_ID, HEADER_CORRELATION_ID, HEADER_EVENT_TYPE, HEADER_FOLLOWS,
    HEADER_LATE, HEADER_POSITION, HEADER_REVISION, OutgoingRecord, RecordError,
};
pub(crate) use replicas::Replicas;
pub(crate) use tail::{Claim, Extent, TopicTail};
pub(crate) use topic_reader::{TopicReader, TopicRecord};
pub use topics::{Setting, TopicReport, TopicsReport, Verdict, apply_topics, inspect_topics};
pub(crate) use topics::{batch_bytes_max, ensure_topic, in_sync_min};
pub(crate) use watermarks::{OffsetReader, Offsets, Watermarks};

/// The topic that carries every event.
pub const EVENTS_TOPIC: &str = "wallet-events";

/// How many partitions [`EVENTS_TOPIC`] has. More would break the order per wallet, so this never changes.
pub const EVENTS_PARTITIONS: i32 = 10;

/// How long a record of [`EVENTS_TOPIC`] is kept at least: 7 days.
pub const EVENTS_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The topic that has a copy of each record that could not be processed.
pub const DLQ_TOPIC: &str = "wallet-events-dlq";

/// How many partitions [`DLQ_TOPIC`] has.
pub const DLQ_PARTITIONS: i32 = 5;

/// How long a record of [`DLQ_TOPIC`] is kept at least: 30 days.
pub const DLQ_RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Which broker, and how to reach it.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// `bootstrap.servers`: `host:port`, separated by commas.
    pub brokers: String,
    /// Whether this is the broker embedded in `serve`: volatile, and bounded to 5 MiB a partition.
    pub embedded: bool,
    /// Anything else that librdkafka can be told, by its own names, but for what promises stand on; see [`PropertyError`].
    /// It wins over our defaults.
    pub properties: BTreeMap<String, String>,
}

impl KafkaConfig {
    /// A broker with nothing special about it.
    pub fn new(brokers: impl Into<String>) -> Self {
        KafkaConfig { brokers: brokers.into(), embedded: false, properties: BTreeMap::new() }
    }

    /// A client's configuration: `defaults` of whoever makes the client, what the embedded broker needs in their place, and
    /// what the operator set.
    pub(crate) fn client_config(&self, defaults: &[(&str, &str)], embedded: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("client.id", "wallex");
        // A producer that names a topic which was deleted would have most brokers make it anew, with one partition.
        config.set("allow.auto.create.topics", "false");
        // A broker that is halted keeps its connections and answers nothing. What was asked of it is asked of the partition's
        // next leader only after this time, for which the default is a minute.
        config.set("socket.timeout.ms", "20000");
        let embedded = if self.embedded { embedded } else { &[] };
        for (name, value) in defaults.iter().chain(embedded) {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Properties may hold passwords: their names are enough to see what was set.
        formatter
            .debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("embedded", &self.embedded)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .finish()
    }
}
