//! One run of the server, from its start to its end.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::account::Account;
use super::binaries::{Binaries, PostgresSearch};
use super::error::{PostgresError, from_output, io_error};
use super::{cluster, leftover, server_log, socket};

/// How long a start may take. After a kill the server first replays what its settings allow to lie unchecked, which is
/// a matter of seconds; far beyond that something is wrong with the machine.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// The first and the longest pause between two looks at whether it is ready.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_SLOWEST: Duration = Duration::from_millis(10);
/// How often the supervisor looks whether a server whose output is still open has ended nevertheless.
const LOOK_FOR_END: Duration = Duration::from_secs(1);
/// After so many looks its orphaned server processes are not waited for any longer.
const LOOKS_AT_ORPHANS: u32 = 3;
/// How long the server may take to stop: it ends its connections and checkpoints what it has.
const FAST_STOP: Duration = Duration::from_secs(30);
/// And then, told to drop everything.
const IMMEDIATE_STOP: Duration = Duration::from_secs(5);

/// What wakes the supervisor.
pub(super) enum Event {
    /// All processes of run `number` of the server have closed their output, so they have ended.
    Ended {
        /// Which run.
        number: u64,
        /// The last lines that it wrote.
        last_words: String,
    },
    /// The handle wants the server stopped.
    Stop,
}

/// Everything a start needs that stays the same from one to the next.
pub(super) struct Setup {
    data_dir: PathBuf,
    cluster: PathBuf,
    log: PathBuf,
    socket_directory: PathBuf,
    binaries: Binaries,
    account: Account,
}

impl Setup {
    /// Finds the binaries and, where it is missing, makes the cluster; stops what an earlier run left.
    pub(super) fn prepare(data_dir: &Path, search: &PostgresSearch) -> Result<Setup, PostgresError> {
        // Resolved, because a server's working directory is compared with it.
        let data_dir = data_dir.canonicalize().map_err(io_error("use the data directory", data_dir))?;
        let cluster = data_dir.join("postgres");
        let binaries = search.find(&cluster)?;
        let account = Account::for_cluster(&cluster)?;
        cluster::ensure(&data_dir, &cluster, &binaries, &account)?;
        let socket_directory = socket::prepare(&data_dir, &account)?;
        let log = data_dir.join("postgres.log");
        Ok(Setup { data_dir, cluster, log, socket_directory, binaries, account })
    }

    pub(super) fn url(&self) -> String {
        socket::url(&self.socket_directory)
    }

    /// Starts the server and waits until it takes connections. The calling thread becomes its parent, and must live
    /// until it has stopped.
    pub(super) fn start(
        &self,
        number: u64,
        events: &Receiver<Event>,
        notify: &Sender<Event>,
    ) -> Result<Server, PostgresError> {
        leftover::clear(&self.cluster, &socket::files(&self.socket_directory), &self.account)?;
        let program = self.binaries.postgres();
        let (reader, writer) = io::pipe().map_err(io_error("open a pipe to", &program))?;
        let (notify, log) = (notify.clone(), self.log.clone());
        thread::Builder::new()
            .name("wallex-pg-log".to_owned())
            .spawn(move || {
                let last_words = server_log::pump(reader, &log);
                // Nobody listens any more when the supervisor has ended: then nobody needs to know.
                let _ = notify.send(Event::Ended { number, last_words });
            })
            .map_err(io_error("read the output of", &program))?;
        let mut command = self.account.command(&program, Signal::SIGINT);
        command.arg("-D").arg(&self.cluster);
        cluster::add_settings(&mut command, &self.socket_directory);
        command.stdout(writer.try_clone().map_err(io_error("open a pipe to", &program))?).stderr(writer);
        let child = command.spawn().map_err(io_error("run", &program))?;
        // It holds our ends of the pipe, and while it does the pipe does not close.
        drop(command);
        let mut server = Server { child, number };
        self.wait_until_ready(&mut server, events)?;
        Ok(server)
    }

    fn wait_until_ready(&self, server: &mut Server, events: &Receiver<Event>) -> Result<(), PostgresError> {
        let deadline = Instant::now() + READY_PATIENCE;
        let mut pause = LOOK_FIRST;
        while !leftover::is_ready(&self.cluster, server.pid()) {
            match events.recv_timeout(pause) {
                Ok(Event::Ended { number, last_words }) if number == server.number => {
                    server.reap();
                    return Err(self.start_error(&last_words));
                }
                Ok(Event::Ended { .. }) => {}
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    server.stop(events);
                    return Err(PostgresError::Stopped);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    server.stop(events);
                    return Err(PostgresError::NotReady { seconds: READY_PATIENCE.as_secs(), log: self.log.clone() });
                }
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(LOOK_SLOWEST),
            }
        }
        Ok(())
    }

    fn start_error(&self, last_words: &str) -> PostgresError {
        if let Some(directory) = self.account.blocked_at(&self.cluster) {
            return PostgresError::Unreachable { directory, user: self.account.name.clone() };
        }
        from_output(last_words, &self.data_dir, self.account.uid.as_raw(), |reason| PostgresError::Start {
            reason,
            log: self.log.clone(),
        })
    }
}

/// A server that was ready at least once. Dropping it leaves it running; it is stopped by [`Server::stop`].
pub(super) struct Server {
    child: Child,
    number: u64,
}

/// Why [`Server::wait`] returned.
pub(super) enum Wake {
    /// The server ended by itself, with these last words.
    Ended(String),
    /// Somebody wants it stopped.
    Stop,
}

impl Server {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server ends or is to be stopped.
    pub(super) fn wait(&mut self, events: &Receiver<Event>) -> Wake {
        let mut looks = 0;
        loop {
            match events.recv_timeout(LOOK_FOR_END) {
                Ok(Event::Ended { number, last_words }) if number == self.number => {
                    self.reap();
                    return Wake::Ended(last_words);
                }
                Ok(Event::Ended { .. }) => {}
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Wake::Stop,
                // Killed alone, the postmaster leaves server processes that end by themselves in a moment, and only
                // then can a new one start. One that is deep in a long statement may take longer than we wait.
                Err(RecvTimeoutError::Timeout) if self.has_ended() => {
                    looks += 1;
                    if looks == LOOKS_AT_ORPHANS {
                        return Wake::Ended("some of its server processes still run".to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Stops the server: in an orderly way, and where that takes too long in ever less orderly ones, which cost nothing
    /// but a replay at the next start.
    pub(super) fn stop(&mut self, events: &Receiver<Event>) {
        let ways = [(Signal::SIGINT, FAST_STOP), (Signal::SIGQUIT, IMMEDIATE_STOP), (Signal::SIGKILL, IMMEDIATE_STOP)];
        for (signal, patience) in ways {
            // Its id is its own until we have reaped it, which only this thread does.
            if self.has_ended() || self.signal_and_wait(signal, patience, events) {
                return;
            }
            tracing::warn!(pid = self.pid(), %signal, "PostgreSQL does not stop");
        }
    }

    fn signal_and_wait(&mut self, signal: Signal, patience: Duration, events: &Receiver<Event>) -> bool {
        let Ok(pid) = i32::try_from(self.pid()) else { return false };
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            tracing::warn!(pid, %signal, %error, "PostgreSQL cannot be signalled");
            return false;
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            match events.recv_timeout(LOOK_FOR_END) {
                Ok(Event::Ended { number, .. }) if number == self.number => {
                    self.reap();
                    return true;
                }
                Err(RecvTimeoutError::Timeout) if self.has_ended() => return true,
                _ => {}
            }
        }
        false
    }

    fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    fn reap(&mut self) {
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "PostgreSQL's exit status is lost");
        }
    }
}
