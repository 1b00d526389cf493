//! The embedded broker: librdkafka's mock cluster, one broker on a loopback port that any Kafka client on this machine can
//! use.
//!
//! It speaks the real protocol, and that is all it has in common with Kafka. What it does differently was read in
//! librdkafka 2.12.1 (`rdkafka_mock*.c`) and measured; whoever publishes to it or consumes from it needs to know:
//!
//! **Nothing lasts.** Topics, records and committed offsets live in this process's memory, and offsets start at 0 again
//! after a restart. What must not be lost lives in the database, and is published again.
//!
//! **A partition forgets.** Beyond [`PARTITION_BYTES`] (or [`PARTITION_BATCHES`]) the oldest batches are dropped whether
//! or not they have been read, and nobody is told: a consumer that is too far behind gets "offset out of range", and
//! `auto.offset.reset` takes it past the hole. So a publisher must never be further ahead of the slowest consumer *in any
//! one partition* than what fits; records of some 700 bytes leave room for 7,000, all of which can be one hot key's.
//!
//! **An empty fetch sleeps.** A fetch that finds no record is answered after `fetch.wait.max.ms`, even where one arrives
//! meanwhile (a fetch that finds one is answered at once); what else was asked on that connection (watermarks, positions)
//! waits behind it. Measured from send to receipt, median, one consumer on ten partitions, with its cost when idle: 500 ms
//! (the default): 490 ms; 10: 6.7 ms at 3 % of a core; 5: 3.7 ms at 5 %; 1: 1.5 ms at 10 %.
//!
//! **Small batches are dear.** A fetch finds its place by walking the partition's batches from the first, and takes one
//! batch a partition. Tailing costs little, but 100,000 records sent one a batch took over a minute to read from the
//! beginning, where in full batches it is one second, and while a partition holds thousands of tiny batches throughput
//! falls to a half or less. Hence [`PRODUCER_SETTINGS`]: some linger, and no compression, which would only let a partition
//! hold more of them.
//!
//! **Idempotence is a courtesy.** A producer gets its id, but only transactional producers' sequence numbers are checked:
//! a request that is repeated because its answer was lost is stored twice. An idempotent producer also needs 500 ms from
//! its creation to its first record (it finds no broker at first and looks again by a fixed timer), so create it early.
//!
//! **Groups work, slowly.** The first member of a new group has its partitions within 60 ms and its first record within
//! 160 ms (with `group.initial.rebalance.delay.ms` at 0, as here; librdkafka's mock waits 3 s otherwise). Every other
//! change (a second member, a member gone, the same one back after closing) takes `session.timeout.ms` less one second,
//! with cooperative-sticky twice that. Range and cooperative-sticky both work, but **members of one group that differ in
//! their first assignor abort the process** (an assertion in librdkafka). Static membership is ignored.
//!
//! **Offsets.** Commits and committed offsets work, outlive the members, and can be read by anybody. To commit one has to
//! be a current member, or the group must never have had any (`assign` only). Watermarks work, times do not: offsets for a
//! time are always -1. `assign` from a logical offset (beginning, end) before the client knows the topic's leader costs
//! 500 ms; a numeric offset does not.
//!
//! **Not there:** anything administrative (create or delete topics and records, list or describe groups), real
//! transactions. A topic that is asked for by name and does not exist is made, with 4 partitions, where the client allows
//! that. Nobody is asked who he is: every user of this machine can read and write, so it is for one's own machine only.
//! There is one thread for all connections, and no limit on their number.

use std::fmt;
use std::time::Duration;

use rdkafka::bindings::{rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use thiserror::Error;

use crate::kafka::client_log;

/// What a partition holds at most, in bytes as produced (so: compressed). Beyond it the oldest batches are dropped,
/// whether or not anybody has read them.
pub const PARTITION_BYTES: usize = 5 * 1024 * 1024;

/// How many batches a partition holds at most; beyond it the oldest are dropped.
pub const PARTITION_BATCHES: usize = 100_000;

/// What a producer for this broker should be told, by librdkafka's names; see the module about small batches. One
/// millisecond is too short to be felt and long enough for what one commit of the log brings.
pub const PRODUCER_SETTINGS: &[(&str, &str)] = &[("linger.ms", "1"), ("compression.type", "none")];

/// What a consumer of this broker should be told, by librdkafka's names; see the module about empty fetches and groups.
pub const CONSUMER_SETTINGS: &[(&str, &str)] = &[
    ("fetch.wait.max.ms", "10"),
    // How long a client that has enough in hand waits before it fetches again: its default is a second.
    ("fetch.queue.backoff.ms", "5"),
    ("session.timeout.ms", "6000"),
    ("heartbeat.interval.ms", "500"),
];

/// How long a group that is empty waits for more members before the first one gets its partitions.
const INITIAL_REBALANCE_DELAY: Duration = Duration::ZERO;

/// Why the embedded broker does not run.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// librdkafka refused: no free port on the loopback interface, no memory, no thread.
    #[error("the embedded Kafka broker did not start: {0}; set WALLEX_KAFKA_BROKERS to a broker that runs elsewhere")]
    Start(#[source] KafkaError),
    /// A topic could not be made.
    #[error("the embedded Kafka broker could not create the topic {topic}: {source}")]
    Topic {
        /// Its name.
        topic: String,
        /// What librdkafka said.
        source: KafkaError,
    },
}

/// A Kafka broker inside this process. It and everything in it is gone when this is dropped.
pub struct EmbeddedBroker {
    /// Never produces: a client is where librdkafka keeps a mock cluster.
    _host: BaseProducer<BrokerLog>,
    bootstrap_servers: String,
}

impl EmbeddedBroker {
    /// Starts the broker on a free loopback port and creates the topics, given by name and number of partitions. Takes
    /// a few milliseconds.
    ///
    /// # Errors
    /// [`BrokerError`], where there is no port, memory or thread to be had, or a topic's name or size is refused.
    pub fn start(topics: &[(&str, i32)]) -> Result<EmbeddedBroker, BrokerError> {
        let host: BaseProducer<BrokerLog> = ClientConfig::new()
            .set("client.id", "wallex-embedded-broker")
            .set("test.mock.num.brokers", "1")
            // It has nothing to keep up to date.
            .set("topic.metadata.refresh.interval.ms", "-1")
            .create_with_context(BrokerLog)
            .map_err(BrokerError::Start)?;
        let bootstrap_servers = {
            let cluster = host.client().mock_cluster().ok_or(BrokerError::Start(KafkaError::Canceled))?;
            for (topic, partitions) in topics {
                cluster
                    .create_topic(topic, *partitions, 1)
                    .map_err(|source| BrokerError::Topic { topic: (*topic).to_owned(), source })?;
            }
            cluster.bootstrap_servers()
        };
        set_initial_rebalance_delay(&host);
        Ok(EmbeddedBroker { _host: host, bootstrap_servers })
    }

    /// `host:port` of the broker, for `bootstrap.servers` of any client on this machine.
    #[must_use]
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }
}

impl fmt::Debug for EmbeddedBroker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EmbeddedBroker").field("bootstrap_servers", &self.bootstrap_servers).finish()
    }
}

fn set_initial_rebalance_delay(host: &BaseProducer<BrokerLog>) {
    let milliseconds = i32::try_from(INITIAL_REBALANCE_DELAY.as_millis()).unwrap_or(i32::MAX);
    #[expect(
        unsafe_code,
        reason = "the safe wrapper does not offer this setting. The client lives as long as the borrow, the cluster as \
                  long as the client, and librdkafka passes the call to the cluster's own thread"
    )]
    unsafe {
        let cluster = rd_kafka_handle_mock_cluster(host.client().native_ptr());
        if !cluster.is_null() {
            rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, milliseconds);
        }
    }
}

/// Sends librdkafka's log where ours goes.
struct BrokerLog;

impl ClientContext for BrokerLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::pass_on(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "embedded broker");
    }
}

impl ProducerContext for BrokerLog {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, _opaque: ()) {}
}
