//! What a topic holds at its end: how a relay that begins finds out what an earlier one has published.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::embedded::broker::CONSUMER_SETTINGS;
use crate::kafka::headers::headers_of;
use crate::kafka::{EVENTS_TOPIC, HEADER_POSITION, KafkaConfig};
use crate::log::Position;

/// How long a question to the broker may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How many records at the end are looked at first for one with a position; then ten times as many, and so on.
const LOOK_BACK: i64 = 50;

/// Reads single records by offset. No group, no commits.
pub(crate) struct TopicTail {
    consumer: BaseConsumer,
}

/// What one partition holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionTail {
    /// The offset of its oldest record.
    pub(crate) low: i64,
    /// The offset that its next record will get.
    pub(crate) end: i64,
    /// The position of its last genuine record.
    pub(crate) last_position: Option<Position>,
}

struct Found {
    offset: i64,
    position: Option<Position>,
    key: Vec<u8>,
    value: Vec<u8>,
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

    /// What a partition holds at its end; `is_genuine` is asked, by position, key and value, whether a record is the relay's.
    pub(crate) fn look<E: From<KafkaError>>(
        &self,
        partition: i32,
        mut is_genuine: impl FnMut(Position, &[u8], &[u8]) -> Result<bool, E>,
    ) -> Result<PartitionTail, E> {
        let (low, end) = self.consumer.fetch_watermarks(EVENTS_TOPIC, partition, ANSWER_TIMEOUT)?;
        let mut look_back = LOOK_BACK;
        loop {
            let from = (end - look_back).max(low);
            let mut last_position = None;
            for record in self.read(partition, from, end)?.iter().rev() {
                if let Some(position) = record.position
                    && is_genuine(position, &record.key, &record.value)?
                {
                    last_position = Some(position);
                    break;
                }
            }
            if last_position.is_some() || from == low {
                return Ok(PartitionTail { low, end, last_position });
            }
            look_back *= 10;
        }
    }

    /// The position of the record at an offset; `None` if there is no such record or it has none.
    pub(crate) fn position_at(&self, partition: i32, offset: i64) -> Result<Option<Position>, KafkaError> {
        let records = self.read(partition, offset, offset + 1)?;
        Ok(records.into_iter().find(|record| record.offset == offset).and_then(|record| record.position))
    }

    fn read(&self, partition: i32, from: i64, to: i64) -> Result<Vec<Found>, KafkaError> {
        let mut found = Vec::new();
        if from >= to {
            return Ok(found);
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(EVENTS_TOPIC, partition, Offset::Offset(from))?;
        self.consumer.assign(&list)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while found.last().is_none_or(|record: &Found| record.offset < to - 1) {
            let patience = deadline.saturating_duration_since(Instant::now());
            match self.consumer.poll(patience) {
                Some(Ok(message)) => found.push(Found {
                    offset: message.offset(),
                    position: position_of(&message),
                    key: message.key().unwrap_or_default().to_vec(),
                    value: message.payload().unwrap_or_default().to_vec(),
                }),
                // Offsets may have holes before the end; and what is past the end is not there.
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(KafkaError::MessageConsumption(rdkafka::types::RDKafkaErrorCode::OperationTimedOut));
                }
            }
        }
        self.consumer.unassign()?;
        Ok(found)
    }
}

fn position_of(message: &impl Message) -> Option<Position> {
    let headers = headers_of(message);
    let (_, position) = headers.iter().rfind(|(name, _)| name == HEADER_POSITION)?;
    std::str::from_utf8(position.as_deref()?).ok()?.parse().ok()
}
