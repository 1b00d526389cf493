//! Copies of dead letters, sent to [`DLQ_TOPIC`]: for whoever watches it with the tools of Kafka.

use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;

use crate::embedded::broker::PRODUCER_SETTINGS;
use crate::kafka::kept_headers::RecordHeader;
use crate::kafka::{DLQ_PARTITIONS, DLQ_TOPIC, KafkaConfig, TopicsError, ensure_topic, partition_of};

/// How long a copy may be on its way before it counts as not delivered. It is sent again then.
const DELIVERY_TIMEOUT_MS: &str = "10000";

/// A copy, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLetterCopy {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<RecordHeader>,
    /// The partition that the original came from.
    pub(crate) original_partition: i32,
}

/// Why a copy was not delivered.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// It is larger than the topic takes, and always will be.
    TooLarge,
    /// It may be delivered later.
    Failed(String),
}

/// Sends copies.
pub(crate) struct DeadLetterProducer {
    producer: FutureProducer,
    kafka: KafkaConfig,
    is_ready: bool,
}

impl DeadLetterProducer {
    /// A producer that has not connected yet.
    pub(crate) fn new(kafka: KafkaConfig) -> Result<Self, TopicsError> {
        let defaults = [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("compression.type", "gzip"),
            ("linger.ms", "5"),
            ("message.timeout.ms", DELIVERY_TIMEOUT_MS),
        ];
        let producer = kafka.client_config(&defaults, PRODUCER_SETTINGS).create();
        let producer = producer.map_err(|error: KafkaError| TopicsError::Client(error.to_string()))?;
        Ok(DeadLetterProducer { producer, kafka, is_ready: false })
    }

    /// Makes the topic where it is missing, once.
    pub(crate) async fn prepare(&mut self) -> Result<(), TopicsError> {
        if !self.is_ready {
            ensure_topic(&self.kafka, DLQ_TOPIC).await?;
            self.is_ready = true;
        }
        Ok(())
    }

    /// Sends copies in this order; what became of each.
    pub(crate) async fn send(&mut self, copies: &[DeadLetterCopy]) -> Vec<Result<(), CopyError>> {
        let queued: Vec<Result<DeliveryFuture, KafkaError>> = copies.iter().map(|copy| self.queue(copy)).collect();
        let mut ended = Vec::with_capacity(copies.len());
        for queued in queued {
            let delivered = match queued {
                Ok(delivery) => match delivery.await {
                    Ok(Ok(Delivery { .. })) => Ok(()),
                    Ok(Err((error, _))) => Err(error),
                    // The producer has gone, and with it the news.
                    Err(_) => Err(KafkaError::Canceled),
                },
                Err(error) => Err(error),
            };
            ended.push(delivered.map_err(|error| match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge) => CopyError::TooLarge,
                error => {
                    // The topic may have been deleted under it.
                    self.is_ready = false;
                    CopyError::Failed(error.to_string())
                }
            }));
        }
        ended
    }

    fn queue(&self, copy: &DeadLetterCopy) -> Result<DeliveryFuture, KafkaError> {
        let headers = OwnedHeaders::new_with_capacity(copy.headers.len());
        let headers = copy
            .headers
            .iter()
            .fold(headers, |headers, (name, value)| headers.insert(Header { key: name, value: value.as_deref() }));
        let partition = match &copy.key {
            Some(key) => partition_of(key, DLQ_PARTITIONS),
            None => copy.original_partition.rem_euclid(DLQ_PARTITIONS),
        };
        let mut record: FutureRecord<'_, [u8], [u8]> =
            FutureRecord::to(DLQ_TOPIC).partition(partition).headers(headers);
        record.key = copy.key.as_deref();
        record.payload = copy.value.as_deref();
        self.producer.send_result(record).map_err(|(error, _)| error)
    }
}
