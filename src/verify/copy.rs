//! Where the log is the copy of an event store: waits until it has what the store had, so that what was answered before is proven.

use std::time::{Duration, Instant};

use crate::ingest::{Recognised, recognise};
use crate::kurrentdb::KurrentLog;
use crate::lag::Strays;
use crate::log::EventLog;
use crate::postgres::Database;
use crate::verify::drain::LOOK_EVERY;
use crate::verify::proof::Finding;
use crate::verify::{Check, VerifyError, VerifyProgress};

/// Waits for up to `wait_max`. `None` where the log is no copy.
pub(super) async fn wait(
    database: &Database,
    store: &KurrentLog,
    wait_max: Duration,
    progress: &mut (dyn FnMut(VerifyProgress) + Send),
) -> Result<Option<Check>, VerifyError> {
    let began = Instant::now();
    let mut now = database.standing().await?;
    if !now.is_a_copy {
        return Ok(None);
    }
    let mut finding = Finding::new("copy");
    let reached = database.reached_now().await?;
    match recognise(store, database, reached.as_ref()).await {
        Ok(Recognised::Since(_)) => {}
        Ok(Recognised::Another(another)) => {
            finding.differs(store.masked(), "the event store that was copied", another);
            return Ok(Some(finding.check("", "")));
        }
        Err(error) => {
            finding.differs(store.masked(), "an event store that says what it has", error);
            return Ok(Some(finding.check("", "")));
        }
    }
    let head = match store.head().await {
        Ok(head) => head,
        Err(error) => {
            finding.differs(store.masked(), "an event store that says where it ends", error);
            return Ok(Some(finding.check("", "")));
        }
    };
    let expected = format!("what the event store had, up to its place {head}");
    loop {
        let copied = now.copied.map_or(0, |copied| copied.commit);
        if copied >= head {
            let strays = database.reached_now().await?.map(|reached| reached.strays);
            let found = match strays.and_then(|Strays { events, first }| Some((events, first?))) {
                // No wallet's, but whoever put money there shall not look for it in vain.
                Some((events, first)) => format!(
                    "all of it; strays, in streams that are called like a wallet's and are none: {events}, the first in {first:?}"
                ),
                None => "all of it".to_owned(),
            };
            return Ok(Some(finding.check(expected, found)));
        }
        progress(VerifyProgress { stage: "copying", done: copied.unsigned_abs(), total: head.unsigned_abs() });
        if began.elapsed() >= wait_max {
            finding.differs(format!("after {} s", wait_max.as_secs()), expected, format!("copied up to {copied}"));
            return Ok(Some(finding.check("", "")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        now = database.standing().await?;
    }
}
