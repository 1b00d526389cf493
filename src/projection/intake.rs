//! From consumed records to batches: what is foreign is told apart, what is in the tables already is passed over, and the rest
//! is applied in order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::kafka::ConsumedRecord;
use crate::log::{EventLog, Position};
use crate::postgres::{CheckpointMove, LoggedEvent, logged_events};
use crate::projection::Projection;
use crate::projection::apply::{Applied, unless_stopped};
use crate::projection::assignment::{Assigned, Place};
use crate::projection::batch::Batch;
use crate::projection::persevere::{Interrupted, Setback};
use crate::projection::record::{Foreign, Item};
use crate::projection::runner::Loop;

/// What is applied next, and where each partition will be after it.
#[derive(Default)]
pub(super) struct Gathering {
    pub(super) batch: Batch,
    places: BTreeMap<i32, Next>,
}

/// A record's offset and partition, and what the log says of it.
type Judged = (i64, i32, Result<Item, Box<Foreign>>);

/// A partition's place after what was gathered, and the position from which its checkpoint departs.
struct Next {
    from: Position,
    before: Place,
    place: Place,
}

impl Gathering {
    /// The place of a partition after what has been gathered; `None` if the runner no longer has it, or leaves it alone.
    pub(super) fn place(&mut self, assigned: &Assigned, partition: i32) -> Option<&mut Place> {
        let next = match self.places.entry(partition) {
            Entry::Occupied(gathered) => gathered.into_mut(),
            Entry::Vacant(first) => {
                let place = assigned.places().get(&partition).filter(|place| !place.is_held)?.clone();
                first.insert(Next { from: place.checkpoint.position, before: place.clone(), place })
            }
        };
        Some(&mut next.place)
    }
}

impl<P: Projection, L: EventLog> Loop<P, L> {
    /// Deals with records in order, for as long as it takes.
    pub(super) fn deal_with(&mut self, records: Vec<ConsumedRecord>) -> Result<(), Interrupted> {
        let mut gathering = Gathering::default();
        for (offset, partition, read) in self.judge(records)? {
            let Some(place) = gathering.place(&self.assigned, partition) else {
                // Revoked meanwhile: its new owner reads it. Or held: it is read again when there is room.
                continue;
            };
            match read {
                Ok(item) if item.position <= place.checkpoint.position => place.read_past(offset),
                Ok(item) => {
                    // What a record follows is said of the log, so it holds in whatever topic the record stands.
                    if item.follows.is_none_or(|follows| follows > place.checkpoint.position) {
                        self.flush(&mut gathering)?;
                        self.close_gap(partition, item.position - 1)?;
                    }
                    let Some(place) = gathering.place(&self.assigned, partition) else { continue };
                    place.take(offset, item.position);
                    gathering.batch.push(item);
                }
                Err(foreign) => {
                    let reason = foreign.reason.as_str();
                    tracing::warn!(
                        projection = self.name,
                        partition,
                        offset,
                        reason,
                        "a foreign record; it is put aside"
                    );
                    place.read_past(offset);
                    gathering.batch.push_foreign(*foreign);
                }
            }
            if gathering.batch.len() >= self.options.batch_max {
                self.flush(&mut gathering)?;
            }
        }
        self.flush(&mut gathering)
    }

    /// Reads records and holds them against the log: only what stands there is applied, whoever has written the record.
    /// What will be passed over needs no proof.
    fn judge(&mut self, records: Vec<ConsumedRecord>) -> Result<Vec<Judged>, Interrupted> {
        let read: Vec<_> =
            records.into_iter().map(|record| (record.offset, record.partition, Item::read(record))).collect();
        let is_new = |assigned: &Assigned, item: &Item| {
            assigned.places().get(&item.partition).is_none_or(|place| item.position > place.checkpoint.position)
        };
        let items = read.iter().filter_map(|(_, _, read)| read.as_ref().ok());
        let positions: Vec<Position> =
            items.filter(|item| is_new(&self.assigned, item)).map(|item| item.position).collect();
        let mut logged: HashMap<Position, LoggedEvent> = HashMap::new();
        if !positions.is_empty() {
            let found = self.persevere(|this| {
                let asking = unless_stopped(&this.stop, logged_events(&this.pool, &positions));
                Ok(this.runtime.block_on(asking)?)
            })?;
            logged.extend(found.into_iter().map(|event| (event.position, event)));
        }
        let mut judged = Vec::with_capacity(read.len());
        for (offset, partition, read) in read {
            let read = match read {
                Ok(item) if is_new(&self.assigned, &item) => self.judge_new(item, &logged)?,
                read => read,
            };
            judged.push((offset, partition, read));
        }
        Ok(judged)
    }

    fn judge_new(
        &mut self,
        item: Item,
        logged: &HashMap<Position, LoggedEvent>,
    ) -> Result<Result<Item, Box<Foreign>>, Interrupted> {
        let mut verdict = item.hold_against(logged.get(&item.position));
        if verdict.is_ok() && item.event.is_err() {
            let page = self.persevere(|this| Ok(this.runtime.block_on(this.log.read(item.position - 1, 1))?))?;
            verdict = item.hold_unreadable_against(page.first());
        }
        Ok(match verdict {
            Ok(()) => Ok(item),
            Err(reason) => match item.clone().into_foreign(reason) {
                Some(foreign) => Err(Box::new(foreign)),
                None => Ok(item),
            },
        })
    }

    /// Makes what was gathered durable.
    pub(super) fn flush(&mut self, gathering: &mut Gathering) -> Result<(), Interrupted> {
        let Gathering { mut batch, mut places } = std::mem::take(gathering);
        for next in places.values() {
            // A partition that was revoked meanwhile is moved too: its events are in the batch. If its new owner was faster,
            // that is noticed here.
            if next.before.checkpoint != next.place.checkpoint {
                batch.moves.push(CheckpointMove { from: next.from, to: next.place.checkpoint.clone() });
            }
        }
        while !batch.moves.is_empty() {
            let full = self.persevere(|this| match this.applier.apply(&batch)? {
                Applied::Done => Ok(BTreeSet::new()),
                Applied::Full(partitions) => Ok(partitions),
                Applied::Fenced => Err(Setback::Fenced),
            })?;
            if full.is_empty() {
                break;
            }
            // The others go on.
            self.hold(&full);
            batch.leave_out(&full);
            places.retain(|partition, _| !full.contains(partition));
        }
        let mut assigned = self.assigned.places();
        for (partition, next) in places {
            if let Some(kept) = assigned.get_mut(&partition) {
                if let Some(offset) = next.place.checkpoint.next_offset.filter(|_| next.before != next.place) {
                    self.mirror.insert(partition, offset);
                }
                *kept = next.place;
            }
        }
        Ok(())
    }
}
