//! A place for one test's data, and looking at processes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

/// A temporary directory that root's PostgreSQL user can pass through; removed when dropped.
pub struct Room(TempDir);

impl Room {
    pub fn new() -> Room {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).expect("permissions of our own directory");
        Room(directory)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A data directory in it, not made yet.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }
}

/// Waits until `condition` holds; false where it still does not after `patience`.
pub fn eventually(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// True while the process runs; one that has ended and is only not reaped yet does not.
pub fn is_alive(pid: u32) -> bool {
    let zombie = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    !zombie && kill(process(pid), None).is_ok()
}

pub fn process(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().expect("a process id"))
}
