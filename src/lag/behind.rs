//! Since when somebody is behind: the time of the oldest event that is still to be published, or to be processed.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::kafka::partition_of;
use crate::lag::{LagError, Standing};
use crate::log::Position;
use crate::postgres::Database;

/// Events looked at in one go.
const PAGE: i64 = 1_000;

/// Events looked at in all: no partition's next event is usually farther away than a few dozen.
const EVENTS_MAX: i64 = 20_000;

/// The times of the oldest events that somebody lacks.
#[derive(Clone, Debug, Default)]
pub(super) struct Behind {
    outbox: Option<DateTime<Utc>>,
    /// By the position that a group is through and the partition.
    partitions: BTreeMap<(Position, i32), OldestBehind>,
}

/// The oldest event that a group lacks of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct OldestBehind {
    /// Its position; where it was too far to look, that of one that waits behind it.
    pub position: Position,
    /// When it was recorded.
    pub since: DateTime<Utc>,
}

impl Behind {
    /// Looks for them in the log.
    pub async fn find(database: &Database, standing: &Standing) -> Result<Self, LagError> {
        let mut behind = Behind::default();
        if standing.published < standing.head {
            behind.outbox = database.first_event_after(standing.published).await?;
        }
        let partitions = standing.partitions();
        let mut open: Vec<(Position, i32)> = Vec::new();
        for group in standing.groups() {
            open.extend((0..partitions).map(|partition| (standing.through(group, partition), partition)));
        }
        open.retain(|(through, _)| *through < standing.head);
        open.sort_unstable();
        open.dedup();
        let mut looked_at = 0;
        let mut cursor = 0;
        while let Some((least, _)) = open.first()
            && looked_at < EVENTS_MAX
        {
            cursor = cursor.max(*least);
            let page = database.event_times_after(cursor, PAGE).await?;
            let Some(last) = page.last() else {
                // To the end of the log, and nothing of these partitions: they lack nothing.
                return Ok(behind);
            };
            looked_at += page.len() as i64;
            cursor = last.position;
            for event in &page {
                let partition = partition_of(event.wallet_id.as_bytes(), partitions);
                open.retain(|(through, of)| {
                    let found = *of == partition && *through < event.position;
                    if found {
                        let oldest = OldestBehind { position: event.position, since: event.recorded_at };
                        behind.partitions.insert((*through, *of), oldest);
                    }
                    !found
                });
            }
        }
        // Too far to look: where a record is known to wait, its time says at least that much.
        for (through, partition) in open {
            if let Some(tail) = standing.tails.get(&partition).filter(|tail| **tail > through)
                && let Some(since) = database.first_event_after(*tail - 1).await?
            {
                behind.partitions.insert((through, partition), OldestBehind { position: *tail, since });
            }
        }
        Ok(behind)
    }

    /// When the oldest event was recorded that is not published.
    pub fn outbox(&self) -> Option<DateTime<Utc>> {
        self.outbox
    }

    /// The partition's oldest event behind that position.
    pub fn of(&self, through: Position, partition: i32) -> Option<OldestBehind> {
        self.partitions.get(&(through, partition)).copied()
    }
}

/// When an event was recorded, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct EventTime {
    /// Its position.
    pub position: Position,
    /// Its wallet.
    pub wallet_id: String,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
}
