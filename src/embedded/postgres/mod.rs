//! PostgreSQL, managed: the machine's own binaries on a private cluster in the data directory.
//!
//! - **Durable.** `fsync`, `synchronous_commit` and `full_page_writes` are on, and data pages have checksums.
//! - **Private.** No TCP port; a Unix socket in a directory that only the owner of the data (and root) can enter.
//!   Within it nobody is asked for a password. Root hands the server to the user `postgres`, else `nobody`, because
//!   PostgreSQL refuses to run as root; an ordinary user runs it himself.
//! - **It goes when we go.** On Linux the kernel tells the server to shut down when the thread that started it ends, so
//!   a supervisor thread lives as long as the server. Elsewhere a server can outlive a killed wallex; the next start
//!   stops it.
//! - **It comes back.** When the server ends by itself (killed, out of memory), it is started again, at once and then
//!   with backoff for as long as it takes; the URL stays the same. [`ManagedPostgres::state`] tells.
//!
//! The caller holds the [`DataDir`](super::DataDir): whatever server is found on the cluster is taken for a leftover.

mod account;
mod binaries;
mod cluster;
mod error;
mod leftover;
mod server;
mod server_log;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{oneshot, watch};

pub use binaries::PostgresSearch;
pub use error::PostgresError;

use error::io_error;
use server::{Event, Server, Setup, Wake};

/// How long the first start waits for server processes of a killed predecessor to end.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(30);
/// Between attempts to start a server again: the first pause, and the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the managed server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// Not ready yet, for the first time.
    Starting,
    /// It takes connections.
    Running {
        /// Process id of its postmaster.
        pid: u32,
    },
    /// It ended by itself and is being started again.
    Restarting {
        /// How many attempts have failed so far.
        failed_attempts: u32,
    },
    /// Stopped, because it was asked to, or because the first start failed.
    Stopped,
}

/// A PostgreSQL server that runs for as long as this handle lives.
///
/// Stop it with [`stop`](ManagedPostgres::stop). Dropping the handle stops it too, and blocks the thread meanwhile.
#[derive(Debug)]
pub struct ManagedPostgres {
    url: String,
    events: Sender<Event>,
    state: watch::Receiver<ServerState>,
    supervisor: Option<JoinHandle<()>>,
}

impl ManagedPostgres {
    /// Starts the server on the cluster `postgres` below `data_dir`, making it where there is none, and waits until it
    /// takes connections: one to two seconds for a new cluster, some 50 ms for one that was stopped in order, and after
    /// a kill as long as the replay of at most 256 MB of log takes, about a second.
    ///
    /// # Errors
    /// See [`PostgresError`]; each says in one line what would be right.
    pub async fn start(data_dir: &Path) -> Result<ManagedPostgres, PostgresError> {
        ManagedPostgres::start_with(data_dir, PostgresSearch::System).await
    }

    /// The same with the binaries looked for elsewhere.
    ///
    /// # Errors
    /// As for [`start`](ManagedPostgres::start).
    pub async fn start_with(data_dir: &Path, search: PostgresSearch) -> Result<ManagedPostgres, PostgresError> {
        let (notify, events) = mpsc::channel();
        let (state_sender, state) = watch::channel(ServerState::Starting);
        let (ready, is_ready) = oneshot::channel();
        let supervisor = Supervisor { events, notify: notify.clone(), state: state_sender, runs: 0 };
        let directory = data_dir.to_owned();
        let thread = thread::Builder::new()
            .name("wallex-postgres".to_owned())
            .spawn(move || supervisor.run(directory, search, ready))
            .map_err(io_error("start a thread for the server in", data_dir))?;
        // Made before the wait: dropped in the middle of it, it stops what has been started.
        let mut handle = ManagedPostgres { url: String::new(), events: notify, state, supervisor: Some(thread) };
        handle.url = is_ready.await.unwrap_or(Err(PostgresError::Stopped))?;
        Ok(handle)
    }

    /// Where the database is: `postgres://wallex@localhost:5432/wallex?host=…`, for psql and sqlx alike. It stays the
    /// same while this handle lives, whatever happens to the server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What the server is doing, and a signal each time that changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.clone()
    }

    /// Stops the server in an orderly way: connections are ended, everything is checkpointed. Within 40 s it is down in
    /// any case.
    pub async fn stop(mut self) {
        let _ = self.events.send(Event::Stop);
        // An error means that the supervisor is gone already.
        let _ = self.state.wait_for(|state| *state == ServerState::Stopped).await;
    }
}

impl Drop for ManagedPostgres {
    fn drop(&mut self) {
        let _ = self.events.send(Event::Stop);
        if let Some(supervisor) = self.supervisor.take()
            && supervisor.join().is_err()
        {
            tracing::error!("the supervisor of PostgreSQL panicked");
        }
    }
}

/// The thread that is the server's parent. All that blocks happens here.
struct Supervisor {
    events: Receiver<Event>,
    notify: Sender<Event>,
    state: watch::Sender<ServerState>,
    runs: u64,
}

impl Supervisor {
    fn run(mut self, data_dir: PathBuf, search: PostgresSearch, ready: oneshot::Sender<Result<String, PostgresError>>) {
        let started = Setup::prepare(&data_dir, &search).and_then(|setup| {
            let server = self.start_first(&setup)?;
            Ok((setup, server))
        });
        match started {
            Ok((setup, server)) => {
                self.state.send_replace(ServerState::Running { pid: server.pid() });
                // Where nobody waits for the answer any more, a Stop is already in the queue.
                let _ = ready.send(Ok(setup.url()));
                self.keep_running(&setup, server);
                self.state.send_replace(ServerState::Stopped);
            }
            Err(error) => {
                self.state.send_replace(ServerState::Stopped);
                let _ = ready.send(Err(error));
            }
        }
    }

    fn start(&mut self, setup: &Setup) -> Result<Server, PostgresError> {
        self.runs += 1;
        setup.start(self.runs, &self.events, &self.notify)
    }

    /// Server processes of a predecessor that was killed end by themselves, but not at once.
    fn start_first(&mut self, setup: &Setup) -> Result<Server, PostgresError> {
        let deadline = Instant::now() + PREDECESSOR_PATIENCE;
        let mut pauses = pauses();
        loop {
            match self.start(setup) {
                Err(error) if is_still_in_use(&error) && Instant::now() < deadline => {
                    tracing::info!(%error, "waiting for an earlier server to end");
                    if self.pause(pauses.next().unwrap_or(LONGEST_PAUSE)).is_stop() {
                        return Err(PostgresError::Stopped);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn keep_running(&mut self, setup: &Setup, mut server: Server) {
        loop {
            match server.wait(&self.events) {
                Wake::Stop => {
                    server.stop(&self.events);
                    return;
                }
                Wake::Ended(last_words) => {
                    let last_line = last_words.lines().last().unwrap_or_default();
                    tracing::error!(pid = server.pid(), last_line, "PostgreSQL ended by itself; starting it again");
                }
            }
            match self.start_again(setup) {
                Some(next) => server = next,
                None => return,
            }
            tracing::info!(pid = server.pid(), "PostgreSQL runs again");
            self.state.send_replace(ServerState::Running { pid: server.pid() });
        }
    }

    /// Tries until it runs. `None` where it was told to stop instead.
    fn start_again(&mut self, setup: &Setup) -> Option<Server> {
        let mut pauses = pauses();
        for failed_attempts in 0.. {
            self.state.send_replace(ServerState::Restarting { failed_attempts });
            match self.start(setup) {
                Ok(server) => return Some(server),
                Err(PostgresError::Stopped) => return None,
                Err(error) => tracing::warn!(%error, failed_attempts, "PostgreSQL did not start again"),
            }
            if self.pause(pauses.next().unwrap_or(LONGEST_PAUSE)).is_stop() {
                return None;
            }
        }
        None
    }

    fn pause(&self, length: Duration) -> Paused {
        let deadline = Instant::now() + length;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Ended { .. }) => {}
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Paused::Stop,
                Err(RecvTimeoutError::Timeout) => return Paused::Over,
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Paused {
    Over,
    Stop,
}

impl Paused {
    fn is_stop(&self) -> bool {
        *self == Paused::Stop
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

/// In PostgreSQL's own words: its processes, or at least its lock file, are still there.
fn is_still_in_use(error: &PostgresError) -> bool {
    let PostgresError::Start { reason, .. } = error else { return false };
    reason.contains("still in use") || (reason.contains("lock file") && reason.contains("already exists"))
}
