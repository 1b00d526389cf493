//! How many copies of a partition there are, and how many of them have what its leader has.

use std::fmt;

use rdkafka::metadata::MetadataPartition;

use crate::kafka::EVENTS_TOPIC;

/// The replicas of a partition of [`EVENTS_TOPIC`]. Displayed in words for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replicas {
    partition: i32,
    all: usize,
    pub(crate) in_sync: usize,
}

impl Replicas {
    pub(super) fn of(found: &MetadataPartition) -> Self {
        Replicas { partition: found.id(), all: found.replicas().len(), in_sync: found.isr().len() }
    }

    /// Whether some are not in sync.
    pub(crate) fn are_missing(&self) -> bool {
        self.in_sync < self.all
    }
}

impl fmt::Display for Replicas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replicas { partition, all, in_sync } = self;
        write!(formatter, "partition {partition} of {EVENTS_TOPIC} has {in_sync} of {all} replicas in sync")
    }
}
