//! What a topic holds at its end: how a relay that begins finds out what an earlier one has published.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::embedded::broker::CONSUMER_SETTINGS;
use crate::kafka::headers::headers_of;
use crate::kafka::{EVENTS_TOPIC, HEADER_LATE, HEADER_POSITION, KafkaConfig, Replicas};
use crate::log::Position;

/// How long a question to the broker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many records are handed over at once.
const PAGE: usize = 1_000;

/// Reads records by offset. No group, no commits.
pub(crate) struct TopicTail {
    consumer: BaseConsumer,
}

/// Which records a partition has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The offset of its oldest record.
    pub(crate) low: i64,
    /// The offset that its next record will get.
    pub(crate) end: i64,
}

/// A record that claims a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) offset: i64,
    pub(crate) position: Position,
    /// Whether it stands behind its place, because it was withheld.
    pub(crate) is_late: bool,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl TopicTail {
    pub(crate) fn new(kafka: &KafkaConfig) -> Result<Self, KafkaError> {
        let defaults = [
            ("group.id", "wallex-relay-tail"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("enable.partition.eof", "true"),
            ("auto.offset.reset", "error"),
            ("fetch.wait.max.ms", "100"),
        ];
        let config = kafka.client_config(&defaults, CONSUMER_SETTINGS);
        Ok(TopicTail { consumer: config.create()? })
    }

    /// Where a partition begins and ends.
    pub(crate) fn extent(&self, partition: i32) -> Result<Extent, KafkaError> {
        let (low, end) = self.consumer.fetch_watermarks(EVENTS_TOPIC, partition, ANSWER_TIMEOUT)?;
        Ok(Extent { low, end })
    }

    /// The replicas of each partition; none where there is no such topic.
    pub(crate) fn replicas(&self) -> Result<Vec<Replicas>, KafkaError> {
        let metadata = self.consumer.fetch_metadata(Some(EVENTS_TOPIC), ANSWER_TIMEOUT)?;
        Ok(metadata.topics().iter().flat_map(|topic| topic.partitions()).map(Replicas::of).collect())
    }

    /// Reads from one offset up to, and without, another. What claims a position is handed over, in order, some at a time.
    pub(crate) fn read<E: From<KafkaError>>(
        &self,
        partition: i32,
        from: i64,
        to: i64,
        mut take: impl FnMut(Vec<Claim>) -> Result<(), E>,
    ) -> Result<(), E> {
        if from >= to {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(EVENTS_TOPIC, partition, Offset::Offset(from))?;
        self.consumer.assign(&list)?;
        let mut page = Vec::new();
        let mut deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) if message.offset() >= to => break,
                Some(Ok(message)) => {
                    let is_last = message.offset() == to - 1;
                    page.extend(claim_of(&message));
                    if page.len() >= PAGE {
                        take(std::mem::take(&mut page))?;
                    }
                    if is_last {
                        break;
                    }
                    deadline = Instant::now() + ANSWER_TIMEOUT;
                }
                // Offsets may have holes before the end; and what is past the end is not there.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut).into()),
            }
        }
        self.consumer.unassign()?;
        take(page)
    }
}

fn claim_of(message: &impl Message) -> Option<Claim> {
    let headers = headers_of(message);
    let (_, position) = headers.iter().rfind(|(name, _)| name == HEADER_POSITION)?;
    Some(Claim {
        offset: message.offset(),
        position: std::str::from_utf8(position.as_deref()?).ok()?.parse().ok()?,
        is_late: headers.iter().any(|(name, _)| name == HEADER_LATE),
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().unwrap_or_default().to_vec(),
    })
}
