//! The private cluster: how it is made, and with which settings it runs.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;

use super::account::Account;
use super::binaries::Binaries;
use super::error::{PostgresError, from_output, io_error};

/// The superuser of the cluster, and the database in it.
pub(super) const ROLE: &str = "wallex";
pub(super) const DATABASE: &str = "wallex";

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
    ("max_connections", "64"),
    ("shared_buffers", "128MB"),
    // Nobody replicates or archives this cluster, and the log of a wallet is mostly insertions.
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    // Bounds what a start after a kill has to replay.
    ("max_wal_size", "512MB"),
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
    DirBuilder::new().mode(0o700).create(&fresh).map_err(io_error("create", &fresh))?;
    account.give(&fresh)?;
    tracing::info!(directory = %cluster.display(), user = %account.name, "creating the database cluster");
    let failed = |output: &str| match account.blocked_at(data_dir) {
        Some(directory) => PostgresError::Unreachable { directory, user: account.name.clone() },
        None => from_output(output, data_dir, account.uid.as_raw(), |reason| PostgresError::Initialise { reason }),
    };
    run_initdb(&fresh, binaries, account, &failed)?;
    create_database(&fresh, binaries, account, &failed)?;
    // initdb and the server have each brought their files to disk; what is missing is the name.
    fs::rename(&fresh, cluster).map_err(io_error("move into place", &fresh))?;
    File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(io_error("sync", data_dir))
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
        .output()
        .map_err(io_error("run", &program))?;
    if output.status.success() { Ok(()) } else { Err(failed(&text_of(&output))) }
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
