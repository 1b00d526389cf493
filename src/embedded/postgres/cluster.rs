//! The private cluster: how it is made, and with which settings it runs.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;

use super::account::Account;
use super::binaries::Binaries;
use super::error::{PostgresError, from_output, io_error};

/// The superuser of the cluster, and the database in it.
pub(super) const ROLE: &str = "wallex";
pub(super) const DATABASE: &str = "wallex";

/// Linux can bring a whole file system to disk at once. File by file, the thousand files of even an empty cluster took
/// three seconds on a disk that others were writing to, against a quarter of a second: at `initdb`, and again at each
/// start after a kill.
const SYNC_AT_ONCE: bool = cfg!(target_os = "linux");

/// A new cluster takes some 45 MiB; the rest is for its first checkpoints.
const SPACE_FOR_A_CLUSTER: u64 = 128 * 1024 * 1024;

/// Names the socket file; there is no TCP port.
pub(super) const PORT: u16 = 5432;

/// What the server runs with. Given on the command line, so that a newer wallex brings its own settings to a cluster
/// that exists, and nothing inside the cluster can switch off what the guarantees stand on.
const SETTINGS: &[(&str, &str)] = &[
    // An acknowledged command survives a power failure.
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    // Reachable through the socket only.
    ("listen_addresses", ""),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "200"),
    ("shared_buffers", "128MB"),
    // Nobody replicates or archives this cluster, and the log of a wallet is mostly insertions.
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_logical_replication_workers", "0"),
    // Bounds what a start after a kill has to replay: 0.8 s were measured with this, 1.5 to 2 s with 512 MB, 3.5 s with
    // 1 GB, at the same rate of events. Compressing the log bought no rate either.
    ("max_wal_size", "256MB"),
    ("min_wal_size", "128MB"),
    ("checkpoint_timeout", "5min"),
    ("checkpoint_completion_target", "0.9"),
    // Statements here are short; compiling them costs more than it saves.
    ("jit", "off"),
    ("restart_after_crash", "on"),
    // Written to standard error, where the supervisor reads it: in English, in UTC, and little.
    ("logging_collector", "off"),
    ("log_destination", "stderr"),
    ("log_checkpoints", "off"),
    ("lc_messages", "C"),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
];

/// The settings as command line arguments, with the socket in `socket_directory`.
pub(super) fn add_settings(command: &mut Command, socket_directory: &Path) {
    for (name, value) in SETTINGS {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    if SYNC_AT_ONCE {
        command.args(["-c", "recovery_init_sync_method=syncfs"]);
    }
    command.arg("-p").arg(PORT.to_string()).arg("-k").arg(socket_directory);
}

/// Makes the cluster, with the database in it, unless it is there.
///
/// It is made beside its place and moved there when it is whole and on disk: a cluster that is found is a complete one,
/// at whichever moment an earlier start was killed.
pub(super) fn ensure(
    data_dir: &Path,
    cluster: &Path,
    binaries: &Binaries,
    account: &Account,
) -> Result<(), PostgresError> {
    if cluster.exists() {
        return Ok(());
    }
    let fresh = cluster.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(io_error("remove the unfinished", &fresh))?;
    }
    require_space(data_dir)?;
    DirBuilder::new().mode(0o700).create(&fresh).map_err(io_error("create", &fresh))?;
    account.give(&fresh)?;
    tracing::info!(directory = %cluster.display(), user = %account.name, "creating the database cluster");
    let failed = |output: &str| match account.blocked_at(data_dir) {
        Some(directory) => PostgresError::Unreachable { directory, user: account.name.clone() },
        None => from_output(output, data_dir, account.uid.as_raw(), |reason| PostgresError::Initialise { reason }),
    };
    let made = run_initdb(&fresh, binaries, account, &failed)
        .and_then(|()| create_database(&fresh, binaries, account, &failed));
    if let Err(error) = made {
        // What can be removed is; the rest is removed by the next start.
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    sync_all(&fresh)?;
    fs::rename(&fresh, cluster).map_err(io_error("move into place", &fresh))?;
    File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(io_error("sync", data_dir))
}

/// Said before anything is written, because half a cluster only makes a full disk fuller.
fn require_space(data_dir: &Path) -> Result<(), PostgresError> {
    let Ok(disk) = statvfs(data_dir) else { return Ok(()) };
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    if free >= SPACE_FOR_A_CLUSTER {
        return Ok(());
    }
    let mib = |bytes: u64| bytes / (1024 * 1024);
    let reason = format!("a new database needs {} MiB, {} are free", mib(SPACE_FOR_A_CLUSTER), mib(free));
    Err(PostgresError::DiskFull { path: data_dir.to_owned(), reason })
}

fn run_initdb(
    directory: &Path,
    binaries: &Binaries,
    account: &Account,
    failed: &dyn Fn(&str) -> PostgresError,
) -> Result<(), PostgresError> {
    let program = binaries.initdb();
    let output = account
        .command(&program, Signal::SIGTERM)
        .arg("-D")
        .arg(directory)
        .arg(format!("--username={ROLE}"))
        // Whoever may enter the socket's directory is the owner of the data anyway.
        .args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"])
        .args(if SYNC_AT_ONCE { &["--no-sync"][..] } else { &[] })
        .output()
        .map_err(io_error("run", &program))?;
    if output.status.success() { Ok(()) } else { Err(failed(&text_of(&output))) }
}

/// Brings a new cluster to disk, where `initdb` was told not to.
#[cfg(target_os = "linux")]
fn sync_all(directory: &Path) -> Result<(), PostgresError> {
    let sync = || nix::unistd::syncfs(File::open(directory)?).map_err(std::io::Error::from);
    sync().map_err(io_error("sync", directory))
}

#[cfg(not(target_os = "linux"))]
fn sync_all(_directory: &Path) -> Result<(), PostgresError> {
    Ok(())
}

/// In single-user mode, so that the database is part of the cluster before that has its name.
fn create_database(
    directory: &Path,
    binaries: &Binaries,
    account: &Account,
    failed: &dyn Fn(&str) -> PostgresError,
) -> Result<(), PostgresError> {
    let program = binaries.postgres();
    let mut server = account
        .command(&program, Signal::SIGTERM)
        .arg("--single")
        .arg("-D")
        .arg(directory)
        .args(["-c", "exit_on_error=on", "-c", "log_checkpoints=off", "postgres"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error("run", &program))?;
    if let Some(mut input) = server.stdin.take() {
        // A server that ended already breaks the pipe; what it said on the way out is the better message.
        let _ = writeln!(input, "CREATE DATABASE {DATABASE};");
    }
    let output = server.wait_with_output().map_err(io_error("run", &program))?;
    if output.status.success() { Ok(()) } else { Err(failed(&text_of(&output))) }
}

fn text_of(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
