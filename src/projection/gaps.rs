//! What the topic does not have: the log is asked, and what is missing is read from there.
//!
//! A checkpoint stands for *every* event of its partition up to its position, so it moves only to where the log says
//! there is none in between that was not applied. In the common case the next record says so itself: its header `follows` names
//! a position that the checkpoint has. Wherever it does not (records are missing before it, or it has no such header, or none
//! comes at all), the log decides. Offsets prove nothing: a topic that was deleted and made anew may have grown to the very
//! offset at which a runner reads on. So neither that, nor a topic that has lost records, nor a relay's checkpoint that was made
//! on another topic can make a projection pass over an event.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::kafka::{EVENTS_PARTITIONS, partition_of};
use crate::log::{EventLog, Position, ReadAhead};
use crate::postgres::{last_events_between, published};
use crate::projection::Projection;
use crate::projection::apply::unless_stopped;
use crate::projection::intake::Gathering;
use crate::projection::persevere::Interrupted;
use crate::projection::record::Item;
use crate::projection::runner::Loop;

/// After the last record, how soon the runner looks whether it is through; it looks less and less often then.
const IDLE_LOOK_MIN: Duration = Duration::from_millis(20);
/// How often it looks at most while records come, and at least while none do.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long an event may be published and not come, while no other does, until it is read from the log.
const TOPIC_PATIENCE: Duration = Duration::from_secs(2);
/// The same for a partition that is quiet while others are not: its records may stand behind theirs for a while, or never come,
/// as from a topic made anew whose end is not yet where the client reads on.
const BUSY_TOPIC_PATIENCE: Duration = Duration::from_secs(10);
/// How much of the log is looked at in one statement, in positions.
const LOOK_PAGE: Position = 20_000;
/// How many events are read from the log at once.
const FILL_PAGE: usize = 1_000;
/// How often the consumer is polled while it is not read from.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl<P: Projection, L: EventLog> Loop<P, L> {
    /// Applies what the topic lacks of a partition up to a position, if it lacks anything.
    pub(super) fn close_gap(&mut self, partition: i32, to: Position) -> Result<(), Interrupted> {
        let Some(mut from) = self.position(partition) else {
            return Ok(());
        };
        while from < to {
            let end = to.min(from + LOOK_PAGE);
            if self.lacking(&BTreeMap::from([(partition, from)]), from, end)?.contains(&partition) {
                // What one partition lacks the others may well lack too: one pass over the log is for all of them.
                let partitions = self.assigned.places().keys().copied().collect();
                return self.fill(&partitions, to);
            }
            from = end;
        }
        Ok(())
    }

    /// Applies every event of these partitions up to a position, from the log.
    fn fill(&mut self, partitions: &BTreeSet<i32>, to: Position) -> Result<(), Interrupted> {
        let beginnings: Vec<Position> = partitions.iter().filter_map(|partition| self.position(*partition)).collect();
        let Some(first) = beginnings.into_iter().min() else {
            return Ok(());
        };
        let mut pages = ReadAhead::new(self.log.clone(), FILL_PAGE);
        let mut from = first;
        let mut filled = 0;
        let mut alive_at = Instant::now();
        while from < to {
            let mut page = self.persevere(|this| {
                let page = this.runtime.block_on(pages.after(from))?;
                if page.is_empty() {
                    Err(format!("the log has nothing after position {from}").into())
                } else {
                    Ok(page)
                }
            })?;
            page.retain(|recorded| recorded.position <= to);
            let end = page.last().map_or(to, |last| last.position);
            let mut gathering = Gathering::default();
            for recorded in &page {
                let partition = partition_of(recorded.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
                if partitions.contains(&partition)
                    && let Some(place) = gathering.place(&self.assigned, partition)
                    && recorded.position > place.checkpoint.position
                {
                    place.checkpoint.position = recorded.position;
                    gathering.batch.push(Item::from_log(partition, recorded));
                    filled += 1;
                }
            }
            for partition in partitions {
                if let Some(place) = gathering.place(&self.assigned, *partition) {
                    place.checkpoint.position = place.checkpoint.position.max(end);
                }
            }
            self.flush(&mut gathering)?;
            if partitions.iter().all(|partition| self.position(*partition).is_none()) {
                // All of them are gone, or held.
                break;
            }
            from = end;
            if alive_at.elapsed() >= KEEP_ALIVE {
                self.stay_a_member();
                alive_at = Instant::now();
            }
            if self.stop.is_cancelled() {
                return Err(Interrupted::Stopped);
            }
        }
        self.resume();
        if filled > 0 {
            tracing::info!(
                projection = self.name,
                after = first,
                to,
                filled,
                "events that did not come by the topic were read from the log"
            );
        }
        Ok(())
    }

    /// Moves the checkpoints of partitions that have nothing left to read up to what the relay has published, so that a
    /// restart need not look at their past again, and so that everybody can see that this projection is through.
    pub(super) fn look(&mut self) -> Result<(), Interrupted> {
        let is_idle = self.looks.idle_for() >= IDLE_LOOK_MIN;
        let patience = match self.looks.idle_for() >= TOPIC_PATIENCE {
            true => Duration::ZERO,
            false => BUSY_TOPIC_PATIENCE,
        };
        let through = self.persevere(|this| {
            let asking = unless_stopped(&this.stop, published(&this.pool));
            Ok(this.runtime.block_on(asking)?)
        })?;
        loop {
            // While records come, a partition that has just had one moves by itself.
            let behind: BTreeMap<i32, Position> = {
                let places = self.assigned.places();
                let behind = places.values().filter(|place| {
                    (is_idle || place.quiet_since.is_some()) && !place.is_held && place.checkpoint.position < through
                });
                behind.map(|place| (place.checkpoint.partition, place.checkpoint.position)).collect()
            };
            let Some(from) = behind.values().min().copied() else {
                break;
            };
            let to = through.min(from + LOOK_PAGE);
            let lacking = self.lacking(&behind, from, to)?;
            let mut gathering = Gathering::default();
            for partition in behind.keys().filter(|partition| !lacking.contains(partition)) {
                if let Some(place) = gathering.place(&self.assigned, *partition) {
                    place.checkpoint.position = place.checkpoint.position.max(to);
                }
            }
            self.flush(&mut gathering)?;
            let overdue = self.quiet_for(&lacking, patience);
            if !overdue.is_empty() {
                self.fill(&overdue, to)?;
            } else if !lacking.is_empty() || !is_idle {
                break;
            }
        }
        for place in self.assigned.places().values_mut() {
            place.quiet_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Which of these partitions have events after their position, by what the log holds after `from` and up to `to`.
    fn lacking(
        &mut self,
        positions: &BTreeMap<i32, Position>,
        from: Position,
        to: Position,
    ) -> Result<BTreeSet<i32>, Interrupted> {
        let last = self.persevere(|this| {
            let asking = unless_stopped(&this.stop, last_events_between(&this.pool, from, to));
            Ok(this.runtime.block_on(asking)?)
        })?;
        let of = |(wallet, last): (String, Position)| (partition_of(wallet.as_bytes(), EVENTS_PARTITIONS), last);
        let lacks = |(partition, last): &(i32, Position)| positions.get(partition).is_some_and(|at| last > at);
        Ok(last.into_iter().map(of).filter(lacks).map(|(partition, _)| partition).collect())
    }

    /// Those of these partitions from which nothing has come for so long.
    fn quiet_for(&self, partitions: &BTreeSet<i32>, patience: Duration) -> BTreeSet<i32> {
        let places = self.assigned.places();
        let is_quiet = |partition: &&i32| {
            let since = places.get(*partition).and_then(|place| place.quiet_since);
            patience.is_zero() || since.is_some_and(|since| since.elapsed() >= patience)
        };
        partitions.iter().filter(is_quiet).copied().collect()
    }

    /// Up to where a partition is applied; `None` if the runner no longer has it, or leaves it alone.
    fn position(&self, partition: i32) -> Option<Position> {
        let places = self.assigned.places();
        places.get(&partition).filter(|place| !place.is_held).map(|place| place.checkpoint.position)
    }
}

/// When the runner looks whether it is through: soon after the last record, then less and less often; and now and then
/// while records come.
pub(super) struct Looks {
    last_record: Instant,
    last_look: Instant,
    pause: Duration,
}

impl Default for Looks {
    fn default() -> Self {
        let now = Instant::now();
        Looks { last_record: now, last_look: now, pause: IDLE_LOOK_MIN }
    }
}

impl Looks {
    /// How long none has come.
    pub(super) fn idle_for(&self) -> Duration {
        self.last_record.elapsed()
    }

    /// Records have come.
    pub(super) fn records_came(&mut self) {
        self.last_record = Instant::now();
        self.pause = IDLE_LOOK_MIN;
    }

    /// How long it is until the next look, if no record comes.
    pub(super) fn until_next(&self) -> Duration {
        (self.last_look.max(self.last_record) + self.pause).saturating_duration_since(Instant::now())
    }

    /// Whether it is time for one although records come.
    pub(super) fn is_overdue(&self) -> bool {
        self.last_look.elapsed() >= LOOK_MAX
    }

    pub(super) fn looked(&mut self) {
        self.last_look = Instant::now();
        self.pause = (self.pause * 2).min(LOOK_MAX);
    }
}
