//! How far the log, the relay and the groups have come, as one moment of the database shows it.

use std::collections::BTreeMap;

use crate::kafka::EVENTS_PARTITIONS;
use crate::lag::{BUILT_IN_GROUPS, GroupProgress, Progress};
use crate::log::Position;

/// One moment of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Position of the last event in the log.
    pub head: Position,
    /// Position up to which the broker has acknowledged everything.
    pub published: Position,
    /// Position of the last record that the broker acknowledged, by partition.
    pub tails: BTreeMap<i32, Position>,
    /// Position up to which a group's tables hold everything of a partition, by group and partition.
    pub checkpoints: BTreeMap<(String, i32), Position>,
}

impl Standing {
    /// The groups that have a checkpoint, and wallex's own; by name.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.checkpoints.keys().map(|(group, _)| group.as_str()).collect();
        groups.extend(BUILT_IN_GROUPS);
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// How many partitions there are to speak of.
    pub fn partitions(&self) -> i32 {
        let seen = self.checkpoints.keys().map(|(_, partition)| *partition).chain(self.tails.keys().copied());
        seen.map(|partition| partition + 1).fold(EVENTS_PARTITIONS, i32::max)
    }

    /// Position up to which the group's tables hold every event of the log that belongs to the partition.
    ///
    /// A checkpoint is the position of the partition's last processed event, and the partition may have had none since. If the
    /// last record that was published to it has been processed, then so has everything published.
    pub fn through(&self, group: &str, partition: i32) -> Position {
        let checkpoint = self.checkpoint(group, partition).unwrap_or(0);
        let tail = self.tails.get(&partition).copied().unwrap_or(0);
        if checkpoint >= tail { checkpoint.max(self.published) } else { checkpoint }
    }

    /// The checkpoint as it stands, if there is one.
    pub fn checkpoint(&self, group: &str, partition: i32) -> Option<Position> {
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
        Progress { head: self.head, published: self.published, groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(head: Position, published: Position) -> Standing {
        Standing { head, published, ..Standing::default() }
    }

    #[test]
    fn groups_that_never_ran_are_listed_and_stand_at_the_beginning() {
        let mut standing = standing(20, 10);
        standing.tails.insert(3, 10);
        let progress = standing.progress();
        let groups: Vec<_> = progress.groups.iter().map(|group| (group.group.as_str(), group.position)).collect();
        assert_eq!(groups, [("ledger-projector", 0), ("read-model-projector", 0)]);
    }

    #[test]
    fn a_partition_without_events_holds_nobody_back() {
        let mut standing = standing(10, 10);
        standing.tails.insert(3, 10);
        standing.checkpoints.insert(("ledger-projector".to_owned(), 3), 10);
        assert_eq!(standing.group_through("ledger-projector"), 10);
        assert_eq!(standing.group_through("read-model-projector"), 0);
    }

    #[test]
    fn a_partition_that_is_behind_its_last_record_holds_its_group_at_its_checkpoint() {
        let mut standing = standing(30, 20);
        standing.tails.extend([(3, 20), (4, 15)]);
        standing.checkpoints.insert(("ledger-projector".to_owned(), 3), 20);
        standing.checkpoints.insert(("ledger-projector".to_owned(), 4), 12);
        assert_eq!(standing.group_through("ledger-projector"), 12);
        assert!(!standing.progress().is_through(13));
    }

    #[test]
    fn nobody_is_further_than_what_was_published() {
        let mut standing = standing(30, 20);
        standing.tails.insert(3, 20);
        standing.checkpoints.insert(("ledger-projector".to_owned(), 3), 20);
        assert_eq!(standing.group_through("ledger-projector"), 20);
    }
}
