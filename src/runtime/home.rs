//! Where the events are: settled by the first start that writes, and at each later one looked at again.

use std::time::Duration;

use tokio::time::Instant;

use crate::ingest::{Recognised, recognise};
use crate::kurrentdb::KurrentLog;
use crate::postgres::{Database, EventHome};
use crate::runtime::{Config, OpenError};

/// How long an event store is given to show at the start that it lets us in and is the one that was copied.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// Events have one home, for ever: whoever writes first, commands or a copy, settles which, and who would write elsewhere is
/// refused; in another event store than before, too.
pub(super) async fn claim(config: &Config, store: Option<&KurrentLog>, database: &Database) -> Result<(), OpenError> {
    let wanted = match store {
        Some(_) => EventHome::EventStore,
        None => EventHome::Database,
    };
    let copies = config.parts.relay && store.is_some();
    if !(config.parts.commands || copies) {
        return Ok(());
    }
    let until = Instant::now() + STORE_PATIENCE;
    // Before anything is settled by it.
    if let Some(store) = store
        && tokio::time::timeout_at(until, store.denies_access()).await == Ok(true)
    {
        return Err(OpenError::EventStoreDenies(store.masked().to_owned()));
    }
    let home = database.claim_event_home(wanted).await.map_err(|error| OpenError::Log(error.to_string()))?;
    match (home, store) {
        (EventHome::EventStore, Some(store)) => check(store, database, until).await,
        (EventHome::Database, None) => Ok(()),
        (EventHome::Database, Some(_)) => Err(OpenError::EventsAreHere),
        (EventHome::EventStore, None) => Err(OpenError::EventsAreElsewhere),
    }
}

/// The same on a database whose schema is somebody else's to bring up to date.
pub(super) async fn claim_attached(
    config: &Config,
    store: Option<&KurrentLog>,
    database: &Database,
) -> Result<(), OpenError> {
    if store.is_some() {
        database.check_schema().await?;
    }
    claim(config, store, database).await
}

/// Refuses an event store that is not the one which the database has a copy of. One that does not answer is waited for later by
/// whoever needs it, and looked at then.
async fn check(store: &KurrentLog, database: &Database, until: Instant) -> Result<(), OpenError> {
    let reached = database.reached().await.map_err(|error| OpenError::Log(error.to_string()))?;
    match tokio::time::timeout_at(until, recognise(store, database, reached.as_ref())).await {
        Ok(Ok(Recognised::Another(another))) => Err(another.into()),
        Ok(Ok(Recognised::Since(_)) | Err(_)) | Err(_) => Ok(()),
    }
}
