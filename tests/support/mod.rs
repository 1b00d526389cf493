//! What the tests stand on: one PostgreSQL server for each test binary, and in it a database for each test.
//!
//! Nothing has to be set up: the server is the one that `wallex serve` manages for itself, started by the first test that
//! needs it. It is gone when the process is, however that ends.

#![allow(dead_code, reason = "each test binary uses its own part of this, so an expectation would not hold in all")]

use std::process::{Command, Stdio};
use std::str::FromStr;

use tokio::sync::OnceCell;
use uuid::Uuid;
use wallex::embedded::ManagedPostgres;
use wallex::log::PostgresLog;
use wallex::postgres::Database;
use wallex::postgres::sqlx::postgres::PgConnectOptions;
use wallex::postgres::sqlx::{self, AssertSqlSafe, Connection, PgConnection};

/// Connections of one test's pool. Tests run side by side on a server that allows 64.
const CONNECTIONS_MAX: u32 = 5;

/// The database that holds the schema already: copying it is much faster than migrating anew.
const TEMPLATE: &str = "wallex_test_template";

/// A PostgreSQL server of the tests' own.
#[derive(Debug)]
pub struct TestServer {
    postgres: ManagedPostgres,
}

impl TestServer {
    /// The server that the tests of this binary share.
    pub async fn shared() -> &'static TestServer {
        static SHARED: OnceCell<TestServer> = OnceCell::const_new();
        SHARED.get_or_init(TestServer::start).await
    }

    /// A server for one test alone: for tests that stop, kill or halt it.
    pub async fn start() -> TestServer {
        let directory = room_for_a_server();
        let postgres = ManagedPostgres::start(&directory).await.expect("PostgreSQL starts");
        let server = TestServer { postgres };
        server.run(&format!("CREATE DATABASE {TEMPLATE}")).await;
        let template =
            Database::connect(&with_database(server.postgres.url(), TEMPLATE), 1).await.expect("a connection");
        template.migrate().await.expect("the schema");
        template.pool().close().await;
        // Nobody may be connected to what is copied, autovacuum included.
        server.run(&format!("ALTER DATABASE {TEMPLATE} WITH ALLOW_CONNECTIONS false")).await;
        server
    }

    /// Where it is, as a URL of its own database.
    pub fn url(&self) -> &str {
        self.postgres.url()
    }

    /// Process id of its postmaster. `None` while it does not run.
    pub fn pid(&self) -> Option<i32> {
        match *self.postgres.state().borrow() {
            wallex::embedded::ServerState::Running { pid } => i32::try_from(pid).ok(),
            _ => None,
        }
    }

    /// Kills it, as a crash would. It is started again by itself.
    pub fn kill(&self) {
        let pid = self.pid().expect("it runs");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("its end");
    }

    /// A new database with the schema in it.
    pub async fn database(&self) -> TestDatabase {
        self.create(&format!("TEMPLATE {TEMPLATE}")).await
    }

    /// A new database with nothing in it.
    pub async fn empty_database(&self) -> TestDatabase {
        self.create("").await
    }

    async fn create(&self, options: &str) -> TestDatabase {
        let name = format!("t_{}", Uuid::now_v7().simple());
        self.run(&format!("CREATE DATABASE {name} {options}")).await;
        let url = with_database(self.postgres.url(), &name);
        let database = Database::connect(&url, CONNECTIONS_MAX).await.expect("a connection");
        TestDatabase { server_url: self.postgres.url().to_owned(), name, url, database }
    }

    async fn run(&self, statement: &str) {
        run_on(self.postgres.url(), statement).await.expect("an administrator's statement");
    }
}

/// A database of one test's own, dropped with this.
#[derive(Debug)]
pub struct TestDatabase {
    server_url: String,
    name: String,
    /// Where it is.
    pub url: String,
    /// A pool of few connections to it.
    pub database: Database,
}

impl TestDatabase {
    /// A database with the schema in it, on the server that the tests of this binary share.
    pub async fn new() -> Self {
        TestServer::shared().await.database().await
    }

    /// The event log in it, through a writing connection of its own: as another process would have it.
    pub fn log(&self) -> PostgresLog {
        PostgresLog::new(self.database.clone())
    }

    /// Runs a statement, and tells how many rows it touched.
    pub async fn run(&self, statement: &str) -> u64 {
        sqlx::query(AssertSqlSafe(statement)).execute(self.database.pool()).await.expect(statement).rows_affected()
    }

    /// The one number that a query answers with.
    pub async fn number(&self, query: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(self.database.pool()).await.expect(query)
    }

    /// Ends every connection to it and takes no new ones.
    pub async fn refuse_connections(&self) {
        self.allow_connections(false).await;
        self.end_connections().await;
    }

    /// Takes connections again.
    pub async fn accept_connections(&self) {
        self.allow_connections(true).await;
    }

    async fn allow_connections(&self, allowed: bool) {
        let statement = format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {allowed}", self.name);
        run_on(&self.server_url, &statement).await.expect("an administrator's statement");
    }

    /// Ends every connection to it but the one that asks; how many there were.
    pub async fn end_connections(&self) -> u64 {
        let statement =
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'", self.name);
        run_on(&self.server_url, &statement).await.expect("connections end")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server_url, statement) = (self.server_url.clone(), format!("DROP DATABASE {} WITH (FORCE)", self.name));
        // A thread of its own, because the test's runtime is busy with the test that this drop is part of. Nobody waits
        // for it: what it does not get round to goes with the server.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run_on(&server_url, &statement)).map_err(std::io::Error::other)
        });
    }
}

async fn run_on(url: &str, statement: &str) -> Result<u64, sqlx::Error> {
    let mut connection = PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await?;
    let done = sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(done.rows_affected())
}

/// The same server's URL with another database.
fn with_database(url: &str, name: &str) -> String {
    let (before_query, query) = url.split_once('?').map_or((url, ""), |(before, query)| (before, query));
    let server = before_query.rsplit_once('/').map_or(before_query, |(server, _)| server);
    format!("{server}/{name}?{query}")
}

/// A new directory for a server's data, removed when this process has ended.
///
/// Statics are not dropped at exit and a killed process drops nothing, so a shell does the removing: it notices our end by
/// its standard input's, waits until the server has gone too, as it does by itself, and removes what is left.
fn room_for_a_server() -> std::path::PathBuf {
    let directory = tempfile::Builder::new().prefix("wallex-test-").tempdir().expect("a directory").keep();
    let script = r#"
        trap '' INT HUP TERM
        read -r _
        for _ in $(seq 100); do [ -e "$1/postgres/postmaster.pid" ] || break; sleep 0.1; done
        rm -rf "$1""#;
    let mut remover = Command::new("sh");
    remover.args(["-c", script, "remover"]).arg(&directory);
    let remover = remover.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell");
    // Its standard input stays open until this process ends.
    std::mem::forget(remover);
    directory
}
