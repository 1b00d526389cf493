//! How far the relay may run ahead of the projections on a broker that forgets. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::log::Position;

/// How many bytes of records may lie in a partition of the embedded broker that the slower projection has not taken yet.
/// The broker drops what is beyond 5 MiB.
pub const EMBEDDED_AHEAD_BYTES: usize = 2 * 1024 * 1024;

/// Bytes in each partition that are not yet taken.
#[derive(Debug, Default)]
pub(super) struct Budget {
    partitions: BTreeMap<i32, Ahead>,
}

#[derive(Debug, Default)]
struct Ahead {
    records: VecDeque<(Position, usize)>,
    bytes: usize,
}

impl Budget {
    /// A record has been sent.
    pub(super) fn spend(&mut self, partition: i32, position: Position, bytes: usize) {
        let ahead = self.partitions.entry(partition).or_default();
        ahead.records.push_back((position, bytes));
        ahead.bytes += bytes;
    }

    /// Projections have come this far.
    pub(super) fn taken(&mut self, positions: &BTreeMap<i32, Position>) {
        for (partition, ahead) in &mut self.partitions {
            let position = positions.get(partition).copied().unwrap_or(0);
            while let Some((_, bytes)) = ahead.records.pop_front_if(|(at, _)| *at <= position) {
                ahead.bytes -= bytes;
            }
        }
    }

    /// Whether any partition is full: the log goes on in order, so one full partition holds up the rest.
    pub(super) fn is_spent(&self) -> bool {
        self.partitions.values().any(|ahead| ahead.bytes >= EMBEDDED_AHEAD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_partition_is_free_again_once_its_records_are_taken() {
        let mut budget = Budget::default();
        let half = EMBEDDED_AHEAD_BYTES / 2;
        budget.spend(0, 1, half);
        budget.spend(1, 2, half);
        assert!(!budget.is_spent());
        budget.spend(0, 3, half);
        assert!(budget.is_spent());
        budget.taken(&BTreeMap::from([(1, 10)]));
        assert!(budget.is_spent());
        budget.taken(&BTreeMap::from([(0, 1)]));
        assert!(!budget.is_spent());
    }
}
