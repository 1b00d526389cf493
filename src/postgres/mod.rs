//! PostgreSQL: connecting, migrating, and every statement that wallex sends. The only room that names `sqlx`.

use std::str::FromStr;
use std::time::Duration;

mod checkpoint;
mod dead_letters;
mod home;
mod ingest;
mod ingest_checkpoint;
mod keys;
mod lag;
mod ledger;
pub mod log;
mod parked;
pub mod queries;
mod read_model;
mod rebuild;
mod relay;
mod relay_status;
mod verify;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgPool, PgPoolOptions};
use thiserror::Error;

pub(crate) use checkpoint::{
    Checkpoint, CheckpointMove, LoggedEvent, last_events_between, load_checkpoints, lock_preparation, logged_events,
    move_checkpoints, published,
};
pub(crate) use dead_letters::{
    discard, events_at, lock_queue, note_deed, note_failure, queue_beginning, queue_length, unpark,
};
pub use home::EventHome;
pub(crate) use ingest::{CopiedEvent, CopyError, IngestSession, TransferLeg};
pub(crate) use ingest_checkpoint::{NewestCopied, PageEnd, Reached, StorePlace};
pub use ledger::LedgerEntry;
pub(crate) use ledger::insert_ledger_entries;
pub(crate) use parked::{
    ParkedRecord, StoredRecord, count_parked, lock_copies, note_copies, note_parked_max, note_pause, park,
    parked_wallets, uncopied,
};
pub(crate) use read_model::{NewWalletRow, WalletRowChange, insert_wallet_rows, update_wallet_rows};
pub use rebuild::KeptTable;
pub(crate) use rebuild::{
    Compared, Comparison, DifferingRow, Frontier, RebuildSession, RebuiltTable, compare, frontier, is_in_passing, swap,
};
pub(crate) use relay::{LEASE, RelaySession, RelayTail, Withheld, listen_for_appends, slowest_positions};
pub use relay_status::{RelayState, RelayStatus, WithheldWallet};
/// `sqlx` itself, so that a projection of one's own writes with the version that wallex uses.
pub use sqlx;
/// A connection inside a transaction, as a projection's handler is given it.
pub use sqlx::PgConnection;

/// Why the database could not be opened. One clear line each.
#[derive(Debug, Error)]
pub enum DatabaseError {
    /// The URL cannot be read.
    #[error("the database URL cannot be read ({0}); it should look like postgres://user:password@host:5432/database")]
    Url(String),
    /// Nobody answers there, or not to us.
    #[error(
        "cannot connect to the database {url}: {reason}; name one that runs with --database-url or WALLEX_DATABASE_URL"
    )]
    Connect {
        /// Where, with the password masked.
        url: String,
        /// What the driver says.
        reason: String,
    },
    /// The schema was made by a newer wallex.
    #[error(
        "the database has migration {0}, which this wallex does not know: it was made by a newer wallex; use that one"
    )]
    NewerSchema(i64),
    /// The schema was made by an older wallex, or there is none yet.
    #[error("the database's schema is at version {found}, this wallex needs {needed}; run `wallex migrate`")]
    OlderSchema {
        /// The version found, 0 where there is no schema.
        found: i64,
        /// The version needed.
        needed: i64,
    },
    /// A migration failed.
    #[error("the database could not be migrated: {0}")]
    Migrate(String),
}

/// For statements that look single rows up, many times a second: always by index. PostgreSQL keeps one plan for all their
/// runs, and made on a table that is still small, that plan reads the whole of it, for as long as nobody analyses it.
const BY_INDEX: [(&str, &str); 3] =
    [("enable_seqscan", "off"), ("enable_hashjoin", "off"), ("enable_mergejoin", "off")];

/// How long a transaction of a projection may lie open without a word from its process, as PostgreSQL writes durations. A process
/// that was halted in one holds its checkpoints; whoever got its partitions meanwhile is not to wait for it to wake.
const OPEN_IDLE_MAX: &str = "10s";

/// The schema's history, in `migrations/`.
static MIGRATIONS: Migrator = sqlx::migrate!();

/// How long a caller waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long is then spent on learning why there was none.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// What a database URL begins with. The driver would take any other for PostgreSQL's too.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// How long a connection may lie idle and still be used without asking whether it lives.
const UNTESTED_IDLE_MAX: Duration = Duration::from_secs(1);

/// A pool of connections to one database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    pool: PgPool,
    by_index: PgPool,
    by_index_options: PgConnectOptions,
    masked_url: String,
}

impl Database {
    /// Connects, with at most `connections_max` connections.
    ///
    /// # Errors
    /// [`DatabaseError`] where the URL is wrong or nobody answers within some 10 seconds.
    pub async fn connect(url: &str, connections_max: u32) -> Result<Self, DatabaseError> {
        if !SCHEMES.iter().any(|scheme| url.starts_with(scheme)) {
            return Err(DatabaseError::Url("it is not one of PostgreSQL".to_owned()));
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| DatabaseError::Url(error.to_string()))?
            .application_name("wallex")
            .statement_cache_capacity(256);
        let masked_url = masked(url);
        let pool_options = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A connection used a moment ago is taken as it is; one that has lain idle may have died with its server.
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > UNTESTED_IDLE_MAX {
                        sqlx::Connection::ping(connection).await?;
                    }
                    Ok(true)
                })
            });
        let pool = match pool_options.clone().connect_with(options.clone()).await {
            Ok(pool) => pool,
            Err(error) => {
                let reason = refusal(&options, error).await.to_string();
                return Err(DatabaseError::Connect { url: masked_url, reason });
            }
        };
        let by_index_options =
            options.options(BY_INDEX).options([("idle_in_transaction_session_timeout", OPEN_IDLE_MAX)]);
        let by_index = pool_options.connect_lazy_with(by_index_options.clone());
        Ok(Database { pool, by_index, by_index_options, masked_url })
    }

    /// Brings the schema up to this program's version; does nothing where it is.
    ///
    /// # Errors
    /// [`DatabaseError::NewerSchema`] where a newer wallex has been here, [`DatabaseError::Migrate`] for the rest.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        MIGRATIONS.run(&self.pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => DatabaseError::NewerSchema(version),
            other => DatabaseError::Migrate(other.to_string()),
        })
    }

    /// The version of the newest migration that was applied; 0 where there is no schema yet.
    ///
    /// # Errors
    /// [`DatabaseError::Migrate`] where the database does not answer.
    pub async fn schema_version(&self) -> Result<i64, DatabaseError> {
        let failed = |error: sqlx::Error| DatabaseError::Migrate(error.to_string());
        let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        if !exists {
            return Ok(0);
        }
        let statement = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
        sqlx::query_scalar(statement).fetch_one(&self.pool).await.map_err(failed)
    }

    /// Checks that the schema is the one that this program was written for, and changes nothing.
    ///
    /// # Errors
    /// [`DatabaseError::OlderSchema`] or [`DatabaseError::NewerSchema`].
    pub async fn check_schema(&self) -> Result<(), DatabaseError> {
        let needed = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
        match self.schema_version().await? {
            found if found < needed => Err(DatabaseError::OlderSchema { found, needed }),
            found if found > needed => Err(DatabaseError::NewerSchema(found)),
            _ => Ok(()),
        }
    }

    /// The URL with its password masked, to show.
    pub fn masked_url(&self) -> &str {
        &self.masked_url
    }

    /// The pool, for statements of one's own.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A second pool, whose connections look rows up by index and nothing else: for the write path, the reads of single
    /// wallets and the projections. It has connections of its own, so that slow reports do not keep these waiting.
    pub(crate) fn by_index(&self) -> &PgPool {
        &self.by_index
    }

    /// Closes every connection, and waits for those in use.
    pub async fn close(&self) {
        self.pool.close().await;
        self.by_index.close().await;
    }

    /// How to open a connection outside the pools: the write path's and the relay's session lock are their own.
    pub(crate) fn connect_options(&self) -> &PgConnectOptions {
        &self.by_index_options
    }
}

/// Why nobody could connect. The pool tries again while nobody listens, and says at the end that time is up and no more;
/// one attempt without it says why.
async fn refusal(options: &PgConnectOptions, error: sqlx::Error) -> sqlx::Error {
    if !matches!(error, sqlx::Error::PoolTimedOut) {
        return error;
    }
    let attempt = <PgConnection as sqlx::Connection>::connect_with(options);
    match tokio::time::timeout(REASON_TIMEOUT, attempt).await {
        Ok(Err(reason)) => reason,
        Ok(Ok(_)) | Err(_) => error,
    }
}

/// Whether the same statement may well succeed later: the server is away, going or coming, or somebody was in the way.
pub fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // Connection, resources (disk full, too many connections), operator intervention, system error,
            // and of transaction rollback: serialization failure, deadlock. Lock not available. Read-only: a failover.
            // A transaction that lay idle for too long: we held the log's head, and were halted.
            ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class))
                || ["40001", "40P01", "55P03", "25006", "25P03"].contains(&code.as_ref())
        }),
        _ => false,
    }
}

/// Whether the statement failed for the values that it was given, or those that it found: with others it would have gone.
/// Anything else, a missing table or right too, is about the database as it is now.
pub(crate) fn is_about_the_data(error: &sqlx::Error) -> bool {
    match error {
        // Cardinality, data exception, integrity constraint, check option, a limit exceeded (a value that no index takes), raised by
        // a function.
        sqlx::Error::Database(database) => database
            .code()
            .is_some_and(|code| ["21", "22", "23", "44", "54", "P0"].iter().any(|class| code.starts_with(class))),
        sqlx::Error::RowNotFound
        | sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    }
}

/// Between the causes of an error, the outermost first, where they are kept as one text.
pub(crate) const CAUSED_BY: &str = "\ncaused by: ";

/// Everything that an error has to say: of the database's own its detail, what it is about, and its code; then what caused it.
pub(crate) fn causes(error: &sqlx::Error) -> String {
    let mut parts = Vec::new();
    match error.as_database_error() {
        Some(database) => {
            parts.push(database.message().to_owned());
            if let Some(database) = database.try_downcast_ref::<PgDatabaseError>() {
                parts.extend(database.detail().map(str::to_owned));
            }
            let constraint = database.constraint().map(|name| format!("constraint {name}"));
            let table = database.table().map(|name| format!("table {name}"));
            let code = database.code().map(|code| format!("SQLSTATE {code}"));
            parts.push([constraint, table, code].into_iter().flatten().collect::<Vec<_>>().join(", "));
        }
        None => {
            parts.push(error.to_string());
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                let text = cause.to_string();
                // Some say what caused them themselves.
                if parts.last().is_none_or(|last| !last.ends_with(&text)) {
                    parts.push(text);
                }
                source = cause.source();
            }
        }
    }
    parts.join(CAUSED_BY)
}

/// Hides the password of a URL: `postgres://user:***@host/database`.
pub fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(not a URL)".to_owned();
    };
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    // A password may itself hold an @: the last one ends it.
    let shown = match rest[..authority_end].rsplit_once('@') {
        Some((user, host)) => {
            let name = user.split_once(':').map_or(user, |(name, _)| name);
            let mark = if user.contains(':') { ":***" } else { "" };
            format!("{scheme}://{name}{mark}@{host}{}", &rest[authority_end..])
        }
        None => url.to_owned(),
    };
    match shown.split_once("password=") {
        Some((before, after)) => {
            let kept = after.find('&').map_or("", |end| &after[end..]);
            format!("{before}password=***{kept}")
        }
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn passwords_are_never_shown() {
        assert_eq!(masked("postgres://u:se@cret@h:5432/d"), "postgres://u:***@h:5432/d");
        assert_eq!(
            masked("postgres://u@h/d?password=secret&sslmode=require"),
            "postgres://u@h/d?password=***&sslmode=require"
        );
        assert_eq!(masked("postgres://h/d"), "postgres://h/d");
        assert_eq!(masked("secret"), "(not a URL)");
    }
}
