//! How far the log, the relay and the groups have come, as one moment of the database shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::kafka::EVENTS_PARTITIONS;
use crate::lag::{Copied, GroupProgress, Progress, StoreProgress};
use crate::log::Position;
use crate::projection::BUILT_IN;

/// How far a group is in one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Through {
    /// The group's tables hold everything of the partition up to here.
    pub position: Position,
    /// The offset at which it would go on reading.
    pub next_offset: Option<i64>,
    /// How long ago that changed.
    pub unmoved: Duration,
}

/// One moment of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Position of the last event in the log.
    pub head: Position,
    /// Position up to which the broker has acknowledged everything.
    pub published: Position,
    /// How long ago that changed.
    pub published_unmoved: Duration,
    /// Position of the last record that the broker acknowledged, by partition.
    pub tails: BTreeMap<i32, Position>,
    /// How far each group is, by group and partition.
    pub checkpoints: BTreeMap<(String, i32), Through>,
    /// How many records each group has put aside; groups that have none are not there.
    pub parked: BTreeMap<String, i64>,
    /// How many records each group may put aside, where its runners have said so.
    pub parked_max: BTreeMap<String, i64>,
    /// Groups and partitions that are paused because no more may be put aside.
    pub paused: BTreeSet<(String, i32)>,
    /// Whether the events are in an event store, and the log is a copy.
    pub is_a_copy: bool,
    /// How far the copy is; `None` before its first page.
    pub copied: Option<Copied>,
}

impl Standing {
    /// The groups that have a checkpoint, and wallex's own; by name.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.checkpoints.keys().map(|(group, _)| group.as_str()).collect();
        groups.extend(BUILT_IN);
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// How many partitions there are to speak of.
    pub fn partitions(&self) -> i32 {
        let seen = self.checkpoints.keys().map(|(_, partition)| *partition).chain(self.tails.keys().copied());
        seen.map(|partition| partition + 1).fold(EVENTS_PARTITIONS, i32::max)
    }

    /// Position up to which the group's tables hold every event of the partition; 0 before the first. An idle runner moves
    /// it up to what is published, so that a partition without events holds nobody back for long.
    pub fn through(&self, group: &str, partition: i32) -> Position {
        self.checkpoint(group, partition).map_or(0, |through| through.position)
    }

    /// The checkpoint as it stands, if there is one.
    pub fn checkpoint(&self, group: &str, partition: i32) -> Option<Through> {
        self.checkpoints.get(&(group.to_owned(), partition)).copied()
    }

    /// Position up to which the group's tables hold everything.
    pub fn group_through(&self, group: &str) -> Position {
        (0..self.partitions()).map(|partition| self.through(group, partition)).min().unwrap_or(0)
    }

    /// The same, for those who ask from outside.
    pub fn progress(&self) -> Progress {
        let groups = self.groups();
        let groups = groups
            .into_iter()
            .map(|group| GroupProgress { group: group.to_owned(), position: self.group_through(group) })
            .collect();
        let copied = self.copied.map(|copied| copied.commit);
        let event_store = self.is_a_copy.then_some(StoreProgress { head: None, copied });
        Progress { head: self.head, published: self.published, groups, event_store }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(head: Position, published: Position) -> Standing {
        Standing { head, published, ..Standing::default() }
    }

    fn positions(progress: &Progress) -> Vec<(&str, Position)> {
        progress.groups.iter().map(|group| (group.group.as_str(), group.position)).collect()
    }

    #[test]
    fn groups_that_never_ran_are_listed_and_stand_at_the_beginning() {
        let progress = standing(20, 10).progress();
        assert_eq!(positions(&progress), [("ledger-projector", 0), ("read-model-projector", 0)]);
    }

    #[test]
    fn a_group_is_as_far_as_its_slowest_partition() {
        let mut standing = standing(30, 20);
        for partition in 0..EVENTS_PARTITIONS {
            let position = if partition == 4 { 12 } else { 20 };
            let through = Through { position, ..Through::default() };
            standing.checkpoints.insert(("ledger-projector".to_owned(), partition), through);
        }
        let progress = standing.progress();
        assert_eq!(positions(&progress), [("ledger-projector", 12), ("read-model-projector", 0)]);
        assert!(!progress.is_through(12));
    }

    #[test]
    fn groups_of_others_are_listed_by_name() {
        let mut standing = standing(30, 20);
        standing.checkpoints.insert(("notifications".to_owned(), 11), Through::default());
        assert_eq!(standing.groups(), ["ledger-projector", "notifications", "read-model-projector"]);
        assert_eq!(standing.partitions(), 12);
    }
}
