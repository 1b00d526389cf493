//! Applying parked events again.

use std::collections::HashMap;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::crash_point::CrashPoint;
use crate::dlq::{Action, DlqError, PlannedQueue, Settled};
use crate::kafka::EventRecord;
use crate::log::{Position, RecordedEvent};
use crate::postgres::{
    Database, PgConnection, events_at, lock_queue, note_deed, note_failure, queue_beginning, queue_length, unpark,
};
use crate::projection::{Applier, ApplyError, Failure, Projection};

/// How many events one transaction applies. The runner of the partition waits meanwhile.
const STEP_MAX: usize = 500;

/// Replays, one after the other, those of the planned queues that are this projection's. Each is gone through to its end, what came
/// behind it meanwhile included, or to the first event that fails again; that ends this queue and not the others. `progress` is
/// told how many records more are done.
///
/// # Errors
/// [`DlqError`] where the database does not answer; what was done until then is durable, and in the account.
pub async fn replay<P: Projection>(
    projection: P,
    database: &Database,
    queues: &[PlannedQueue],
    action: &Action,
    mut progress: impl FnMut(u64) + Send + 'static,
) -> Result<Vec<Settled>, DlqError> {
    let is_ours = |queue: &&PlannedQueue| queue.group == projection.name() && queue.obstacle.is_none();
    let queues: Vec<PlannedQueue> = queues.iter().filter(is_ours).cloned().collect();
    let (database, action, runtime) = (database.clone(), action.clone(), Handle::current());
    // Off the runtime's threads, as a runner is, so that a panic of the projection is one of its failures.
    let replaying = tokio::task::spawn_blocking(move || {
        let pool = database.by_index().clone();
        let applier = Applier::new(projection, pool, runtime.clone(), CancellationToken::new());
        let mut replay = Replay { applier, runtime, action };
        let mut done = Vec::with_capacity(queues.len());
        for queue in &queues {
            let Some(wallet) = &queue.wallet_id else { continue };
            let mut settled = Settled::of(queue);
            while let Some(step) = replay.step(queue, wallet)? {
                progress(step.records as u64);
                let is_stopped = step.error.is_some();
                settled.add(step);
                if is_stopped {
                    break;
                }
            }
            done.push(settled);
        }
        Ok(done)
    });
    replaying.await.map_err(|error| DlqError::Ended(error.to_string()))?
}

struct Replay<P> {
    applier: Applier<P>,
    runtime: Handle,
    action: Action,
}

impl<P: Projection> Replay<P> {
    /// Applies the beginning of a queue in a transaction of its own; `None` where the queue is empty.
    fn step(&mut self, queue: &PlannedQueue, wallet: &str) -> Result<Option<Settled>, DlqError> {
        let mut transaction = self.applier.begin()?;
        if !self.runtime.block_on(lock_queue(&mut transaction, &queue.group, queue.partition))? {
            return Err(DlqError::Refused(format!(
                "{} has no checkpoint of partition {}",
                queue.group, queue.partition
            )));
        }
        let reading = queue_beginning(&mut transaction, &queue.group, wallet, STEP_MAX as i64);
        let beginning = self.runtime.block_on(reading)?;
        if beginning.is_empty() {
            return Ok(None);
        }
        let (done, failure) = self.apply(&beginning, &mut transaction)?;
        let (applied, rest) = beginning.split_at(done);
        let settled = self.runtime.block_on(async {
            let records: Vec<i64> = applied.iter().map(|(record, _)| *record).collect();
            unpark(&mut transaction, &records).await?;
            if let (Some(failure), Some((record, _))) = (&failure, rest.first()) {
                note_failure(&mut transaction, *record, failure.class(), failure.error()).await?;
            }
            let settled = Settled {
                records: applied.len() as i64,
                first_position: applied.first().map(|(_, position)| *position),
                last_position: applied.last().map(|(_, position)| *position),
                remaining: queue_length(&mut transaction, &queue.group, Some(wallet)).await?,
                error: failure.as_ref().map(|failure| failure.error().to_owned()),
                ..Settled::default()
            };
            note_deed(&mut transaction, &self.action, &queue.group, Some(wallet), &settled).await?;
            CrashPoint::InReplay.pass();
            transaction.commit().await?;
            Ok::<_, DlqError>(settled)
        })?;
        Ok(Some(settled))
    }

    /// Applies events as far as they go: how many went, and why the next one did not.
    fn apply(
        &mut self,
        beginning: &[(i64, Position)],
        transaction: &mut PgConnection,
    ) -> Result<(usize, Option<Failure>), DlqError> {
        let positions: Vec<Position> = beginning.iter().map(|(_, position)| *position).collect();
        let logged = self.runtime.block_on(events_at(transaction, &positions))?;
        let logged: HashMap<Position, RecordedEvent> =
            logged.into_iter().map(|event| (event.position, event)).collect();
        let mut events = Vec::with_capacity(positions.len());
        let mut unreadable = None;
        for position in &positions {
            let read = match logged.get(position) {
                Some(recorded) => EventRecord::try_from(recorded).map_err(|error| error.to_string()),
                None => Err(format!("the log has no position {position}")),
            };
            match read {
                Ok(event) => events.push(event),
                Err(error) => {
                    unreadable = Some(Failure::unreadable(&error));
                    break;
                }
            }
        }
        match self.applier.apply_in_order(&events, transaction) {
            Ok((done, Some(failure))) => Ok((done, Some(failure))),
            Ok((done, None)) => Ok((done, unreadable)),
            Err(ApplyError::Transient(reason)) => Err(DlqError::Away(reason)),
            Err(ApplyError::Permanent(reason)) => Err(DlqError::Refused(reason)),
        }
    }
}
