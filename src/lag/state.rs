//! The word for how something stands, from the facts. Pure.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::postgres::RelayState;

/// From this time on without progress, while there is something to do, it does not move but is stuck. Longer than a
/// group takes to be balanced anew after one of its members has died.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// From this time on the copy has known of a transfer's paying leg, a transfer without its receiving one is overdue: that follows
/// within milliseconds, or some seconds after a server has died in between. What lasts is a return to a payer who has no room for it.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(60);

/// How the ingest, the outbox, a group or one partition of it stands. Where several are true it is the one to look at first: the
/// order here, from the least urgent to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Nothing waits.
    Idle,
    /// Something waits, and it gets less or has only just come.
    Moving,
    /// It goes on, but for wallets of which records were put aside, or withheld from the topic.
    Parked,
    /// Something has been waiting for [`STUCK_AFTER`], and as long nothing has moved.
    Stuck,
    /// As many records were put aside as may be, so a partition that would have to put aside more is paused.
    Full,
    /// The group has never come to anything, though there are events for it: it has begun just now, or it never could.
    NeverCommitted,
    /// The money of a transfer has been on its way for longer than [`OVERDUE_AFTER`].
    TransferOverdue,
    /// Nobody is in the group, so whatever comes will wait.
    GroupAbsent,
    /// The broker does not have the topic.
    TopicAbsent,
    /// The broker does not answer.
    BrokerAway,
    /// The event store does not answer, so no command is taken either.
    StoreAway,
    /// The event store is not the one that was copied, or was put back to an earlier state. No command is taken.
    AnotherStore,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            State::Idle => "idle",
            State::Moving => "moving",
            State::Parked => "parked",
            State::Stuck => "stuck",
            State::Full => "full",
            State::NeverCommitted => "never committed",
            State::TransferOverdue => "transfer overdue",
            State::GroupAbsent => "group absent",
            State::TopicAbsent => "topic absent",
            State::BrokerAway => "broker away",
            State::StoreAway => "store away",
            State::AnotherStore => "another store",
        })
    }
}

/// What the broker said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broker {
    /// Nothing.
    Away,
    /// It answers, and has no such topic.
    WithoutTopic,
    /// It has the topic.
    Serving,
}

impl Broker {
    fn state(self) -> State {
        match self {
            Broker::Away => State::BrokerAway,
            Broker::WithoutTopic => State::TopicAbsent,
            Broker::Serving => State::Idle,
        }
    }
}

/// Something that waits to be dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// How long the oldest has.
    pub oldest: Duration,
    /// How long ago there was progress last; `None` if there never was.
    pub unmoved: Option<Duration>,
}

impl Waiting {
    fn state(self) -> State {
        // What came a moment ago, after hours of quiet, is not stuck; nor is an old backlog that is being worked off.
        let without_progress = self.unmoved.map_or(self.oldest, |unmoved| unmoved.min(self.oldest));
        if without_progress >= STUCK_AFTER { State::Stuck } else { State::Moving }
    }
}

/// How one partition of a group stands, or the outbox but for the broker.
pub(super) fn state_of(waiting: Option<Waiting>) -> State {
    waiting.map_or(State::Idle, Waiting::state)
}

/// What is known of the outbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct OutboxFacts {
    pub broker: Broker,
    pub waiting: Option<Waiting>,
    /// What the relay says of itself.
    pub relay: RelayState,
    /// Whether it leaves out wallets whose events are too large.
    pub withholds: bool,
}

/// How the outbox stands.
pub(super) fn outbox_state(facts: &OutboxFacts) -> State {
    // A relay that is blocked says so at once, before anything has waited for long.
    let relay = if facts.relay == RelayState::Blocked { State::Stuck } else { State::Idle };
    let withheld = if facts.withholds { State::Parked } else { State::Idle };
    facts.broker.state().max(state_of(facts.waiting)).max(relay).max(withheld)
}

/// What is known of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupFacts {
    pub broker: Broker,
    /// How many members Kafka says that it has; `None` where it does not say.
    pub members: Option<usize>,
    /// Whether it has ever taken an event.
    pub has_begun: bool,
    /// The most urgent of its partitions.
    pub partitions: State,
    /// How many records it has put aside.
    pub parked: i64,
}

/// How a group stands.
pub(super) fn group_state(facts: &GroupFacts) -> State {
    let members = if facts.members == Some(0) { State::GroupAbsent } else { State::Idle };
    let parked = if facts.parked > 0 { State::Parked } else { State::Idle };
    let partitions = match facts.partitions {
        State::Moving | State::Stuck if !facts.has_begun => State::NeverCommitted,
        state => state,
    };
    facts.broker.state().max(members).max(parked).max(partitions)
}

/// Whether somebody should look, because it will not come right by just going on: `partitions` is the most urgent of them. A
/// group that has parked wallets serves all others, and one that has only just begun is given its time.
pub(super) fn needs_help(state: State, partitions: State) -> bool {
    matches!(partitions, State::Stuck | State::Full) || state >= State::TransferOverdue
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: GroupFacts =
        GroupFacts { broker: Broker::Serving, members: Some(2), has_begun: true, partitions: State::Idle, parked: 0 };

    fn waiting(oldest_seconds: u64, unmoved_seconds: impl Into<Option<u64>>) -> Option<Waiting> {
        let unmoved = unmoved_seconds.into().map(Duration::from_secs);
        Some(Waiting { oldest: Duration::from_secs(oldest_seconds), unmoved })
    }

    #[test]
    fn what_waits_is_stuck_only_if_neither_it_is_new_nor_anything_has_moved() {
        assert_eq!(state_of(None), State::Idle);
        assert_eq!(state_of(waiting(1, 86_400)), State::Moving, "it has come just now, after a quiet day");
        assert_eq!(state_of(waiting(86_400, 1)), State::Moving, "a backlog of a day that is worked off");
        assert_eq!(state_of(waiting(29, 29)), State::Moving);
        assert_eq!(state_of(waiting(30, 30)), State::Stuck);
        assert_eq!(state_of(waiting(30, None)), State::Stuck, "it has never moved");
        assert_eq!(state_of(waiting(5, None)), State::Moving);
    }

    #[test]
    fn the_outbox_waits_for_a_broker_before_it_is_called_stuck() {
        let well =
            OutboxFacts { broker: Broker::Serving, waiting: None, relay: RelayState::Publishing, withholds: false };
        let stuck = OutboxFacts { waiting: waiting(90, 90), ..well };
        for (state, facts) in [
            (State::Idle, well),
            (State::Moving, OutboxFacts { waiting: waiting(1, 90), ..well }),
            (State::Parked, OutboxFacts { withholds: true, ..well }),
            (State::Stuck, stuck),
            (State::Stuck, OutboxFacts { relay: RelayState::Blocked, ..well }),
            (State::TopicAbsent, OutboxFacts { broker: Broker::WithoutTopic, ..stuck }),
            (State::BrokerAway, OutboxFacts { broker: Broker::Away, ..stuck }),
            // Nothing waits now, but what comes will.
            (State::BrokerAway, OutboxFacts { broker: Broker::Away, ..well }),
        ] {
            assert_eq!(outbox_state(&facts), state, "{facts:?}");
        }
    }

    #[test]
    fn each_state_of_a_group_has_facts_of_its_own() {
        let states = [
            (State::Idle, WELL),
            (State::Moving, GroupFacts { partitions: State::Moving, ..WELL }),
            (State::Moving, GroupFacts { partitions: State::Moving, members: None, ..WELL }),
            (State::Parked, GroupFacts { parked: 1, ..WELL }),
            (State::Parked, GroupFacts { parked: 1, partitions: State::Moving, ..WELL }),
            (State::NeverCommitted, GroupFacts { has_begun: false, partitions: State::Moving, ..WELL }),
            (State::Idle, GroupFacts { has_begun: false, ..WELL }),
            (State::Stuck, GroupFacts { partitions: State::Stuck, parked: 1, ..WELL }),
            (State::Full, GroupFacts { partitions: State::Full, parked: 100, ..WELL }),
            (State::NeverCommitted, GroupFacts { partitions: State::Stuck, has_begun: false, ..WELL }),
            (State::GroupAbsent, GroupFacts { members: Some(0), partitions: State::Stuck, ..WELL }),
            (State::GroupAbsent, GroupFacts { members: Some(0), has_begun: false, ..WELL }),
            (State::TopicAbsent, GroupFacts { broker: Broker::WithoutTopic, members: Some(0), ..WELL }),
            (State::BrokerAway, GroupFacts { broker: Broker::Away, members: None, partitions: State::Stuck, ..WELL }),
        ];
        for (state, facts) in states {
            assert_eq!(group_state(&facts), state, "{facts:?}");
        }
    }
    #[test]
    fn help_is_called_for_what_does_not_come_right_by_itself() {
        for (state, partitions, expected) in [
            (State::Idle, State::Idle, false),
            (State::Moving, State::Moving, false),
            (State::Parked, State::Moving, false),
            (State::NeverCommitted, State::Moving, false),
            (State::NeverCommitted, State::Stuck, true),
            (State::Stuck, State::Stuck, true),
            (State::Full, State::Full, true),
            (State::GroupAbsent, State::Idle, true),
            (State::TopicAbsent, State::Idle, true),
            (State::BrokerAway, State::Idle, true),
            (State::StoreAway, State::Idle, true),
            (State::TransferOverdue, State::Idle, true),
            (State::AnotherStore, State::Idle, true),
        ] {
            assert_eq!(needs_help(state, partitions), expected, "{state}, {partitions}");
        }
    }
}
