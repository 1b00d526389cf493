//! Where a session begins: what the topic holds, beside what was noted of it last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::kafka::{Claim, EVENTS_PARTITIONS, Extent, OutgoingRecord, TopicTail, in_sync_min};
use crate::log::{EventLog, Position, RecordedEvent};
use crate::postgres::{RelayTail, slowest_positions};
use crate::projection::BUILT_IN;
use crate::relay::lease::Lease;
use crate::relay::setback::{Setback, about_the_topic};
use crate::relay::{Relay, pause_for};

/// How many offsets at the end are looked at first for a record of the relay's; then ten times as many, and so on.
const LOOK_BACK: i64 = 50;
/// How much of the log is read at once to hold records against.
const PAGE: usize = 1_000;
/// For how long the ends of the partitions have to stay where they are, while replicas are missing, to count as all that there is.
/// What a leader has yet to show it shows once those in sync have fetched it, which they do without a pause.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// After so many looks it is others who write, and go on writing.
const SETTLING_LOOKS_MAX: u32 = 10;

/// Which events a partition has already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Present {
    /// All up to here, or what consumers have anyway.
    pub(super) through: Position,
    /// These besides.
    pub(super) beyond: BTreeSet<Position>,
    /// Where the partition ends.
    pub(super) end: i64,
}

impl Present {
    pub(super) fn has(&self, position: Position) -> bool {
        position <= self.through || self.beyond.contains(&position)
    }

    /// The last one that it has.
    pub(super) fn last(&self) -> Position {
        self.beyond.last().copied().unwrap_or(0).max(self.through)
    }
}

/// Where a session begins.
#[derive(Debug)]
pub(super) struct Beginning {
    /// Everything up to here needs no look.
    pub(super) from: Position,
    /// What each partition has, by number.
    pub(super) present: Vec<Present>,
    /// If the topic is not the one that was published to last: how that shows, and up to where it had been filled.
    pub(super) refill: Option<(String, Position)>,
}

/// Compares what the topic holds with what was noted last, and decides where to begin.
///
/// A partition that holds the noted record where it was has everything up to the checkpoint, for so much was acknowledged. What
/// stands behind that record is what a session sent without learning of it: each is looked at, so one that is missing among
/// them is published, and none twice.
///
/// A partition that does not is another topic's. It has what it ends with, and lacks the rest; one that is empty has nothing, and
/// gets what wallex's own consumers lack.
pub(super) fn begin<L: EventLog>(
    relay: &Relay<L>,
    runtime: &Handle,
    stop: &CancellationToken,
    lease: &mut Lease<'_>,
) -> Result<Beginning, Setback> {
    let (checkpoint, noted) = lease.ask(async |session| session.checkpoint().await)?;
    let look = Look { topic: TopicTail::new(&relay.kafka)?, log: &relay.log, runtime };
    let extents = look.settled_extents(relay, stop, lease)?;
    let mut present = Vec::new();
    let mut strange = BTreeMap::new();
    let is_empty = extents.iter().all(|extent| extent.end == 0);
    for (partition, extent) in (0..).zip(extents) {
        let noted = noted.get(&partition);
        match noted.map(|noted| look.beyond(partition, extent, *noted)).transpose()? {
            Some(Ok(beyond)) => {
                present.push(Present { through: checkpoint, beyond, end: extent.end });
            }
            None => {
                let through = look.last(partition, extent)?.unwrap_or(0).max(checkpoint);
                present.push(Present { through, end: extent.end, ..Present::default() });
            }
            Some(Err(reason)) => {
                strange.insert(partition, reason);
                let through = look.last(partition, extent)?;
                // Nothing of its own: what consumers have is filled in below.
                let through = through.unwrap_or(NOTHING);
                present.push(Present { through, end: extent.end, ..Present::default() });
            }
        }
        lease.assert_held()?;
    }
    // A topic that holds nothing while something has been published: even partitions without a note are not what they were.
    let reason = match strange.first_key_value() {
        Some((_, reason)) => reason.clone(),
        None if is_empty && checkpoint > 0 => "the topic is empty".to_owned(),
        None => return Ok(Beginning { from: checkpoint, present, refill: None }),
    };
    let taken = runtime.block_on(slowest_positions(relay.database.pool(), &BUILT_IN, EVENTS_PARTITIONS))?;
    for (partition, present) in (0..).zip(&mut present) {
        if present.through == NOTHING || is_empty {
            present.through = taken.get(&partition).copied().unwrap_or(0);
        }
    }
    let from = present.iter().map(|present| present.through).min().unwrap_or(0).min(checkpoint);
    if !relay.kafka.embedded {
        tracing::warn!(
            reason,
            partitions = ?strange.keys().collect::<Vec<_>>(),
            checkpoint,
            from,
            "the topic is not the one that was published to last: it was made anew, is another cluster's, or was restored from the \
             past; publishing again what it and its consumers lack"
        );
    }
    // From here on the checkpoint and the notes are about this topic, so a session that ends half-way is followed by one that
    // goes on from there.
    let forgotten: Vec<i32> =
        if is_empty { noted.keys().copied().collect() } else { strange.keys().copied().collect() };
    lease.ask(async |session| session.go_back(from, &forgotten).await)?;
    let refill = (from < checkpoint).then_some((reason, checkpoint));
    Ok(Beginning { from, present, refill })
}

/// Stands for a partition that has no record of the relay's.
const NOTHING: Position = -1;

/// Looks at a topic, and holds what it finds against the log.
struct Look<'a, L> {
    topic: TopicTail,
    log: &'a L,
    runtime: &'a Handle,
}

impl<L: EventLog> Look<'_, L> {
    /// Where each partition begins and ends, once its leader shows all that it has.
    ///
    /// A leader shows what all replicas in sync have, and nothing new while those are too few. What a session sent before they
    /// were too few may lie there unseen, and come to light when they are enough: whoever looked meanwhile would send it again.
    fn settled_extents(
        &self,
        relay: &Relay<L>,
        stop: &CancellationToken,
        lease: &mut Lease<'_>,
    ) -> Result<Vec<Extent>, Setback> {
        let replicas = self.topic.replicas()?;
        let missing = replicas.iter().filter(|replicas| replicas.are_missing());
        let fewest = missing.min_by_key(|replicas| replicas.in_sync);
        if let Some(fewest) = fewest {
            let least = self.runtime.block_on(in_sync_min(&relay.kafka)).map_err(about_the_topic)?;
            if let Some(least) = least.filter(|least| fewest.in_sync < *least) {
                return Err(Setback::from(format!("{fewest}, and takes no records with fewer than {least}")));
            }
        }
        let extents =
            || (0..EVENTS_PARTITIONS).map(|partition| self.topic.extent(partition)).collect::<Result<Vec<_>, _>>();
        let mut found = extents()?;
        for _ in 0..fewest.map_or(0, |_| SETTLING_LOOKS_MAX) {
            pause_for(SETTLED_AFTER, self.runtime, stop);
            lease.assert_held()?;
            let before = std::mem::replace(&mut found, extents()?);
            if before == found {
                break;
            }
        }
        Ok(found)
    }

    /// The events that a partition has behind the noted record; or how it shows that the note is another topic's.
    fn beyond(
        &self,
        partition: i32,
        extent: Extent,
        noted: RelayTail,
    ) -> Result<Result<BTreeSet<Position>, String>, Setback> {
        let offset = noted.next_offset - 1;
        if extent.end <= offset {
            return Ok(Err(format!("partition {partition} ends at offset {}, not beyond {offset}", extent.end)));
        }
        let mut beyond = BTreeSet::new();
        let mut at_note = None;
        self.topic.read(partition, offset.max(extent.low), extent.end, |mut claims| {
            if claims.first().is_some_and(|claim| claim.offset == offset) {
                at_note = Some(claims.remove(0).position);
            }
            beyond.extend(self.genuine(claims)?.into_iter().map(|claim| claim.position));
            Ok::<_, Setback>(())
        })?;
        // What retention has removed cannot be compared; that the partition has grown has to do then.
        if extent.low <= offset && at_note != Some(noted.position) {
            let found = at_note.map_or("no event".to_owned(), |position| format!("position {position}"));
            return Ok(Err(format!(
                "partition {partition} has {found} at offset {offset}, where position {} was published",
                noted.position
            )));
        }
        Ok(Ok(beyond))
    }

    /// The last event that a partition has in its place.
    fn last(&self, partition: i32, extent: Extent) -> Result<Option<Position>, Setback> {
        let mut look_back = LOOK_BACK;
        loop {
            let from = (extent.end - look_back).max(extent.low);
            let mut last = None;
            self.topic.read(partition, from, extent.end, |claims| {
                let genuine = self.genuine(claims)?;
                last = genuine.into_iter().filter(|claim| !claim.is_late).map(|claim| claim.position).max().max(last);
                Ok::<_, Setback>(())
            })?;
            if last.is_some() || from == extent.low {
                return Ok(last);
            }
            look_back *= 10;
        }
    }

    /// Those that are the relay's. A record that only claims a position (anybody may write to the topic) must not make the relay
    /// pass events over.
    fn genuine(&self, mut claims: Vec<Claim>) -> Result<Vec<Claim>, Setback> {
        claims.retain(|claim| claim.position > 0);
        claims.sort_by_key(|claim| claim.position);
        let mut page: Vec<RecordedEvent> = Vec::new();
        let mut genuine = Vec::with_capacity(claims.len());
        for claim in claims {
            if page.last().is_none_or(|last| last.position < claim.position) {
                page = self.runtime.block_on(self.log.read(claim.position - 1, PAGE))?;
            }
            let event = page.binary_search_by_key(&claim.position, |event| event.position).map(|found| &page[found]);
            if event.is_ok_and(|event| is_record_of(&claim, event)) {
                genuine.push(claim);
            }
        }
        Ok(genuine)
    }
}

fn is_record_of(claim: &Claim, event: &RecordedEvent) -> bool {
    let record = OutgoingRecord::of(event, event.position - 1);
    record.key.as_bytes() == claim.key && record.value == claim.value
}
