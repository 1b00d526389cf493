//! Where a topic's partitions begin and end, and what groups have committed. Asks; never joins a group, never commits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::embedded::broker::CONSUMER_SETTINGS;
use crate::kafka::{DLQ_TOPIC, KafkaConfig};

/// The records that a partition holds: from `low` up to and without `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermarks {
    /// Offset of the oldest record that is kept.
    pub low: i64,
    /// The offset that the next record will get.
    pub end: i64,
}

/// What the broker said about a topic, the dead letters' topic and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offsets {
    /// By partition. Empty where the topic does not exist.
    pub watermarks: BTreeMap<i32, Watermarks>,
    /// Those of [`DLQ_TOPIC`], likewise.
    pub dead_letters: BTreeMap<i32, Watermarks>,
    /// Committed offsets by group and partition; only those that are there.
    pub committed: BTreeMap<(String, i32), i64>,
    /// How many members each group has; only those of which the broker tells.
    pub members: BTreeMap<String, usize>,
}

/// Asks for offsets, with one client a group that is kept from question to question: making one costs connections
/// and threads. Its calls block.
pub(crate) struct OffsetReader {
    config: KafkaConfig,
    clients: BTreeMap<String, BaseConsumer>,
}

impl OffsetReader {
    /// A reader that has not connected yet.
    pub fn new(config: KafkaConfig) -> Self {
        OffsetReader { config, clients: BTreeMap::new() }
    }

    /// The topic's watermarks and the groups' committed offsets, within `timeout` for all of it.
    ///
    /// # Errors
    /// Why the broker did not answer, for people.
    pub fn read(&mut self, topic: &str, groups: &[&str], timeout: Duration) -> Result<Offsets, String> {
        let deadline = Instant::now() + timeout;
        let brokers = self.config.brokers.clone();
        self.ask(topic, groups, deadline).map_err(|error| format!("{brokers} does not answer: {error}"))
    }

    fn ask(&mut self, topic: &str, groups: &[&str], deadline: Instant) -> Result<Offsets, KafkaError> {
        let mut offsets = Offsets::default();
        for group in groups {
            let client = match self.clients.entry((*group).to_owned()) {
                std::collections::btree_map::Entry::Occupied(kept) => kept.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let mut config = self.config.client_config(&[], CONSUMER_SETTINGS);
                    config.set("group.id", *group).set("enable.auto.commit", "false");
                    place.insert(config.create()?)
                }
            };
            if offsets.watermarks.is_empty() {
                offsets.watermarks = watermarks(client, topic, deadline)?;
                offsets.dead_letters = watermarks(client, DLQ_TOPIC, deadline)?;
            }
            let mut wanted = TopicPartitionList::with_capacity(offsets.watermarks.len());
            for partition in offsets.watermarks.keys() {
                wanted.add_partition(topic, *partition);
            }
            if wanted.count() == 0 {
                continue;
            }
            for found in client.committed_offsets(wanted, remaining(deadline))?.elements() {
                if let Offset::Offset(offset) = found.offset() {
                    offsets.committed.insert(((*group).to_owned(), found.partition()), offset);
                }
            }
        }
        // Last, because it may cost the connection: not every broker knows this question, the embedded one among them.
        for (group, client) in self.clients.iter().filter(|_| !self.config.embedded) {
            if let Ok(found) = client.fetch_group_list(Some(group), remaining(deadline)) {
                // A group that the broker has not heard of is as empty as one that everybody has left.
                let members = found.groups().iter().filter(|found| found.name() == group).map(|it| it.members().len());
                offsets.members.insert(group.clone(), members.sum());
            }
        }
        Ok(offsets)
    }
}

/// Where each partition of the topic begins and ends; nothing where there is no such topic.
pub(crate) fn watermarks(
    client: &impl Consumer,
    topic: &str,
    deadline: Instant,
) -> Result<BTreeMap<i32, Watermarks>, KafkaError> {
    let metadata = client.fetch_metadata(Some(topic), remaining(deadline))?;
    let described = metadata.topics().iter().find(|described| described.name() == topic);
    let partitions = described.map_or(&[][..], |described| described.partitions());
    let mut found = BTreeMap::new();
    for partition in partitions {
        let (low, end) = client.fetch_watermarks(topic, partition.id(), remaining(deadline))?;
        found.insert(partition.id(), Watermarks { low, end });
    }
    Ok(found)
}

/// What is left until a deadline; never nothing, which librdkafka takes for "do not wait for the answer at all".
fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
