//! The real `wallex`, as processes: started, killed, asked.

#![allow(dead_code, reason = "each test binary uses its own part of this, so an expectation would not hold in all")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wallex::embedded::{DataDir, ServeInfo};

/// How long a `serve` may take to be there. Machines under test are busy.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A directory that root's PostgreSQL user can pass through.
pub fn room() -> tempfile::TempDir {
    let room = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(room.path(), Permissions::from_mode(0o711)).expect("its permissions");
    room
}

/// `wallex` with these arguments, and nothing of the environment that could lead it elsewhere.
pub fn wallex(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wallex"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WALLEX_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub fn run(arguments: &[&str]) -> Output {
    wallex(arguments).output().expect("wallex runs")
}

/// A running `wallex serve`. Killed when dropped.
pub struct Serve {
    child: Child,
    data_dir: PathBuf,
    /// From the start of the process to the note that it is ready.
    pub start_took: Duration,
    pub info: ServeInfo,
}

impl Serve {
    pub fn start(data_dir: &Path) -> Serve {
        Self::start_with(data_dir, &[])
    }

    pub fn start_with(data_dir: &Path, arguments: &[&str]) -> Serve {
        let mut command = wallex(&["serve", "--listen", "127.0.0.1:0", "--log", "error"]);
        command.args(arguments).stderr(Stdio::null());
        Self::start_as(data_dir, command)
    }

    /// With everything that a command can be told, such as where its log goes.
    pub fn start_as(data_dir: &Path, mut serve: Command) -> Serve {
        let started = Instant::now();
        let mut child = serve.arg("--data-dir").arg(data_dir).spawn().expect("wallex runs");
        loop {
            // There once everything is: the note is written last.
            match DataDir::find_running(data_dir) {
                Ok(Some(info)) if info.pid == child.id() => {
                    let start_took = started.elapsed();
                    return Serve { child, data_dir: data_dir.to_owned(), start_took, info };
                }
                _ if started.elapsed() > START_PATIENCE => {
                    let _ = child.kill();
                    panic!("serve did not start in {START_PATIENCE:?}");
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub fn data_dir(&self) -> &str {
        self.data_dir.to_str().expect("a path in UTF-8")
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("a kill");
        self.child.wait().expect("its end");
    }

    /// Waits until it has killed itself at a place of `src/crash_point.rs`; any other end, or none, is a failure.
    pub async fn until_killed(mut self, patience: Duration) {
        until_killed(&mut self.child, patience).await;
    }

    /// Sends a signal and waits for the end; the exit code, or 128 and the signal that ended it.
    pub fn stop(mut self, signal: Signal) -> i32 {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal");
        let status = self.child.wait().expect("its end");
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// The server of the managed PostgreSQL: the child of this process that is one.
    pub fn postmaster(&self) -> Option<Pid> {
        let found = Command::new("pgrep").args(["-P", &self.child.id().to_string(), "postgres"]).output().ok()?;
        String::from_utf8(found.stdout).ok()?.lines().next()?.parse().ok().map(Pid::from_raw)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `wallex` of which nobody is told when it is ready: `relay`, `project`. Killed when dropped.
pub struct Part {
    child: Child,
}

impl Part {
    pub fn start(arguments: &[&str]) -> Part {
        Self::spawn(wallex(arguments))
    }

    /// One that kills itself at a place of `src/crash_point.rs`.
    pub fn start_to_crash_at(point: &str, arguments: &[&str]) -> Part {
        let mut command = wallex(arguments);
        command.env("WALLEX_CRASH_AT", point);
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Part {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("wallex runs");
        Part { child }
    }

    /// The same, with what it says on stderr in a file.
    pub fn spawn_into(mut command: Command, log: &Path) -> Part {
        let log = std::fs::File::create(log).expect("a file");
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("wallex runs");
        Part { child }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits until it has killed itself; any other end, or none, is a failure.
    pub async fn until_killed(mut self, patience: Duration) {
        until_killed(&mut self.child, patience).await;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until_killed(child: &mut Child, patience: Duration) {
    let waiting = async {
        loop {
            match child.try_wait().expect("its state") {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let status = tokio::time::timeout(patience, waiting).await.expect("it comes to the place where it crashes");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
}
