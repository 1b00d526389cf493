//! Reads a topic from its beginning to where it ends now, each partition at its own pace. Joins no group, commits nothing.
//!
//! No offset is passed over in silence: what does not come must have been deleted by retention, or reading fails.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::embedded::broker::CONSUMER_SETTINGS;
use crate::kafka::headers::headers_of;
use crate::kafka::watermarks::{Watermarks, watermarks};
use crate::kafka::{HEADER_POSITION, KafkaConfig};
use crate::log::Position;

/// librdkafka wants a group's name to assign partitions. Nobody ever joins this one.
const GROUP: &str = "wallex-verify";

/// How long one look at the queue lasts, before the client's other events get their turn.
const POLL: Duration = Duration::from_millis(100);

/// Memory is bounded by the first of these, a partition. The rest keeps the client from pausing for its usual second whenever
/// a partition's queue has been full, or for half a second where the other partitions have nothing to say.
const CLIENT_DEFAULTS: [(&str, &str); 9] = [
    ("queued.max.messages.kbytes", "2048"),
    ("queued.min.messages", "10000"),
    ("fetch.message.max.bytes", "524288"),
    ("fetch.queue.backoff.ms", "5"),
    ("fetch.wait.max.ms", "10"),
    ("fetch.error.backoff.ms", "50"),
    ("auto.offset.reset", "earliest"),
    ("isolation.level", "read_uncommitted"),
    ("enable.auto.commit", "false"),
];

/// A record as it lies in the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicRecord {
    /// Its offset in its partition.
    pub offset: i64,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Option<Vec<u8>>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl TopicRecord {
    /// The position that its header names, if it does.
    pub fn position(&self) -> Option<Position> {
        self.number(HEADER_POSITION)
    }

    /// The number in the first header of this name, if there is one.
    pub fn number(&self, header: &str) -> Option<i64> {
        let (_, value) = self.headers.iter().find(|(name, _)| name == header)?;
        std::str::from_utf8(value.as_deref()?).ok()?.parse().ok()
    }
}

/// Reads a topic. Its calls block.
pub(crate) struct TopicReader {
    topic: String,
    timeout: Duration,
    /// Before the consumer that it belongs to, so that it goes first.
    partitions: BTreeMap<i32, Partition>,
    consumer: Arc<BaseConsumer>,
}

struct Partition {
    queue: rdkafka::consumer::base_consumer::PartitionQueue<DefaultConsumerContext>,
    watermarks: Watermarks,
    /// Offset of the next record to be had.
    next: i64,
    /// Records that came before the partition had its own queue.
    early: VecDeque<TopicRecord>,
    peeked: Option<TopicRecord>,
}

impl TopicReader {
    /// Opens the topic, up to where it ends now; `None` where there is no such topic.
    ///
    /// # Errors
    /// Why the broker did not answer within `timeout`, for people.
    pub fn open(config: &KafkaConfig, topic: &str, timeout: Duration) -> Result<Option<Self>, String> {
        Self::try_open(config, topic, timeout).map_err(|error| format!("{} does not answer: {error}", config.brokers))
    }

    fn try_open(config: &KafkaConfig, topic: &str, timeout: Duration) -> Result<Option<Self>, KafkaError> {
        let mut client_config = config.client_config(&CLIENT_DEFAULTS, CONSUMER_SETTINGS);
        client_config.set("group.id", GROUP).set("enable.partition.eof", "true");
        let consumer: Arc<BaseConsumer> = Arc::new(client_config.create()?);
        let found = watermarks(&*consumer, topic, Instant::now() + timeout)?;
        if found.is_empty() {
            return Ok(None);
        }
        let mut assignment = TopicPartitionList::with_capacity(found.len());
        for (partition, watermarks) in &found {
            assignment.add_partition_offset(topic, *partition, Offset::Offset(watermarks.low))?;
        }
        consumer.assign(&assignment)?;
        let mut partitions = BTreeMap::new();
        for (partition, watermarks) in found {
            // A queue each: whoever wants a record of one partition is not handed those of the others.
            let queue = consumer
                .split_partition_queue(topic, partition)
                .ok_or_else(|| KafkaError::Subscription(format!("partition {partition} of {topic}")))?;
            let (next, early) = (watermarks.low, VecDeque::new());
            partitions.insert(partition, Partition { queue, watermarks, next, early, peeked: None });
        }
        // What was fetched before that lies in the client's common queue, and nothing is added there any more.
        while let Some(event) = consumer.poll(Duration::ZERO) {
            if let Ok(message) = event
                && let Some(reading) = partitions.get_mut(&message.partition())
            {
                reading.early.push_back(copied(&message));
            }
        }
        Ok(Some(TopicReader { topic: topic.to_owned(), timeout, partitions, consumer }))
    }

    /// How many partitions the topic has.
    pub fn partition_count(&self) -> i32 {
        self.partitions.keys().next_back().map_or(0, |last| last + 1)
    }

    /// The next record of a partition, left where it is; `None` at the end.
    ///
    /// # Errors
    /// Why the broker did not deliver, for people.
    pub fn peek(&mut self, partition: i32) -> Result<Option<&TopicRecord>, String> {
        let Some(reading) = self.partitions.get_mut(&partition) else {
            return Ok(None);
        };
        if reading.peeked.is_none() {
            let broker = Broker { consumer: &self.consumer, topic: &self.topic, partition, timeout: self.timeout };
            reading.peeked = reading
                .advance(&broker)
                .map_err(|reason| format!("partition {partition} of {} cannot be read: {reason}", self.topic))?;
        }
        Ok(reading.peeked.as_ref())
    }

    /// Takes the record that was peeked at.
    pub fn take(&mut self, partition: i32) -> Option<TopicRecord> {
        self.partitions.get_mut(&partition)?.peeked.take()
    }

    /// Moves a partition's end to where it is by now; whether that is farther.
    ///
    /// # Errors
    /// Why the broker did not answer, for people.
    pub fn extend(&mut self, partition: i32) -> Result<bool, String> {
        let Some(reading) = self.partitions.get_mut(&partition) else {
            return Ok(false);
        };
        let answer = self.consumer.fetch_watermarks(&self.topic, partition, self.timeout);
        let (_, end) = answer.map_err(|error| format!("partition {partition} of {}: {error}", self.topic))?;
        let is_farther = end > reading.watermarks.end;
        reading.watermarks.end = reading.watermarks.end.max(end);
        Ok(is_farther)
    }

    /// Offset of the oldest record of a partition that could be read. Retention moves it up while we read.
    pub fn low(&self, partition: i32) -> i64 {
        self.partitions.get(&partition).map_or(0, |reading| reading.watermarks.low)
    }
}

/// Who is asked for one partition's records.
struct Broker<'a> {
    consumer: &'a BaseConsumer,
    topic: &'a str,
    partition: i32,
    timeout: Duration,
}

impl Partition {
    /// The next record, or `None` at the end.
    fn advance(&mut self, broker: &Broker<'_>) -> Result<Option<TopicRecord>, String> {
        while self.next < self.watermarks.end {
            let arrived = match self.early.pop_front() {
                Some(record) => Some(record),
                None => self.poll(broker)?,
            };
            match arrived {
                // The client was at the end once: long ago, or because retention has deleted everything up to there.
                None => {
                    let low = broker.low()?;
                    if low > self.next {
                        self.passed_over(low.min(self.watermarks.end));
                    }
                }
                Some(record) if record.offset < self.next => {}
                Some(record) => {
                    if record.offset > self.next {
                        let low = broker.low()?;
                        if low < record.offset {
                            return Err(format!("offsets {} to {} did not come", self.next, record.offset - 1));
                        }
                        self.passed_over(record.offset.min(self.watermarks.end));
                    }
                    if record.offset >= self.watermarks.end {
                        // Beyond the end is what came after we began. It is kept, should the end be moved.
                        self.early.push_front(record);
                        return Ok(None);
                    }
                    self.next = record.offset + 1;
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }

    /// Retention has deleted what lies before an offset.
    fn passed_over(&mut self, offset: i64) {
        self.next = offset;
        self.watermarks.low = offset;
    }

    /// Waits for a record; `None` where the client has come to the partition's end instead.
    fn poll(&self, broker: &Broker<'_>) -> Result<Option<TopicRecord>, String> {
        let deadline = Instant::now() + broker.timeout;
        let mut trouble = None;
        while Instant::now() < deadline {
            match self.queue.poll(POLL) {
                Some(Ok(message)) => return Ok(Some(copied(&message))),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                // librdkafka tries again by itself; if that does not help, this was the reason.
                Some(Err(error)) => trouble = Some(error.to_string()),
                None => {}
            }
            // Errors of the client as a whole arrive on its own queue.
            if let Some(Err(error)) = broker.consumer.poll(Duration::ZERO) {
                trouble = Some(error.to_string());
            }
        }
        Err(trouble.unwrap_or_else(|| "the broker sends nothing".to_owned()))
    }
}

impl Broker<'_> {
    /// The offset of the oldest record that the broker keeps by now.
    fn low(&self) -> Result<i64, String> {
        let answer = self.consumer.fetch_watermarks(self.topic, self.partition, self.timeout);
        answer.map(|(low, _)| low).map_err(|error| error.to_string())
    }
}

fn copied(message: &BorrowedMessage<'_>) -> TopicRecord {
    TopicRecord {
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers_of(message),
    }
}
