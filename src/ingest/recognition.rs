//! Whether the event store is the one that the copy was made of.
//!
//! Behind the same address there may be another cluster one day, one that was emptied, or one that was put back to an earlier state.
//! To go on from the copy's place there would leave out whatever lies before it, and mix what the two hold. So the copy keeps the id
//! of the event at its place: each page is read from that very event on, and where it is not there any more, the copy's newest event
//! is looked for in its wallet's stream. Servers do take away events of others for good (of streams that are cut to a length or an
//! age, their own statistics among them); a wallet's event never goes away.

use std::sync::Arc;

use thiserror::Error;

use crate::kurrentdb::{KurrentLog, LogPlace, Looked, Mark};
use crate::log::LogError;
use crate::postgres::{Database, NewestCopied, Reached, StorePlace};

/// The store is not the one that the copy was made of, or lacks what was copied from it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "the event store at {at} is not the one that this database has a copy of, or was put back to an earlier state: {why}. Nothing \
     is copied from it, and no command is taken. Name the right one with --event-store or WALLEX_EVENT_STORE, or name an empty \
     database, which is then filled from this one"
)]
pub struct AnotherStore {
    at: Arc<str>,
    why: String,
}

/// What was found out about a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recognised {
    /// It is the one. The copy has everything up to there; `None`: it has nothing, so it begins with the log's first event.
    Since(Option<Mark>),
    /// It is not.
    Another(AnotherStore),
}

/// Looks whether the store is the one that the copy was made of.
///
/// # Errors
/// [`LogError`] where the store or the database does not answer.
pub(crate) async fn recognise(
    log: &KurrentLog,
    database: &Database,
    reached: Option<&Reached>,
) -> Result<Recognised, LogError> {
    let Some(reached) = reached else { return Ok(Recognised::Since(None)) };
    let another = |why: String| Ok(Recognised::Another(AnotherStore { at: log.masked().into(), why }));
    if reached.stream_prefix != **log.stream_prefix() {
        let (copied, named) = (&reached.stream_prefix, log.stream_prefix());
        return another(format!("streams named {copied}… were copied, and now those named {named}… are asked for"));
    }
    let place = log_place(reached.place);
    // A server may also refuse to read from where there is nothing. That is no answer to the question yet.
    let at_place = log.scan(Some(place), 1).await.ok().and_then(|page| page.at_place);
    if let (Some(event_id), true) = (at_place, at_place == reached.event_id) {
        return Ok(Recognised::Since(Some(Mark { place, event_id })));
    }
    let Some(newest) = database.newest_copied().await? else { return Ok(Recognised::Since(None)) };
    let NewestCopied { stream, revision, event_id } = newest;
    match log.look_for(&stream, revision, event_id).await? {
        Looked::There(mark) => Ok(Recognised::Since(Some(mark))),
        Looked::Another => another(format!("event {revision} of wallet {stream} there is not the one that was copied")),
        Looked::Missing => another(format!("event {revision} of wallet {stream}, which was copied, is not there")),
    }
}

pub(super) fn log_place(place: StorePlace) -> LogPlace {
    LogPlace { commit: place.commit.unsigned_abs(), prepare: place.prepare.unsigned_abs() }
}

pub(super) fn store_place(place: LogPlace) -> Result<StorePlace, LogError> {
    let small = |number: u64| {
        i64::try_from(number).map_err(|_| LogError::Corrupt(format!("an event lies at {number}, which is no position")))
    };
    Ok(StorePlace { commit: small(place.commit)?, prepare: small(place.prepare)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is what a server says for "no position", in a checkpoint message.
    #[test]
    fn what_is_no_position_never_becomes_a_checkpoint() {
        let place = LogPlace { commit: u64::MAX, prepare: u64::MAX };
        assert!(matches!(store_place(place), Err(LogError::Corrupt(_))));
        let place = LogPlace { commit: 7, prepare: 5 };
        assert_eq!(store_place(place).map(log_place).ok(), Some(place));
    }
}
