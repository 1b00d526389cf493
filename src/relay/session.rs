//! One session of the active relay: from taking the lock to losing it, or to a fault that calls for a fresh look at the topic.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::crash_point::CrashPoint;
use crate::kafka::{
    Delivery, EVENTS_PARTITIONS, EVENTS_TOPIC, OutgoingRecord, PartitionTail, Publisher, SendError, TopicTail,
    ensure_topic, partition_of,
};
use crate::log::{EventLog, Position, RecordedEvent};
use crate::postgres::{RelaySession, RelayTail, slowest_positions};
use crate::projection::BUILT_IN;
use crate::relay::acknowledged::Acknowledged;
use crate::relay::budget::Budget;
use crate::relay::{Relay, pause_for};

/// How long a relay that stands by waits before it tries to become the active one.
pub(super) const STAND_BY: Duration = Duration::from_secs(1);
/// How many events are read at once.
const PAGE: usize = 1_000;
/// How many events may be sent and not yet acknowledged.
const OUTSTANDING_MAX: usize = 20_000;
/// An idle relay looks for itself this often, in case the bell was not heard.
const IDLE_LOOK: Duration = Duration::from_millis(200);
/// The pace under load: what is appended meanwhile goes out together, because records sent one by one cost the broker and
/// its consumers several times as much. An idle relay sends at once.
const PACE: Duration = Duration::from_millis(20);
/// While much is under way, the checkpoint moves this often.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(20);
/// How often a relay that has run ahead as far as it may looks whether the projections have come after.
const BUDGET_LOOK: Duration = Duration::from_millis(10);

/// How long a relay that is stopped waits for the broker to acknowledge what is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a session ended in good order.
pub(super) enum Ended {
    /// Another relay is the active one.
    StandingBy,
    /// Asked to.
    Stopped,
}

/// What ended a session.
pub(super) struct Setback {
    pub(super) reason: String,
    /// Whether it had got as far as publishing.
    pub(super) had_begun: bool,
}

impl<E: std::fmt::Display> From<E> for Setback {
    fn from(error: E) -> Self {
        Setback { reason: error.to_string(), had_begun: false }
    }
}

/// Runs one session.
pub(super) fn run<L: EventLog>(relay: &Relay<L>, runtime: &Handle, stop: &CancellationToken) -> Result<Ended, Setback> {
    let Some(mut lock) = runtime.block_on(RelaySession::begin(&relay.database))? else {
        pause_for(STAND_BY, runtime, stop);
        return Ok(Ended::StandingBy);
    };
    let publisher = Publisher::new(&relay.kafka)?;
    runtime.block_on(ensure_topic(&relay.kafka, EVENTS_TOPIC))?;
    let beginning = begin(relay, runtime, &mut lock)?;
    tracing::info!(from = beginning.from, "this relay is the active one");
    let mut session = Session {
        relay,
        runtime,
        stop,
        lock,
        publisher,
        acknowledged: Acknowledged::new(beginning.from),
        seen: [beginning.from; EVENTS_PARTITIONS as usize],
        present: beginning.present,
        strange: beginning.strange,
        strange_until: beginning.strange_until,
        held_tails: BTreeMap::new(),
        pending: VecDeque::new(),
        budget: Budget::default(),
        checkpointed: beginning.from,
        checkpoint_due: Instant::now(),
    };
    session.account_for_present()?;
    match session.publish() {
        Ok(()) => {
            runtime.block_on(session.lock.end());
            Ok(Ended::Stopped)
        }
        Err(setback) => {
            session.publisher.abandon();
            runtime.block_on(session.lock.end());
            Err(Setback { had_begun: true, ..setback })
        }
    }
}

/// Where a session begins.
struct Beginning {
    /// Everything up to here needs no look.
    from: Position,
    /// Up to which position each partition has everything already.
    present: BTreeMap<i32, Position>,
    /// Partitions whose note is another topic's, until everything up to `strange_until` is published.
    strange: Vec<i32>,
    strange_until: Position,
}

/// Compares what the topic ends with to what was noted last, and decides where to begin.
fn begin<L: EventLog>(relay: &Relay<L>, runtime: &Handle, lock: &mut RelaySession) -> Result<Beginning, Setback> {
    let (checkpoint, noted) = runtime.block_on(lock.checkpoint())?;
    let topic = TopicTail::new(&relay.kafka)?;
    let mut tails = BTreeMap::new();
    let mut strange = Vec::new();
    for partition in 0..EVENTS_PARTITIONS {
        // A record that only claims a position (anybody may write to the topic) must not make the relay pass events over.
        let tail = topic.look(partition, |position, key, value| {
            let Some(before) = position.checked_sub(1).filter(|before| *before >= 0) else { return Ok(false) };
            let logged = runtime.block_on(relay.log.read(before, 1))?;
            Ok::<_, Setback>(logged.first().is_some_and(|event| {
                let record = OutgoingRecord::of(event, before);
                event.position == position && record.key.as_bytes() == key && record.value == value
            }))
        })?;
        if let Some(noted) = noted.get(&partition)
            && !is_as_noted(&topic, partition, &tail, noted)?
        {
            strange.push(partition);
        }
        tails.insert(partition, tail);
    }
    // A topic that holds nothing while something has been published: even partitions without a note are not what they were.
    let is_another = !strange.is_empty() || (checkpoint > 0 && tails.values().all(|tail| tail.end == 0));
    if !is_another {
        let last =
            |(partition, tail): (i32, PartitionTail)| (partition, tail.last_position.unwrap_or(0).max(checkpoint));
        let present = tails.into_iter().map(last).collect();
        return Ok(Beginning { from: checkpoint, present, strange, strange_until: checkpoint });
    }
    if !relay.kafka.embedded {
        tracing::warn!(
            partitions = ?strange,
            "the topic does not end with what was published last: it was made anew, is another cluster's, or was restored from \
             the past; publishing again from where the projections are"
        );
    }
    let taken = runtime.block_on(slowest_positions(relay.database.pool(), &BUILT_IN, EVENTS_PARTITIONS))?;
    let present: BTreeMap<i32, Position> = tails
        .iter()
        .map(|(partition, tail)| {
            let taken = taken.get(partition).copied().unwrap_or(0);
            (*partition, tail.last_position.unwrap_or(0).max(taken))
        })
        .collect();
    let from = present.values().min().copied().unwrap_or(0).min(checkpoint);
    // The notes stay until the new topic has what they stand for: a relay that ends half-way is followed by one that sees the
    // same strangeness.
    let strange = noted.keys().copied().collect();
    Ok(Beginning { from, present, strange, strange_until: checkpoint })
}

fn is_as_noted(topic: &TopicTail, partition: i32, tail: &PartitionTail, noted: &RelayTail) -> Result<bool, Setback> {
    let offset = noted.next_offset - 1;
    if tail.end <= offset {
        return Ok(false);
    }
    // What retention has removed cannot be compared; the end alone has to do then.
    Ok(tail.low > offset || topic.position_at(partition, offset)? == Some(noted.position))
}

struct Session<'a, L> {
    relay: &'a Relay<L>,
    runtime: &'a Handle,
    stop: &'a CancellationToken,
    lock: RelaySession,
    publisher: Publisher,
    acknowledged: Acknowledged,
    /// The last event of each partition that was sent or passed over; before the first one, where this session began.
    seen: [Position; EVENTS_PARTITIONS as usize],
    present: BTreeMap<i32, Position>,
    strange: Vec<i32>,
    strange_until: Position,
    /// New notes that wait until everything up to `strange_until` is published: written before, they would hide from the next
    /// relay that the topic still lacks the rest.
    held_tails: BTreeMap<i32, RelayTail>,
    /// Read and not yet sent.
    pending: VecDeque<RecordedEvent>,
    budget: Budget,
    checkpointed: Position,
    checkpoint_due: Instant,
}

impl<L: EventLog> Session<'_, L> {
    /// Publishes until stopped. On stop, what is under way is waited for, within bounds.
    fn publish(&mut self) -> Result<(), Setback> {
        let mut stop_by = None;
        loop {
            let stopping = self.stop.is_cancelled();
            if stopping && Instant::now() > *stop_by.get_or_insert_with(|| Instant::now() + STOP_PATIENCE) {
                // The next relay looks at the topic and finds out what has become of it.
                return Err(Setback::from("the broker has not acknowledged everything before the stop"));
            }
            let has_room = self.acknowledged.outstanding() < OUTSTANDING_MAX;
            let mut has_more = false;
            if !stopping && has_room && self.pending.is_empty() {
                has_more = self.read()?;
                // A session that was ended while there was nothing to do is noticed before anything is sent: another relay may
                // be at it already. While much is under way, the checkpoint notices.
                if self.acknowledged.outstanding() == 0 && !self.pending.is_empty() {
                    self.runtime.block_on(self.lock.assert_held())?;
                }
            }
            let is_held_up = !self.send()?;
            self.take_deliveries()?;
            self.checkpoint()?;
            if self.acknowledged.outstanding() > 0 {
                // A backlog is not to be paced.
                if !has_more {
                    std::thread::sleep(PACE);
                }
            } else if stopping {
                return self.checkpoint();
            } else if is_held_up {
                pause_for(BUDGET_LOOK, self.runtime, self.stop);
            } else if self.pending.is_empty() {
                self.rest();
            }
        }
    }

    /// What an earlier session has left in the embedded broker, and the projections have not taken, counts too.
    fn account_for_present(&mut self) -> Result<(), Setback> {
        if !self.relay.kafka.embedded {
            return Ok(());
        }
        let pool = self.relay.database.pool();
        let taken = self.runtime.block_on(slowest_positions(pool, &BUILT_IN, EVENTS_PARTITIONS))?;
        let mut after = taken.values().min().copied().unwrap_or(0);
        let through = self.present.values().max().copied().unwrap_or(0);
        while after < through {
            let page = self.runtime.block_on(self.relay.log.read(after, PAGE))?;
            let Some(last) = page.last() else { break };
            after = last.position;
            for event in page {
                let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
                let is_present = self.present.get(&partition).is_some_and(|present| event.position <= *present);
                if is_present && taken.get(&partition).is_none_or(|taken| event.position > *taken) {
                    self.budget.spend(
                        partition,
                        event.position,
                        OutgoingRecord::of(&event, event.position - 1).bytes(),
                    );
                }
            }
        }
        Ok(())
    }

    /// Reads on; whether there may be more at once.
    fn read(&mut self) -> Result<bool, Setback> {
        let after = self.acknowledged.next() - 1;
        let page = self.runtime.block_on(self.relay.log.read(after, PAGE))?;
        for (event, expected) in page.iter().zip(after + 1..) {
            if event.position != expected {
                return Err(Setback::from(format!(
                    "the log has position {} where {expected} should be",
                    event.position
                )));
            }
        }
        let is_full = page.len() == PAGE;
        self.pending.extend(page);
        Ok(is_full)
    }

    /// Sends what has been read. `false` if the projections have to come after first.
    fn send(&mut self) -> Result<bool, Setback> {
        let bounded = self.relay.kafka.embedded;
        if bounded && self.budget.is_spent() {
            let pool = self.relay.database.pool();
            let taken = self.runtime.block_on(slowest_positions(pool, &BUILT_IN, EVENTS_PARTITIONS))?;
            self.budget.taken(&taken);
        }
        while let Some(event) = self.pending.front() {
            let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
            let seen = &mut self.seen[partition as usize];
            if self.present.get(&partition).is_some_and(|present| event.position <= *present) {
                *seen = event.position;
                self.acknowledged.passed_over();
                self.pending.pop_front();
                continue;
            }
            if bounded && self.budget.is_spent() {
                return Ok(false);
            }
            let record = OutgoingRecord::of(event, *seen);
            CrashPoint::BeforeSend.pass();
            match self.publisher.send(event.position, partition, event.recorded_at.timestamp_millis(), &record) {
                Ok(()) => {}
                Err(SendError::Full) => break,
                Err(SendError::Failed(reason)) => return Err(Setback::from(reason)),
            }
            CrashPoint::AfterSend.pass();
            *seen = event.position;
            self.acknowledged.sent();
            if bounded {
                self.budget.spend(partition, event.position, record.bytes());
            }
            self.pending.pop_front();
        }
        Ok(true)
    }

    fn take_deliveries(&mut self) -> Result<(), Setback> {
        for Delivery { position, partition, offset } in self.publisher.deliveries() {
            match offset {
                Ok(offset) => self.acknowledged.acknowledge(position, partition, offset),
                Err(reason) => {
                    return Err(Setback::from(format!("the broker does not take position {position}: {reason}")));
                }
            }
        }
        match self.publisher.fatal_error() {
            Some(reason) => Err(Setback::from(format!("the producer cannot go on: {reason}"))),
            None => Ok(()),
        }
    }

    /// Moves the checkpoint over what is acknowledged: now and then while much is under way, at once when nothing is.
    fn checkpoint(&mut self) -> Result<(), Setback> {
        let through = self.acknowledged.through();
        let is_quiet = self.acknowledged.outstanding() == 0;
        if through == self.checkpointed || (!is_quiet && Instant::now() < self.checkpoint_due) {
            return Ok(());
        }
        CrashPoint::BeforeCheckpoint.pass();
        self.held_tails.extend(self.acknowledged.take_tails());
        if through < self.strange_until {
            self.checkpointed = through;
            self.runtime.block_on(self.lock.assert_held())?;
            self.checkpoint_due = Instant::now() + CHECKPOINT_EVERY;
            return Ok(());
        }
        let tails = std::mem::take(&mut self.held_tails);
        self.runtime.block_on(self.lock.move_checkpoint(through, &tails))?;
        self.strange.retain(|partition| !tails.contains_key(partition));
        if !self.strange.is_empty() {
            self.runtime.block_on(self.lock.forget_tails(&std::mem::take(&mut self.strange)))?;
        }
        self.checkpointed = through;
        self.checkpoint_due = Instant::now() + CHECKPOINT_EVERY;
        Ok(())
    }

    /// Nothing to do: until the bell rings, or it is time to look.
    fn rest(&self) {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.relay.bell.wait(IDLE_LOOK) => {}
                () = self.stop.cancelled() => {}
            }
        });
    }
}
