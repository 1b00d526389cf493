//! Picks the position to verify at, and waits until everything has come through it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kafka::partition_of;
use crate::lag::Standing;
use crate::log::Position;
use crate::postgres::Database;
use crate::projection::{BUILT_IN, LEDGER_PROJECTOR, READ_MODEL_PROJECTOR};
use crate::verify::proof::Finding;
use crate::verify::{Check, VerifyError, VerifyProgress};

/// How often to look. The ones that are waited for may be other processes, and nothing that they do sends a signal here.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Events looked at in one go.
const PAGE: i64 = 4_000;

/// The position, and how far everything is through it.
pub(super) struct Drained {
    /// The position: the log's head at the beginning.
    pub position: Position,
    /// How far the relay is; not beyond the position.
    pub published: Position,
    /// How far the ledger is; not beyond the position.
    pub ledger: Position,
    /// How far the read model is; not beyond the position.
    pub read_model: Position,
    /// Whether all are through it.
    pub check: Check,
}

/// Waits for up to `wait_max`.
pub(super) async fn wait(
    database: &Database,
    wait_max: Duration,
    progress: &mut (dyn FnMut(VerifyProgress) + Send),
) -> Result<Drained, VerifyError> {
    let began = Instant::now();
    let mut now = database.standing().await?;
    let position = now.head;
    let due = Due::find(database, &now, position).await?;
    while !(now.published >= position && BUILT_IN.iter().all(|group| due.through(&now, group) == position)) {
        let done = BUILT_IN.iter().map(|group| due.through(&now, group)).fold(now.published, Position::min);
        progress(VerifyProgress { stage: "waiting", done: done.max(0) as u64, total: position as u64 });
        if began.elapsed() >= wait_max {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = database.standing().await?;
    }
    let (published, ledger, read_model) =
        (now.published.min(position), due.through(&now, LEDGER_PROJECTOR), due.through(&now, READ_MODEL_PROJECTOR));
    let check = check(
        [("relay", published), (LEDGER_PROJECTOR, ledger), (READ_MODEL_PROJECTOR, read_model)],
        position,
        wait_max,
    );
    Ok(Drained { position, published, ledger, read_model, check })
}

/// The last event of each partition up to the position: whoever has processed that one is through, wherever its checkpoint
/// stands. Under traffic the checkpoint of a partition that has no events stays where it is.
struct Due {
    position: Position,
    partitions: i32,
    last: BTreeMap<i32, Position>,
}

impl Due {
    /// Looks through what somebody may still lack.
    async fn find(database: &Database, now: &Standing, position: Position) -> Result<Self, VerifyError> {
        let mut due = Due { position, partitions: now.partitions(), last: BTreeMap::new() };
        let mut cursor = BUILT_IN.iter().map(|group| now.group_through(group)).min().unwrap_or(0);
        while cursor < position {
            let page = database.event_times_after(cursor, PAGE).await?;
            let Some(last) = page.last() else { break };
            cursor = last.position;
            for event in page.iter().take_while(|event| event.position <= position) {
                due.last.insert(partition_of(event.wallet_id.as_bytes(), due.partitions), event.position);
            }
        }
        Ok(due)
    }

    /// Position up to which a group has everything; not beyond the position that is asked for.
    fn through(&self, now: &Standing, group: &str) -> Position {
        let lacking = self.last.iter().map(|(partition, last)| (now.through(group, *partition), *last));
        let lacking = lacking.filter(|(checkpoint, last)| checkpoint < last).map(|(checkpoint, _)| checkpoint);
        lacking.min().unwrap_or(self.position)
    }
}

fn check(through: [(&str, Position); 3], position: Position, waited: Duration) -> Check {
    let mut finding = Finding::new("drained");
    let behind: Vec<String> = through
        .into_iter()
        .filter(|(_, through)| *through < position)
        .map(|(name, through)| format!("{name} is at position {through}"))
        .collect();
    let expected = format!("relay and projections through position {position}");
    if !behind.is_empty() {
        finding.differs(format!("after {} s", waited.as_secs()), &expected, behind.join(", "));
    }
    finding.check(expected, "all through it")
}
