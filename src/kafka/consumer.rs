//! A member of a consumer group, polled by one thread. Where reading begins is not Kafka's to say but the caller's: the
//! offsets committed in Kafka are only a mirror for tools.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_resp_err_t as ResponseCode;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::embedded::broker::CONSUMER_SETTINGS;
use crate::kafka::headers::headers_of;
use crate::kafka::{KafkaConfig, client_log};

/// How long going to another offset may take.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);

/// How many errors one poll passes over at most.
const PASSING_ERRORS_MAX: usize = 100;

/// How often an error that passes is told at most: a broker that is away is worth a line, not one for each attempt.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A record as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConsumedRecord {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
}

impl ConsumedRecord {
    /// The value of the last header of this name, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rfind(|(found, _)| found == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// Told of partitions that come and go, on the polling thread, from within [`GroupConsumer::poll`].
pub(crate) trait Assignments: Send + Sync + 'static {
    /// Partitions have come: the offset to begin at for each, or `None` for the earliest that there is.
    fn assigned(&self, partitions: &[i32]) -> Vec<(i32, Option<i64>)>;
    /// Partitions are gone.
    fn revoked(&self, partitions: &[i32]);
}

struct Context<A> {
    topic: String,
    assignments: Arc<A>,
}

impl<A: Assignments> ClientContext for Context<A> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client_log::pass_on(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "consumer");
    }
}

impl<A: Assignments> ConsumerContext for Context<A> {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: ResponseCode, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let done = if code == ResponseCode::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let begin = self.assignments.assigned(&partitions);
            topic_partitions(&self.topic, begin.into_iter().map(|(partition, offset)| (partition, start(offset))))
                .and_then(|list| if cooperative { consumer.incremental_assign(&list) } else { consumer.assign(&list) })
        } else {
            self.assignments.revoked(&partitions);
            if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = done {
            tracing::error!(%error, ?partitions, "a change of partitions was refused");
        }
    }

    fn commit_callback(&self, result: Result<(), KafkaError>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // The checkpoint in the database is the truth; the next commit mends the mirror.
            tracing::debug!(%error, "offsets were not mirrored to Kafka");
        }
    }
}

fn start(offset: Option<i64>) -> Offset {
    offset.map_or(Offset::Beginning, Offset::Offset)
}

fn topic_partitions(
    topic: &str,
    offsets: impl IntoIterator<Item = (i32, Offset)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, partition, offset)?;
    }
    Ok(list)
}

/// A member of a consumer group on one topic.
pub(crate) struct GroupConsumer<A: Assignments> {
    consumer: BaseConsumer<Context<A>>,
    topic: String,
    /// When an error that passes was last told.
    told_at: Cell<Option<Instant>>,
}

impl<A: Assignments> GroupConsumer<A> {
    /// Joins the group. Partitions come later, from within [`GroupConsumer::poll`].
    ///
    /// With an `instance_id`, as a static member: one that comes back under the same within the session's timeout gets its
    /// partitions back, and no other member notices.
    pub(crate) fn join(
        kafka: &KafkaConfig,
        group: &str,
        instance_id: Option<&str>,
        topic: &str,
        assignments: Arc<A>,
    ) -> Result<Self, KafkaError> {
        let mut defaults = vec![
            ("group.id", group),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("isolation.level", "read_committed"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("fetch.wait.max.ms", "500"),
            ("fetch.queue.backoff.ms", "10"),
            // A member that has died is missed soon. One that is only slow loses nothing but its partitions: its checkpoints are
            // no longer where it believes them to be, so it writes nothing.
            ("session.timeout.ms", "10000"),
            // Batches of a thousand records; what lies fetched beyond that is memory for nothing.
            ("queued.min.messages", "5000"),
            ("queued.max.messages.kbytes", "16384"),
        ];
        defaults.extend(instance_id.map(|id| ("group.instance.id", id)));
        let config = kafka.client_config(&defaults, CONSUMER_SETTINGS);
        let context = Context { topic: topic.to_owned(), assignments };
        let consumer: BaseConsumer<Context<A>> = config.create_with_context(context)?;
        consumer.subscribe(&[topic])?;
        Ok(GroupConsumer { consumer, topic: topic.to_owned(), told_at: Cell::new(None) })
    }

    /// Waits up to `patience` for a record, and takes up to `records_max` of those that are there.
    ///
    /// Errors that pass (a broker is away) are passed over at once: behind them in the client's queue stand records, and changes of
    /// partitions that others wait for.
    ///
    /// # Errors
    /// What the client will not recover from. Records that were taken before it are not lost: no checkpoint has moved over them.
    pub(crate) fn poll(&self, patience: Duration, records_max: usize) -> Result<Vec<ConsumedRecord>, KafkaError> {
        let until = Instant::now() + patience;
        let mut records = Vec::new();
        let (mut misses, mut passed_over) = (0, 0);
        while records.len() < records_max {
            let left =
                if records.is_empty() { until.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            match self.consumer.poll(left) {
                // It may have been an event that the client has dealt with itself, with records behind it.
                None if misses == 0 && !records.is_empty() => misses += 1,
                None => break,
                Some(Ok(message)) => records.push(own(&message)),
                Some(Err(fatal @ KafkaError::MessageConsumptionFatal(_))) => return Err(fatal),
                Some(Err(error)) => {
                    self.tell(&error);
                    passed_over += 1;
                    if passed_over >= PASSING_ERRORS_MAX {
                        break;
                    }
                }
            }
        }
        Ok(records)
    }

    fn tell(&self, error: &KafkaError) {
        if self.told_at.get().is_some_and(|told_at| told_at.elapsed() < TELL_EVERY) {
            tracing::debug!(topic = self.topic, %error, "consuming");
        } else {
            tracing::warn!(topic = self.topic, %error, "consuming; the client tries again by itself");
            self.told_at.set(Some(Instant::now()));
        }
    }

    /// Goes to another offset; `None` for the earliest.
    pub(crate) fn seek(&self, partition: i32, offset: Option<i64>) -> Result<(), KafkaError> {
        self.consumer.seek(&self.topic, partition, start(offset), SEEK_TIMEOUT)
    }

    /// Mirrors offsets to Kafka, without waiting.
    pub(crate) fn commit(&self, offsets: &BTreeMap<i32, i64>) {
        let list = offsets.iter().map(|(partition, offset)| (*partition, Offset::Offset(*offset)));
        let sent = topic_partitions(&self.topic, list).and_then(|list| self.consumer.commit(&list, CommitMode::Async));
        if let Err(error) = sent {
            tracing::debug!(%error, "offsets were not mirrored to Kafka");
        }
    }

    /// Stops fetching, so that polling only keeps the membership.
    pub(crate) fn pause(&self) {
        let paused = self.consumer.assignment().and_then(|assigned| self.consumer.pause(&assigned));
        if let Err(error) = paused {
            tracing::debug!(%error, "partitions were not paused");
        }
    }

    /// Stops fetching from these partitions alone.
    pub(crate) fn pause_only(&self, partitions: &BTreeSet<i32>) {
        let list = topic_partitions(&self.topic, partitions.iter().map(|partition| (*partition, Offset::Invalid)));
        if let Err(error) = list.and_then(|list| self.consumer.pause(&list)) {
            tracing::debug!(%error, "partitions were not paused");
        }
    }

    /// Fetches again, but for these partitions.
    pub(crate) fn resume_but(&self, held: &BTreeSet<i32>) {
        let resumed = self.consumer.assignment().and_then(|assigned| {
            let partitions = assigned.elements().into_iter().map(|element| element.partition());
            let resumed = partitions.filter(|partition| !held.contains(partition));
            let list = topic_partitions(&self.topic, resumed.map(|partition| (partition, Offset::Invalid)))?;
            self.consumer.resume(&list)
        });
        if let Err(error) = resumed {
            tracing::warn!(%error, "partitions were not resumed");
        }
    }
}

fn own(message: &impl Message) -> ConsumedRecord {
    ConsumedRecord {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers_of(message),
    }
}
