//! Making a projection's table anew from the log, beside the live one, and putting it into its place.
//!
//! The new table is filled by the projection itself, on a connection that sees the new table where the live one is; so what a
//! rebuild makes is what the projection makes today. Readers and the projection's runners go on throughout:
//!
//! 1. **Fill**: the log's events up to the live checkpoints, then once more what has come meanwhile.
//! 2. **Compare**: in one snapshot the live table as of its checkpoints, and the new one brought up to just these, row by row.
//! 3. **Swap**, in one transaction: the checkpoints' rows are locked, so that the live table stands still; the rest is applied, and
//!    compared too; then the tables change places. Runners and readers wait for that moment and no longer, and if somebody
//!    reads the live table without an end, the swap gives way to them and tries again later.
//!
//! Where any row would change, nothing is swapped unless the caller says so. The old table is kept until it is dropped.
//!
//! # What is left out
//! A checkpoint stands for all events up to it but those that are parked. They are parked after a rebuild as before it, so their
//! events are not applied; what is replayed while a rebuild runs is applied by it too. What was discarded stays so.
//!
//! # What a swap cannot do
//! A reader's transaction that began before the swap with a snapshot of its own (repeatable read), and reads the table only
//! after it, finds the new table as its snapshot has it: in part. wallex has no such reader.

mod difference;
mod error;
mod fill;

use std::time::{Duration, Instant};

use chrono::Utc;
use serde::Serialize;

use crate::kafka::EVENTS_PARTITIONS;
use crate::log::{Position, PostgresLog};
use crate::postgres::sqlx;
use crate::postgres::{
    Compared, Comparison, Database, Frontier, KeptTable, RebuildSession, RebuiltTable, compare, frontier,
    load_checkpoints, swap,
};
use crate::projection::ledger::LEDGER_TABLE;
use crate::projection::read_model::READ_MODEL_TABLE;
use crate::projection::{LedgerProjection, Projection, ReadModelProjection};

use difference::difference;
use fill::Fill;

pub use difference::{Change, Difference};
pub use error::RebuildError;

/// How many differences are shown.
const SHOWN_MAX: i64 = 20;
/// How many events may be left to apply while the live table stands still.
const LEFT_MAX: Position = 5_000;
/// How often what has come meanwhile is applied before the last step is tried all the same.
const ROUNDS_MAX: usize = 20;
/// How long the swap gives way to those who read the live table, in all.
const SWAP_PATIENCE: Duration = Duration::from_secs(300);
/// How long it waits between two attempts.
const SWAP_PAUSE: Duration = Duration::from_secs(1);

/// A projection that can be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuildable {
    /// The ledger.
    Ledger,
    /// The read model.
    ReadModel,
}

impl Rebuildable {
    fn table(self) -> &'static RebuiltTable {
        match self {
            Rebuildable::Ledger => &LEDGER_TABLE,
            Rebuildable::ReadModel => &READ_MODEL_TABLE,
        }
    }
}

/// How far a rebuild has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildProgress {
    /// What it is doing, in a word or two.
    pub stage: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// How much there is; 0 where that is not known.
    pub total: u64,
}

/// What has become of a rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rebuilt {
    /// The projection's name.
    pub projection: String,
    /// Whether the new table is in the live one's place.
    pub swapped: bool,
    /// How many events it was made of.
    pub events: u64,
    /// How many events are parked, or were discarded, and so were left out.
    pub parked: u64,
    /// How many rows were compared.
    pub rows: i64,
    /// How many of them differed.
    pub differing: i64,
    /// The first of those, by wallet; 20 at most.
    pub differences: Vec<Difference>,
    /// The log's position up to which both tables stand, in the partition that is furthest.
    pub position: Position,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Where the old table is kept; `None` where nothing was swapped.
    pub kept: Option<String>,
    /// Whether a rebuild that was not finished had left its table; it was dropped.
    pub began_again: bool,
}

/// Makes a projection's table anew from the log, compares, and swaps. Where a row would change, it swaps only if `execute` is set, and
/// leaves everything as it was otherwise.
///
/// # Errors
/// [`RebuildError`]; the live table is then as it was.
pub async fn rebuild(
    database: &Database,
    which: Rebuildable,
    execute: bool,
    progress: &mut (dyn FnMut(RebuildProgress) + Send),
) -> Result<Rebuilt, RebuildError> {
    match which {
        Rebuildable::Ledger => Rebuild::run(database, which.table(), LedgerProjection::new(), execute, progress).await,
        Rebuildable::ReadModel => {
            Rebuild::run(database, which.table(), ReadModelProjection::new(), execute, progress).await
        }
    }
}

/// The table that the last rebuild of a projection has replaced, if it is still kept. With `execute` it is dropped.
///
/// # Errors
/// [`RebuildError`], also while a rebuild of this projection is at work.
pub async fn drop_previous(
    database: &Database,
    which: Rebuildable,
    execute: bool,
) -> Result<Option<KeptTable>, RebuildError> {
    let mut session = begin(database, which.table()).await?;
    let kept = session.kept().await?;
    if execute && kept.is_some() {
        session.drop_kept().await?;
    }
    Ok(kept)
}

async fn begin(database: &Database, table: &'static RebuiltTable) -> Result<RebuildSession, RebuildError> {
    let session = RebuildSession::begin(database, table).await?;
    session.ok_or(RebuildError::AtWork { projection: table.projection })
}

/// A rebuild at work.
struct Rebuild<'a, P> {
    table: &'static RebuiltTable,
    session: RebuildSession,
    fill: Fill<P>,
    began_again: bool,
    started: Instant,
    progress: &'a mut (dyn FnMut(RebuildProgress) + Send),
}

impl<P: Projection> Rebuild<'_, P> {
    async fn run(
        database: &Database,
        table: &'static RebuiltTable,
        projection: P,
        execute: bool,
        progress: &mut (dyn FnMut(RebuildProgress) + Send),
    ) -> Result<Rebuilt, RebuildError> {
        let started = Instant::now();
        let mut session = begin(database, table).await?;
        if let Some(kept) = session.kept().await? {
            return Err(RebuildError::Kept { kept: kept.name, note: kept.note.unwrap_or_default() });
        }
        let dependents = session.dependents().await?;
        if !dependents.is_empty() {
            return Err(RebuildError::Dependents { table: table.name, dependents });
        }
        // A partition that has no checkpoint yet could not be kept from getting one during the swap.
        let partitions: Vec<i32> = (0..EVENTS_PARTITIONS).collect();
        load_checkpoints(database.pool(), table.projection, &partitions).await?;
        let began_again = session.make_table().await?;
        let fill = Fill::new(projection, PostgresLog::new(database.clone()));
        let mut this = Rebuild { table, session, fill, began_again, started, progress };
        let done = this.go(execute).await;
        // Of what has failed nothing is left, if the database can still be told so; else the next rebuild sees to it.
        if !done.as_ref().is_ok_and(|rebuilt| rebuilt.swapped) {
            let abandoned = this.session.abandon().await;
            if let (Ok(_), Err(error)) = (&done, abandoned) {
                return Err(error.into());
            }
        }
        done
    }

    async fn go(&mut self, execute: bool) -> Result<Rebuilt, RebuildError> {
        if self.table.reads_itself {
            self.session.make_indexes().await?;
        }
        self.catch_up().await?;
        self.show("indexes");
        if !self.table.reads_itself {
            self.session.make_indexes().await?;
        }
        self.session.analyze().await?;
        self.catch_up().await?;
        let (before, compared) = self.compare_all().await?;
        if before.differing > 0 && !execute {
            return Ok(self.rebuilt(&before, false));
        }
        self.swap(before, &compared, execute).await
    }

    /// Applies what the live table has more, until that is little.
    async fn catch_up(&mut self) -> Result<(), RebuildError> {
        for _ in 0..ROUNDS_MAX {
            let frontier = self.session.frontier().await?;
            let left = self.fill.left(&frontier);
            self.fill.advance(&mut self.session.connection, &frontier, self.progress).await?;
            if left <= LEFT_MAX {
                break;
            }
        }
        Ok(())
    }

    /// Brings the new table up to where the live one is at one moment, and compares them as of that moment.
    async fn compare_all(&mut self) -> Result<(Comparison, Frontier), RebuildError> {
        let live_schema = self.session.live_schema().to_owned();
        let mut snapshot = self.session.snapshot().await?;
        let frontier = frontier(&mut snapshot, self.table.projection, false).await?;
        self.fill.advance(&mut snapshot, &frontier, self.progress).await?;
        (self.progress)(stage("comparing"));
        let compared = compare(&mut snapshot, self.table, &live_schema, &Compared::Whole, SHOWN_MAX).await?;
        snapshot.commit().await?;
        Ok((compared, frontier))
    }

    /// The last step, again and again until nobody is in its way.
    async fn swap(&mut self, before: Comparison, compared: &Frontier, execute: bool) -> Result<Rebuilt, RebuildError> {
        let began = Instant::now();
        loop {
            self.catch_up().await?;
            self.show("swapping");
            let filled = self.fill.filled();
            match self.try_swap(&before, compared, execute).await {
                Ok(Attempt::Done(found)) => return Ok(self.rebuilt(&found, true)),
                Ok(Attempt::Differs(found)) => return Ok(self.rebuilt(&found, false)),
                Ok(Attempt::InTheWay) => {}
                Err(error) if error.is_in_passing() => tracing::info!(%error, "the swap is tried again"),
                Err(error) => return Err(error),
            }
            // What was applied in that transaction is gone with it.
            self.fill.go_back(filled);
            let readers = self.session.in_the_way().await?;
            if began.elapsed() >= SWAP_PATIENCE {
                return Err(RebuildError::InTheWay { table: self.table.name, readers });
            }
            tracing::info!(?readers, "the swap gives way to those who use the table, and is tried again");
            tokio::time::sleep(SWAP_PAUSE).await;
        }
    }

    async fn try_swap(
        &mut self,
        before: &Comparison,
        compared: &Frontier,
        execute: bool,
    ) -> Result<Attempt, RebuildError> {
        let live_schema = self.session.live_schema().to_owned();
        let mut transaction = self.session.lasting().await?;
        let frontier = frontier(&mut transaction, self.table.projection, true).await?;
        self.fill.advance(&mut transaction, &frontier, self.progress).await?;
        // Where all was equal, only what has been written since can differ.
        let rows = match before.differing {
            0 => self.fill.written_since(compared),
            _ => Compared::Whole,
        };
        let mut found = compare(&mut transaction, self.table, &live_schema, &rows, SHOWN_MAX).await?;
        found.rows = found.rows.max(before.rows);
        if found.differing > 0 && !execute {
            transaction.rollback().await?;
            return Ok(Attempt::Differs(found));
        }
        if !swap(&mut transaction, self.table, &live_schema, Utc::now()).await? {
            transaction.rollback().await?;
            return Ok(Attempt::InTheWay);
        }
        transaction.commit().await?;
        Ok(Attempt::Done(found))
    }

    fn show(&mut self, what: &'static str) {
        (self.progress)(stage(what));
    }

    fn rebuilt(&self, found: &Comparison, swapped: bool) -> Rebuilt {
        Rebuilt {
            projection: self.table.projection.to_owned(),
            swapped,
            events: self.fill.events(),
            parked: self.fill.left_out(),
            rows: found.rows,
            differing: found.differing,
            differences: found.first.iter().map(|row| difference(self.table, row)).collect(),
            position: self.fill.position(),
            took_ms: self.started.elapsed().as_millis() as u64,
            kept: swapped.then(|| self.session.previous_name()),
            began_again: self.began_again,
        }
    }
}

/// What an attempt to swap has come to.
enum Attempt {
    Done(Comparison),
    Differs(Comparison),
    InTheWay,
}

fn stage(stage: &'static str) -> RebuildProgress {
    RebuildProgress { stage, done: 0, total: 0 }
}

impl From<sqlx::Error> for RebuildError {
    fn from(error: sqlx::Error) -> Self {
        RebuildError::Database(error)
    }
}
