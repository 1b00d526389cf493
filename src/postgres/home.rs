//! Where a database's events are. The first start that writes settles it, for ever: with two homes each would leave out what the
//! other one has.

use crate::log::LogError;
use crate::postgres::Database;
use crate::postgres::log::log_error;

/// Where the events are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventHome {
    /// In the database itself.
    Database,
    /// In an event store of their own; the database has a copy, by which it knows that store again.
    EventStore,
}

impl EventHome {
    fn name(self) -> &'static str {
        match self {
            EventHome::Database => "database",
            EventHome::EventStore => "event store",
        }
    }

    /// Whether the table's word for a home is an event store's.
    pub(super) fn is_event_store(name: &str) -> bool {
        name == EventHome::EventStore.name()
    }

    fn named(name: &str) -> Result<Self, LogError> {
        let found = [EventHome::Database, EventHome::EventStore].into_iter().find(|home| home.name() == name);
        found.ok_or_else(|| LogError::Corrupt(format!("the events' home is called {name:?}")))
    }
}

impl Database {
    /// Where the events are; `None` where nobody has begun to write yet.
    ///
    /// # Errors
    /// [`LogError`] where the database does not answer.
    pub async fn event_home(&self) -> Result<Option<EventHome>, LogError> {
        let statement = "SELECT home FROM event_home";
        let home: Option<String> =
            sqlx::query_scalar(statement).fetch_optional(self.pool()).await.map_err(log_error)?;
        home.as_deref().map(EventHome::named).transpose()
    }

    /// Settles where the events are, unless somebody has before; where they are then. Of two that ask at once, one settles it
    /// and both are told the same.
    pub(crate) async fn claim_event_home(&self, home: EventHome) -> Result<EventHome, LogError> {
        // Events that were written before there was such a claim are here.
        let statement = "INSERT INTO event_home (home)
                         SELECT CASE WHEN position > 0 THEN $2 ELSE $1 END FROM log_head
                             ON CONFLICT DO NOTHING";
        let claiming = sqlx::query(statement).bind(home.name()).bind(EventHome::Database.name());
        claiming.execute(self.pool()).await.map_err(log_error)?;
        // A statement of its own: it sees whose claim the first one has waited for.
        self.event_home().await?.ok_or_else(|| LogError::Corrupt("the claim of the events' home is gone".to_owned()))
    }
}
