//! Doing without, for good.

use crate::dlq::{Action, DlqError, PlannedQueue, Settled};
use crate::postgres::{self, Database, lock_queue, note_deed, queue_beginning, queue_length};

/// How many records one transaction lets go.
const STEP_MAX: usize = 1_000;

/// Discards what was planned, and no more: what came behind it since stays parked. `progress` is told how many records more are done.
///
/// # Errors
/// [`DlqError`] where the database does not answer; what was done until then is durable, and in the account.
pub async fn discard(
    database: &Database,
    queues: &[PlannedQueue],
    action: &Action,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Vec<Settled>, DlqError> {
    let mut done = Vec::with_capacity(queues.len());
    for queue in queues.iter().filter(|queue| queue.obstacle.is_none()) {
        let mut settled = Settled::of(queue);
        match &queue.wallet_id {
            Some(wallet) => {
                while let Some(step) = discard_beginning(database, queue, wallet, action).await? {
                    progress(step.records as u64);
                    settled.add(step);
                }
            }
            None => {
                for records in queue.strangers.chunks(STEP_MAX) {
                    let step = discard_records(database, queue, records, action).await?;
                    progress(step.records as u64);
                    settled.add(step);
                }
            }
        }
        done.push(settled);
    }
    Ok(done)
}

/// Discards the beginning of a queue as far as it was planned; `None` where nothing is left of that.
async fn discard_beginning(
    database: &Database,
    queue: &PlannedQueue,
    wallet: &str,
    action: &Action,
) -> Result<Option<Settled>, DlqError> {
    let mut transaction = database.by_index().begin().await?;
    if !lock_queue(&mut transaction, &queue.group, queue.partition).await? {
        return Err(DlqError::Refused(format!("{} has no checkpoint of partition {}", queue.group, queue.partition)));
    }
    let beginning = queue_beginning(&mut transaction, &queue.group, wallet, STEP_MAX as i64).await?;
    let planned = beginning.iter().take_while(|(_, position)| Some(*position) <= queue.last_position);
    let records: Vec<i64> = planned.map(|(record, _)| *record).collect();
    if records.is_empty() {
        return Ok(None);
    }
    let mut settled = postgres::discard(&mut transaction, action, &records).await?;
    settled.remaining = queue_length(&mut transaction, &queue.group, Some(wallet)).await?;
    note_deed(&mut transaction, action, &queue.group, Some(wallet), &settled).await?;
    transaction.commit().await?;
    Ok(Some(settled))
}

/// Discards records that nobody waits for.
async fn discard_records(
    database: &Database,
    queue: &PlannedQueue,
    records: &[i64],
    action: &Action,
) -> Result<Settled, DlqError> {
    let mut transaction = database.by_index().begin().await?;
    let mut settled = postgres::discard(&mut transaction, action, records).await?;
    settled.remaining = queue_length(&mut transaction, &queue.group, None).await?;
    note_deed(&mut transaction, action, &queue.group, None, &settled).await?;
    transaction.commit().await?;
    Ok(settled)
}
