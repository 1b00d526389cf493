//! What an earlier run left: a server that outlived it, or only its lock files.
//!
//! All this happens while we hold the lock on the data directory: whatever server uses the cluster is nobody's now.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::account::Account;
use super::error::{PostgresError, io_error};

/// How long a server that was left behind may take to stop: it checkpoints what it has.
const FAST_STOP: Duration = Duration::from_secs(30);
/// And then, told to stop at once.
const IMMEDIATE_STOP: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Stops a server that still runs on the cluster, and removes what would keep a new one from starting.
pub(super) fn clear(
    cluster: &Path,
    socket_files: &[std::path::PathBuf],
    account: &Account,
) -> Result<(), PostgresError> {
    if let Some(pid) = pid_in_lock_file(cluster) {
        if runs_on(pid, cluster) {
            tracing::warn!(
                pid,
                "a PostgreSQL server left by an earlier run still uses the data directory; stopping it"
            );
            stop(pid, cluster)?;
        } else if exists(pid) {
            disown_lock_file(cluster, account)?;
        }
    }
    for file in socket_files {
        match fs::remove_file(file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error("remove", file)(error)),
            _ => {}
        }
    }
    Ok(())
}

/// Process id of the postmaster that the cluster's lock file names, running or not.
pub(super) fn pid_in_lock_file(cluster: &Path) -> Option<i32> {
    let text = fs::read_to_string(cluster.join("postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 1)
}

/// True where the lock file says that the postmaster `pid` takes connections.
pub(super) fn is_ready(cluster: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(cluster.join("postmaster.pid")) else { return false };
    let mut lines = text.lines().map(str::trim);
    // The first line is its pid, the eighth its status; pg_ctl waits for the same.
    lines.next() == Some(&pid.to_string()) && lines.nth(6) == Some("ready")
}

fn stop(pid: i32, cluster: &Path) -> Result<(), PostgresError> {
    for (signal, patience) in [(Signal::SIGINT, FAST_STOP), (Signal::SIGQUIT, IMMEDIATE_STOP)] {
        // Looked at again right before: a process that has ended meanwhile may have given its id to another.
        if runs_on(pid, cluster) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !runs_on(pid, cluster) {
                return Ok(());
            }
            // It is not our child, so there is nothing that would tell us.
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    Err(PostgresError::Lingering { pid })
}

fn exists(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(nix::Error::ESRCH)
}

/// A postmaster that was killed leaves its id in the lock file, and in a container that starts again ids begin at 1
/// again: soon some other process, or one of our own threads, has that id, and PostgreSQL would refuse to start for
/// ever. It does pass over the id of its own parent, so we put ours there. The rest of the file stays: through it
/// PostgreSQL still notices whether server processes of the killed postmaster are alive.
fn disown_lock_file(cluster: &Path, account: &Account) -> Result<(), PostgresError> {
    let lock_file = cluster.join("postmaster.pid");
    let text = fs::read_to_string(&lock_file).map_err(io_error("read", &lock_file))?;
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    let fresh = cluster.join("postmaster.pid.new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        write!(file, "{}\n{rest}", std::process::id())
    };
    write().map_err(io_error("write", &fresh))?;
    account.give(&fresh)?;
    fs::rename(&fresh, &lock_file).map_err(io_error("replace", &lock_file))
}

/// True where `pid` is a PostgreSQL server whose working directory is the cluster: there it stays for all its life.
#[cfg(target_os = "linux")]
fn runs_on(pid: i32, cluster: &Path) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let is_postgres = fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "postgres");
    is_postgres && fs::read_link(process.join("cwd")).is_ok_and(|directory| directory == cluster)
}

/// True where `pid` is a PostgreSQL server that was started on the cluster.
#[cfg(not(target_os = "linux"))]
fn runs_on(pid: i32, cluster: &Path) -> bool {
    let output = std::process::Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid.to_string()]).output();
    let Ok(output) = output else { return false };
    let command = String::from_utf8_lossy(&output.stdout);
    command.contains("postgres") && cluster.to_str().is_some_and(|cluster| command.contains(&format!("-D {cluster} ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster_with(lock_file: &str) -> tempfile::TempDir {
        let cluster = tempfile::tempdir().unwrap();
        fs::write(cluster.path().join("postmaster.pid"), lock_file).unwrap();
        cluster
    }

    #[test]
    fn ready_is_read_from_the_eighth_line_and_only_for_that_postmaster() {
        let cluster = cluster_with("42\n/data\n1700000000\n5432\n/sock\n\n  1234 5\nready   \n");
        assert!(is_ready(cluster.path(), 42));
        assert!(!is_ready(cluster.path(), 43));
        let starting = cluster_with("42\n/data\n1700000000\n5432\n/sock\n\n  1234 5\nstarting\n");
        assert!(!is_ready(starting.path(), 42));
        assert!(!is_ready(Path::new("/nowhere"), 42));
    }

    #[test]
    fn a_process_that_is_no_server_of_this_cluster_is_left_alone() {
        let cluster = cluster_with(&format!("{}\n/data\n", std::process::id()));
        assert_eq!(pid_in_lock_file(cluster.path()), i32::try_from(std::process::id()).ok());
        assert!(!runs_on(std::process::id().try_into().unwrap(), cluster.path()));
    }

    #[test]
    fn the_lock_file_of_a_dead_postmaster_whose_id_lives_on_keeps_all_but_the_id() {
        let cluster = cluster_with("1\n/data\n1700000000\n5432\n/sock\n\n  1234 5\nready   \n");
        let account = Account::for_cluster(Path::new("/no/cluster")).unwrap();
        disown_lock_file(cluster.path(), &account).unwrap();
        let text = fs::read_to_string(cluster.path().join("postmaster.pid")).unwrap();
        assert_eq!(text, format!("{}\n/data\n1700000000\n5432\n/sock\n\n  1234 5\nready   \n", std::process::id()));
    }

    #[test]
    fn nonsense_in_the_lock_file_names_no_process() {
        for text in ["", "\n", "abc\n", "-1\n", "0\n", "1\n"] {
            assert_eq!(pid_in_lock_file(cluster_with(text).path()), None, "{text:?}");
        }
    }
}
