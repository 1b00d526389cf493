//! Filling the new table: the projection, applied to just those events that the live table has.

use std::collections::BTreeMap;

use crate::kafka::{EVENTS_PARTITIONS, EventRecord, partition_of};
use crate::log::{EventLog, LogError, Position, PostgresLog, RecordedEvent};
use crate::postgres::sqlx::Connection;
use crate::postgres::{Compared, Frontier, PgConnection};
use crate::projection::rebuild::{RebuildError, RebuildProgress};
use crate::projection::{ApplyError, Projection};

/// How many events are read, and applied in one transaction, at most.
const PAGE: Position = 5_000;

/// How far the new table is.
#[derive(Clone, Debug, Default)]
pub(super) struct Filled {
    /// Where, by partition, and what was left out on the way there.
    frontier: Frontier,
    /// Events that were left out first and applied later: they were replayed meanwhile.
    replayed: Vec<Position>,
    events: u64,
}

/// The projection at work on the new table.
pub(super) struct Fill<P> {
    projection: P,
    log: PostgresLog,
    filled: Filled,
}

impl<P: Projection> Fill<P> {
    pub(super) fn new(projection: P, log: PostgresLog) -> Self {
        Fill { projection, log, filled: Filled::default() }
    }

    /// How many positions of the log lie between the new table and a frontier.
    pub(super) fn left(&self, frontier: &Frontier) -> Position {
        let from = self.moving(frontier).values().map(|(from, _)| *from).min();
        let to = frontier.positions.values().copied().max();
        from.zip(to).map_or(0, |(from, to)| to - from)
    }

    /// Applies what the live table has more as of this frontier, in the order of the log.
    pub(super) async fn advance(
        &mut self,
        connection: &mut PgConnection,
        frontier: &Frontier,
        progress: &mut (dyn FnMut(RebuildProgress) + Send),
    ) -> Result<(), RebuildError> {
        // What was replayed meanwhile comes first: it is older than anything of its wallet that was not parked.
        let replayed: Vec<Position> = self.filled.frontier.left_out.difference(&frontier.left_out).copied().collect();
        for position in replayed {
            let page = self.log.read(position - 1, 1).await?;
            self.apply(connection, &page).await?;
            self.filled.frontier.left_out.remove(&position);
            self.filled.replayed.push(position);
        }
        let moving = self.moving(frontier);
        let bounds = moving
            .values()
            .copied()
            .reduce(|(from, to), (other_from, other_to)| (from.min(other_from), to.max(other_to)));
        let Some((mut from, to)) = bounds else { return Ok(()) };
        let is_due = |event: &RecordedEvent| {
            let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
            moving.get(&partition).is_some_and(|(from, to)| (from + 1..=*to).contains(&event.position))
        };
        let mut page = read_page(&self.log, from, to).await?;
        while from < to {
            let end = page.last().map_or(to, |last| last.position);
            page.retain(&is_due);
            let (due, left_out): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|event| !frontier.left_out.contains(&event.position));
            self.filled.frontier.left_out.extend(left_out.iter().map(|event| event.position));
            // The next page is read while this one is applied.
            let log = self.log.clone();
            let (applied, next) = tokio::join!(self.apply(connection, &due), read_page(&log, end, to));
            applied?;
            page = next?;
            from = end;
            progress(RebuildProgress { stage: "filling", done: from as u64, total: to as u64 });
        }
        self.filled.frontier.positions = frontier.positions.clone();
        Ok(())
    }

    /// The partitions in which the live table has more, from where and up to where.
    fn moving(&self, frontier: &Frontier) -> BTreeMap<i32, (Position, Position)> {
        let at = |partition: &i32| self.filled.frontier.positions.get(partition).copied().unwrap_or(0);
        let ways = frontier.positions.iter().map(|(partition, to)| (*partition, (at(partition), *to)));
        ways.filter(|(_, (from, to))| from < to).collect()
    }

    /// Applies events in a transaction, or under a savepoint within one.
    async fn apply(&mut self, connection: &mut PgConnection, events: &[RecordedEvent]) -> Result<(), RebuildError> {
        if events.is_empty() {
            return Ok(());
        }
        let records = events.iter().map(|recorded| {
            EventRecord::try_from(recorded)
                .map_err(|error| refused(recorded.position, recorded.stream.as_str(), &error.to_string()))
        });
        let records: Vec<EventRecord> = records.collect::<Result<_, _>>()?;
        let mut transaction = connection.begin().await?;
        match self.projection.apply(&records, &mut transaction).await {
            Ok(()) => transaction.commit().await?,
            Err(ApplyError::Transient(reason)) => return Err(RebuildError::Away(reason)),
            Err(ApplyError::Permanent(reason)) => {
                transaction.rollback().await?;
                return Err(self.find_refused(connection, &records, reason).await?);
            }
        }
        self.filled.events += events.len() as u64;
        Ok(())
    }

    /// Of events that are refused together, the first that is refused by itself.
    async fn find_refused(
        &mut self,
        connection: &mut PgConnection,
        records: &[EventRecord],
        reason: String,
    ) -> Result<RebuildError, RebuildError> {
        let mut transaction = connection.begin().await?;
        for record in records {
            let mut savepoint = transaction.begin().await?;
            if let Err(error) = self.projection.apply(std::slice::from_ref(record), &mut savepoint).await {
                savepoint.rollback().await?;
                transaction.rollback().await?;
                return Ok(refused(record.position, record.wallet_id.as_str(), &error.to_string()));
            }
            savepoint.commit().await?;
        }
        transaction.rollback().await?;
        // One by one they went: what it says of all of them has to do.
        let (position, wallet) = records.first().map_or((0, ""), |record| (record.position, record.wallet_id.as_str()));
        Ok(refused(position, wallet, &reason))
    }

    /// The rows that have been written since both tables were at a frontier.
    pub(super) fn written_since(&self, compared: &Frontier) -> Compared {
        let at = |partition: &i32| compared.positions.get(partition).copied().unwrap_or(0);
        let moved = self.filled.frontier.positions.iter().filter(|(partition, now)| **now > at(partition));
        let after = moved.map(|(partition, _)| at(partition)).min().unwrap_or(Position::MAX);
        Compared::Since(after, self.filled.replayed.clone())
    }

    /// Where it is, to go back to.
    pub(super) fn filled(&self) -> Filled {
        self.filled.clone()
    }

    /// What was applied since has been rolled back.
    pub(super) fn go_back(&mut self, filled: Filled) {
        self.filled = filled;
    }

    pub(super) fn events(&self) -> u64 {
        self.filled.events
    }

    pub(super) fn left_out(&self) -> u64 {
        self.filled.frontier.left_out.len() as u64
    }

    pub(super) fn position(&self) -> Position {
        self.filled.frontier.positions.values().copied().max().unwrap_or(0)
    }
}

/// Events after one position and up to another; there are some, for the live table has come further.
async fn read_page(log: &PostgresLog, from: Position, to: Position) -> Result<Vec<RecordedEvent>, RebuildError> {
    if from >= to {
        return Ok(Vec::new());
    }
    let page = log.read(from, PAGE.min(to - from) as usize).await?;
    if page.is_empty() {
        return Err(LogError::Corrupt(format!("it has nothing after position {from}, the projection has")).into());
    }
    Ok(page)
}

fn refused(position: Position, wallet: &str, reason: &str) -> RebuildError {
    RebuildError::Event { position, wallet: wallet.to_owned(), reason: reason.to_owned() }
}
