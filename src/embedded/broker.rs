//! The embedded broker: librdkafka's mock cluster, one broker on a loopback port that any Kafka client can use.

use std::fmt;
use std::time::Duration;

use rdkafka::bindings::{rd_kafka_handle_mock_cluster, rd_kafka_mock_group_initial_rebalance_delay_ms};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use thiserror::Error;

/// What a partition holds at most, in bytes as produced (so: compressed). Beyond it the oldest batches are dropped,
/// whether or not anybody has read them.
pub const PARTITION_BYTES: usize = 5 * 1024 * 1024;

/// How many batches a partition holds at most; beyond it the oldest are dropped.
pub const PARTITION_BATCHES: usize = 100_000;

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
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(facility, message, "embedded broker");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(facility, message, "embedded broker"),
            _ => tracing::debug!(facility, message, "embedded broker"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "embedded broker");
    }
}

impl ProducerContext for BrokerLog {
    type DeliveryOpaque = ();

    fn delivery(&self, _result: &DeliveryResult<'_>, _opaque: ()) {}
}
