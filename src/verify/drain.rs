//! Picks the position to verify at, and waits until everything has come through it.

use std::time::{Duration, Instant};

use crate::lag::{BUILT_IN_GROUPS, Progress};
use crate::log::Position;
use crate::postgres::Database;
use crate::verify::proof::Finding;
use crate::verify::{Check, VerifyError, VerifyProgress};

/// How often to look. The ones that are waited for may be other processes, and nothing that they do sends a signal here.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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
    let mut now = crate::lag::progress(database).await?;
    let position = now.head;
    while !is_through(&now, position) && began.elapsed() < wait_max {
        let done = built_in(&now).map(|(_, through)| through).fold(now.published, Position::min);
        progress(VerifyProgress { stage: "waiting", done: done.max(0) as u64, total: position as u64 });
        tokio::time::sleep(LOOK_EVERY).await;
        now = crate::lag::progress(database).await?;
    }
    let through = |group: &str| {
        let found = built_in(&now).find(|(name, _)| *name == group);
        found.map_or(0, |(_, through)| through).min(position)
    };
    Ok(Drained {
        position,
        published: now.published.min(position),
        ledger: through(BUILT_IN_GROUPS[0]),
        read_model: through(BUILT_IN_GROUPS[1]),
        check: check(&now, position, wait_max),
    })
}

/// The groups whose tables are compared. Others may be as far behind as they like.
fn built_in(progress: &Progress) -> impl Iterator<Item = (&str, Position)> {
    let of_ours = |name: &&str| BUILT_IN_GROUPS.contains(name);
    progress.groups.iter().map(|group| (group.group.as_str(), group.position)).filter(move |(name, _)| of_ours(name))
}

fn is_through(progress: &Progress, position: Position) -> bool {
    progress.published >= position && built_in(progress).all(|(_, through)| through >= position)
}

fn check(progress: &Progress, position: Position, waited: Duration) -> Check {
    let mut finding = Finding::new("drained");
    let all = std::iter::once(("relay", progress.published)).chain(built_in(progress));
    let behind: Vec<String> = all
        .filter(|(_, through)| *through < position)
        .map(|(name, through)| format!("{name} is at position {through}"))
        .collect();
    let expected = format!("relay and projections through position {position}");
    if !behind.is_empty() {
        finding.differs(format!("after {} s", waited.as_secs()), &expected, behind.join(", "));
    }
    finding.check(expected, "all through it")
}
