//! Which positions the broker has acknowledged, and up to where without a gap: only so far may the checkpoint move. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use crate::log::Position;
use crate::postgres::RelayTail;

/// Follows what is sent, in order of position, and what is acknowledged, in any order.
#[derive(Debug)]
pub(super) struct Acknowledged {
    /// Everything up to here is in the topic.
    through: Position,
    /// Of each position after `through`: when it was sent; `None` if the broker has it.
    after: VecDeque<Option<Instant>>,
    /// Acknowledged records that lie beyond `through`, and the last one that does not, by partition in order.
    tails: BTreeMap<i32, VecDeque<RelayTail>>,
}

impl Acknowledged {
    pub(super) fn new(through: Position) -> Self {
        Acknowledged { through, after: VecDeque::new(), tails: BTreeMap::new() }
    }

    /// Everything up to here is in the topic.
    pub(super) fn through(&self) -> Position {
        self.through
    }

    /// The position that must be sent next.
    pub(super) fn next(&self) -> Position {
        self.through + self.after.len() as Position + 1
    }

    /// How many lie between the first one that is not acknowledged and the last one sent.
    pub(super) fn outstanding(&self) -> usize {
        self.after.len()
    }

    /// When the oldest was sent that the broker does not have; `None` where it has all.
    pub(super) fn oldest_sent_at(&self) -> Option<Instant> {
        self.after.front().copied().flatten()
    }

    /// The next position is being sent.
    pub(super) fn sent(&mut self, at: Instant) {
        self.after.push_back(Some(at));
    }

    /// The next position needs no sending: the topic has it.
    pub(super) fn passed_over(&mut self) {
        self.after.push_back(None);
        self.advance();
    }

    /// The broker has this position, at this offset if it said.
    pub(super) fn acknowledge(&mut self, position: Position, partition: i32, offset: Option<i64>) {
        if let Some(sent_at) = self.after.get_mut((position - self.through - 1) as usize) {
            *sent_at = None;
        }
        if let Some(offset) = offset {
            self.tails.entry(partition).or_default().push_back(RelayTail { next_offset: offset + 1, position });
        }
        self.advance();
    }

    fn advance(&mut self) {
        while self.after.front() == Some(&None) {
            self.after.pop_front();
            self.through += 1;
        }
    }

    /// Takes the last record of each partition up to `through`, where it is a new one.
    pub(super) fn take_tails(&mut self) -> BTreeMap<i32, RelayTail> {
        let through = self.through;
        let mut taken = BTreeMap::new();
        for (partition, tails) in &mut self.tails {
            while let Some(tail) = tails.pop_front_if(|tail| tail.position <= through) {
                taken.insert(*partition, tail);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy;

    use super::*;

    #[test]
    fn the_checkpoint_stops_at_the_first_position_that_is_not_acknowledged() {
        let mut acknowledged = Acknowledged::new(10);
        for _ in 0..4 {
            acknowledged.sent(Instant::now());
        }
        acknowledged.acknowledge(12, 0, Some(100));
        acknowledged.acknowledge(13, 1, Some(200));
        assert_eq!(acknowledged.through(), 10);
        assert!(acknowledged.take_tails().is_empty());
        acknowledged.acknowledge(11, 2, Some(300));
        assert_eq!((acknowledged.through(), acknowledged.next(), acknowledged.outstanding()), (13, 15, 1));
        let tails = acknowledged.take_tails();
        assert_eq!(tails[&0], RelayTail { next_offset: 101, position: 12 });
        assert_eq!(tails.len(), 3);
        assert!(acknowledged.take_tails().is_empty());
    }

    #[test]
    fn what_the_topic_has_already_counts_as_acknowledged() {
        let mut acknowledged = Acknowledged::new(0);
        acknowledged.passed_over();
        acknowledged.sent(Instant::now());
        acknowledged.passed_over();
        assert_eq!(acknowledged.through(), 1);
        acknowledged.acknowledge(2, 0, Some(0));
        assert_eq!((acknowledged.through(), acknowledged.next()), (3, 4));
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_order_of_acknowledgements_none_is_passed(order in proptest::sample::subsequence((1..=40_i64).collect::<Vec<_>>(), 0..40)
            .prop_shuffle()) {
            let mut acknowledged = Acknowledged::new(0);
            (0..40).for_each(|_| acknowledged.sent(Instant::now()));
            let mut known = std::collections::BTreeSet::new();
            for position in order {
                acknowledged.acknowledge(position, (position % 3) as i32, Some(position));
                known.insert(position);
                let expected = (1..=40).find(|position| !known.contains(position)).unwrap_or(41) - 1;
                proptest::prop_assert_eq!(acknowledged.through(), expected);
            }
        }
    }
}
