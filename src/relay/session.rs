//! One session of the active relay: from taking the lease to losing it, or to a fault that calls for a fresh look at the topic.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::crash_point::CrashPoint;
use crate::kafka::{
    Delivery, EVENTS_PARTITIONS, EVENTS_TOPIC, OutgoingRecord, Publisher, RECORD_BYTES_MAX, Refusal, STALL_MAX,
    SendError, batch_bytes_max, ensure_topic, partition_of,
};
use crate::log::{EventLog, Position, ReadAhead, RecordedEvent};
use crate::postgres::{RelayState, slowest_positions};
use crate::projection::BUILT_IN;
use crate::relay::acknowledged::Acknowledged;
use crate::relay::beginning::{Present, begin};
use crate::relay::budget::Budget;
use crate::relay::lease::Lease;
use crate::relay::setback::{Setback, about_the_topic};
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
/// its consumers several times as much: on a real Kafka beside it 50 ms instead of 20 took a load test from 3,900 to 5,300
/// commands a second. An idle relay sends at once.
const PACE: Duration = Duration::from_millis(50);
/// While much is under way, the checkpoint moves this often.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(20);
/// How often a relay that has run ahead as far as it may looks whether the projections have come after.
const BUDGET_LOOK: Duration = Duration::from_millis(10);

/// What a batch takes in the topic beside its records.
pub(super) const BATCH_BYTES: usize = 61;

/// How long a relay that is stopped waits for the broker to acknowledge what is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How a session ended in good order.
pub(super) enum Ended {
    /// Another relay is the active one.
    StandingBy,
    /// What the topic takes has changed: it is worth a fresh look.
    Changed,
    /// Asked to.
    Stopped,
}

/// Runs one session. `standing` is what became of the one before, for those who look while this one begins.
pub(super) fn run<L: EventLog>(
    relay: &Relay<L>,
    runtime: &Handle,
    stop: &CancellationToken,
    standing: (RelayState, &str),
    ask_limit: bool,
) -> Result<Ended, Setback> {
    let (state, reason) = standing;
    let Some(mut lease) = Lease::take(&relay.database, runtime, state, reason)? else {
        pause_for(STAND_BY, runtime, stop);
        return Ok(Ended::StandingBy);
    };
    let ended = publish(relay, runtime, stop, &mut lease, ask_limit);
    // Where the database is away, nobody can be told.
    let _ = match &ended {
        Ok(Ended::Stopped) => lease.say(RelayState::Absent, Some("it was stopped".to_owned())),
        Ok(_) => Ok(()),
        Err(setback) => lease.say(setback.state, Some(setback.reason.clone())),
    };
    lease.end();
    ended
}

fn publish<L: EventLog>(
    relay: &Relay<L>,
    runtime: &Handle,
    stop: &CancellationToken,
    lease: &mut Lease<'_>,
    ask_limit: bool,
) -> Result<Ended, Setback> {
    runtime.block_on(ensure_topic(&relay.kafka, EVENTS_TOPIC)).map_err(about_the_topic)?;
    let withheld = lease.ask(async |session| session.withheld().await)?;
    let ask_limit = ask_limit || !withheld.is_empty();
    let said = if ask_limit { runtime.block_on(batch_bytes_max(&relay.kafka)) } else { None };
    let publisher = Publisher::new(&relay.kafka, said.unwrap_or(RECORD_BYTES_MAX))?;
    let beginning = begin(relay, runtime, stop, lease)?;
    // An answer to this shows that the lease was held for as long as the topic was looked at.
    match &beginning.refill {
        Some((reason, _)) => lease.say(RelayState::Refilling, Some(reason.clone()))?,
        None => lease.say(RelayState::Publishing, None)?,
    }
    tracing::info!(from = beginning.from, "this relay is the active one");
    let mut session = Session {
        relay,
        runtime,
        stop,
        lease,
        publisher,
        record_bytes_max: said.unwrap_or(RECORD_BYTES_MAX),
        has_asked_limit: ask_limit,
        acknowledged: Acknowledged::new(beginning.from),
        seen: [beginning.from; EVENTS_PARTITIONS as usize],
        ends: beginning.present.iter().map(|present| present.end).collect(),
        present: beginning.present,
        refill_to: beginning.refill.map_or(beginning.from, |(_, to)| to),
        withheld: HashSet::new(),
        pages: ReadAhead::new(relay.log.clone(), PAGE),
        pending: VecDeque::new(),
        budget: Budget::default(),
        checkpointed: beginning.from,
        checkpoint_due: Instant::now(),
        watch_due: Instant::now() + super::watch::EVERY,
    };
    let ended =
        session.account_for_present().and_then(|()| session.publish_late(withheld)).and_then(|()| session.publish());
    if !matches!(ended, Ok(Ended::Stopped)) {
        session.publisher.abandon();
    }
    ended.map_err(|setback| Setback { had_begun: true, ..setback })
}

pub(super) struct Session<'a, 'b, L> {
    pub(super) relay: &'a Relay<L>,
    pub(super) runtime: &'a Handle,
    pub(super) stop: &'a CancellationToken,
    pub(super) lease: &'a mut Lease<'b>,
    pub(super) publisher: Publisher,
    /// How many bytes a record may take.
    pub(super) record_bytes_max: usize,
    /// Whether the topic was asked, or that is only assumed: it is asked where there is a reason, because few topics take less
    /// than what is assumed, and not every broker answers.
    has_asked_limit: bool,
    pub(super) acknowledged: Acknowledged,
    /// The last event of each partition that was sent or passed over; before the first one, where this session began.
    seen: [Position; EVENTS_PARTITIONS as usize],
    /// What each partition had when this session began.
    pub(super) present: Vec<Present>,
    /// The offset that the next record of each partition will get at least.
    pub(super) ends: Vec<i64>,
    /// Up to where the topic had been filled when it was another one.
    pub(super) refill_to: Position,
    /// Wallets whose events do not go to the topic.
    pub(super) withheld: HashSet<String>,
    pages: ReadAhead<L>,
    /// Read and not yet sent.
    pending: VecDeque<RecordedEvent>,
    budget: Budget,
    checkpointed: Position,
    checkpoint_due: Instant,
    pub(super) watch_due: Instant,
}

impl<L: EventLog> Session<'_, '_, L> {
    /// Publishes until stopped. On stop, what is under way is waited for, within bounds.
    fn publish(&mut self) -> Result<Ended, Setback> {
        let mut stop_by = None;
        loop {
            let stopping = self.stop.is_cancelled();
            if stopping && Instant::now() > *stop_by.get_or_insert_with(|| Instant::now() + STOP_PATIENCE) {
                // The next relay looks at the topic and finds out what has become of it.
                return Err(Setback::from("the broker has not acknowledged everything before the stop"));
            }
            let has_room = self.acknowledged.outstanding() < OUTSTANDING_MAX;
            let has_more = !stopping && has_room && self.pending.is_empty() && self.read()?;
            // A session that was ended while there was nothing to do is noticed before anything is sent: another relay may be at it
            // already. While much is under way, the checkpoint notices.
            if self.acknowledged.outstanding() == 0 && !self.pending.is_empty() {
                self.lease.confirm()?;
            }
            let is_held_up = !self.send()?;
            self.take_deliveries()?;
            self.checkpoint()?;
            if self.lease.is_heartbeat_due() {
                self.say_how_it_stands(is_held_up)?;
            }
            if Instant::now() >= self.watch_due && self.watch()? {
                return Ok(Ended::Changed);
            }
            if self.acknowledged.outstanding() > 0 {
                // A backlog is not to be paced.
                if !has_more {
                    std::thread::sleep(PACE);
                }
            } else if stopping {
                self.checkpoint()?;
                return Ok(Ended::Stopped);
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
        let through = self.present.iter().map(Present::last).max().unwrap_or(0);
        while after < through {
            let page = self.runtime.block_on(self.relay.log.read(after, PAGE))?;
            let Some(last) = page.last() else { break };
            after = last.position;
            for event in page {
                let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
                let is_present = self.present[partition as usize].has(event.position);
                if is_present && taken.get(&partition).is_none_or(|taken| event.position > *taken) {
                    let bytes = OutgoingRecord::of(&event, event.position - 1).bytes();
                    self.budget.spend(partition, event.position, bytes);
                }
            }
        }
        Ok(())
    }

    /// Reads on; whether there may be more at once.
    fn read(&mut self) -> Result<bool, Setback> {
        let after = self.acknowledged.next() - 1;
        let page = self.runtime.block_on(self.pages.after(after))?;
        for (event, expected) in page.iter().zip(after + 1..) {
            if event.position != expected {
                return Err(Setback::blocked(format!(
                    "the log has position {} where {expected} should be; nothing is published past a gap",
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
            let follows = self.seen[partition as usize];
            let is_passed_over =
                self.present[partition as usize].has(event.position) || self.withheld.contains(event.stream.as_str());
            if !is_passed_over {
                if bounded && self.budget.is_spent() {
                    return Ok(false);
                }
                let record = OutgoingRecord::of(event, follows);
                self.lease.assert_held()?;
                CrashPoint::BeforeSend.pass();
                match self.hand_over(event, partition, &record) {
                    Ok(()) => {}
                    Err(SendError::Full) => break,
                    Err(SendError::TooLarge) if !self.has_asked_limit => {
                        return Err(Setback::too_large(event.position));
                    }
                    Err(SendError::TooLarge) => {
                        let event = event.clone();
                        self.withhold(&event, partition, record.bytes() + BATCH_BYTES)?;
                        continue;
                    }
                    Err(SendError::Failed(reason)) => return Err(Setback::from(reason)),
                }
                CrashPoint::AfterSend.pass();
                if bounded {
                    self.budget.spend(partition, event.position, record.bytes());
                }
                self.acknowledged.sent(Instant::now());
            } else {
                self.acknowledged.passed_over();
            }
            self.seen[partition as usize] = event.position;
            self.pending.pop_front();
        }
        Ok(true)
    }

    /// Hands a record to the client.
    pub(super) fn hand_over(
        &self,
        event: &RecordedEvent,
        partition: i32,
        record: &OutgoingRecord,
    ) -> Result<(), SendError> {
        if record.bytes() + BATCH_BYTES > self.record_bytes_max {
            return Err(SendError::TooLarge);
        }
        self.publisher.send(event.position, partition, event.recorded_at.timestamp_millis(), record)
    }

    fn take_deliveries(&mut self) -> Result<(), Setback> {
        for (position, partition, offset) in self.acknowledgements()? {
            self.acknowledged.acknowledge(position, partition, offset);
        }
        let stalled = self.acknowledged.oldest_sent_at().is_some_and(|sent_at| sent_at.elapsed() > STALL_MAX);
        if stalled {
            let position = self.acknowledged.through() + 1;
            return Err(Setback::from(format!(
                "position {position} is not acknowledged for {} s: {}",
                STALL_MAX.as_secs(),
                self.publisher.trouble()
            )));
        }
        Ok(())
    }

    /// What the broker has taken, with partition and offset.
    pub(super) fn acknowledgements(&mut self) -> Result<Vec<(Position, i32, Option<i64>)>, Setback> {
        let mut all = Vec::new();
        for Delivery { position, partition, offset } in self.publisher.deliveries() {
            let offset = offset.map_err(|refusal| self.refused(position, refusal))?;
            if let Some(offset) = offset {
                let end = &mut self.ends[partition as usize];
                if offset < *end {
                    return Err(Setback::from(format!(
                        "partition {partition} has gone back from offset {end} to {offset}: the topic is another one"
                    )));
                }
                *end = offset + 1;
            }
            all.push((position, partition, offset));
        }
        match self.publisher.fatal_error() {
            // What has become of the record that this is about may not be told yet.
            Some(reason) => {
                Err(Setback { ask_limit: true, ..Setback::from(format!("the producer cannot go on: {reason}")) })
            }
            None => Ok(all),
        }
    }

    fn refused(&self, position: Position, refusal: Refusal) -> Setback {
        let reason = format!("the broker does not take position {position}: {}", refusal.reason);
        if refusal.is_too_large && !self.has_asked_limit {
            Setback::too_large(position)
        } else if refusal.is_too_large {
            // The topic's setting has changed meanwhile, or cannot be read.
            Setback { ask_limit: true, ..Setback::blocked(reason) }
        } else {
            // It may be the echo of another one, which was too large.
            Setback { ask_limit: true, ..Setback::from(reason) }
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
        let tails = self.acknowledged.take_tails();
        self.lease.ask(async |session| session.move_checkpoint(through, &tails).await)?;
        self.checkpointed = through;
        self.checkpoint_due = Instant::now() + CHECKPOINT_EVERY;
        if self.lease.state() == RelayState::Refilling && through >= self.refill_to {
            self.lease.say(RelayState::Publishing, None)?;
        }
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
