use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the managed PostgreSQL does not run. Each message is one line that says what would be right.
#[derive(Debug, Error)]
pub enum PostgresError {
    /// No PostgreSQL server binaries were found.
    #[error(
        "PostgreSQL {} or later is not installed (looked in {looked}){}; install it (Debian, Ubuntu: apt install \
         postgresql; macOS: brew install postgresql@17), or set WALLEX_DATABASE_URL to a server that runs elsewhere",
        super::binaries::OLDEST_MAJOR, too_old.as_ref().map(|found| format!(", only {found}")).unwrap_or_default()
    )]
    NotInstalled {
        /// Where was looked.
        looked: String,
        /// An installation that is there, but too old.
        too_old: Option<String>,
    },
    /// The cluster was made by a major version that is not installed (any more).
    #[error(
        "the database in {} was made by PostgreSQL {wanted}, and only {found} is installed; install PostgreSQL {wanted} \
         again, or move the data with pg_upgrade or pg_dump",
        cluster.display()
    )]
    OtherMajor {
        /// The cluster directory.
        cluster: PathBuf,
        /// Its major version.
        wanted: u32,
        /// What is installed.
        found: String,
    },
    /// `PG_VERSION` in the cluster directory is missing or no number.
    #[error("{} is no PostgreSQL data directory (no PG_VERSION in it); move it away, or name another data directory with --data-dir", cluster.display())]
    NotACluster {
        /// The cluster directory.
        cluster: PathBuf,
    },
    /// This user id has no entry in the password database, without which `initdb` refuses to work.
    #[error(
        "user id {uid} has no entry in the password database and PostgreSQL needs one; run as a user that has one (in a \
         container: add it to /etc/passwd), or set WALLEX_DATABASE_URL"
    )]
    NoAccount {
        /// The effective user id.
        uid: u32,
    },
    /// PostgreSQL refuses to run as root, and there is no other user to run it as.
    #[error(
        "PostgreSQL does not run as root and there is no user postgres or nobody to run it as; run wallex as an ordinary \
         user, or set WALLEX_DATABASE_URL"
    )]
    NoServerUser,
    /// A directory on the way to the data is closed for the user that PostgreSQL runs as.
    #[error(
        "user {user}, as which PostgreSQL runs here, cannot pass through {}; allow it (chmod o+x {0}), or name another \
         data directory with --data-dir or WALLEX_DATA_DIR",
        directory.display()
    )]
    Unreachable {
        /// The directory that is closed.
        directory: PathBuf,
        /// The user that cannot pass.
        user: String,
    },
    /// No space left where the cluster lives.
    #[error("not enough space on the disk of {} ({reason}); free some there, or name another data directory with --data-dir", path.display())]
    DiskFull {
        /// The data directory.
        path: PathBuf,
        /// How much is needed, or PostgreSQL's own words.
        reason: String,
    },
    /// `initdb`, or creating the database in the new cluster, failed.
    #[error("PostgreSQL could not create its cluster: {reason}")]
    Initialise {
        /// Its own words.
        reason: String,
    },
    /// The server ended instead of becoming ready.
    #[error("PostgreSQL did not start: {reason}; more is in {}", log.display())]
    Start {
        /// Its own words.
        reason: String,
        /// The server's log file.
        log: PathBuf,
    },
    /// The server is neither ready nor dead within the time it is given.
    #[error("PostgreSQL was not ready after {seconds} s; what it does is in {}", log.display())]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The server's log file.
        log: PathBuf,
    },
    /// A server that a killed predecessor left behind does not stop.
    #[error(
        "a PostgreSQL server (pid {pid}) left by an earlier wallex still uses this data directory and does not stop; stop it (kill -QUIT {pid}) and try again"
    )]
    Lingering {
        /// Process id of its postmaster.
        pid: i32,
    },
    /// There is no place for the Unix socket.
    #[error(
        "no safe place for PostgreSQL's socket: {reason}; name a data directory with a shorter path with --data-dir or WALLEX_DATA_DIR"
    )]
    Socket {
        /// What was tried and why it was refused.
        reason: String,
    },
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the operating system answered.
        source: io::Error,
    },
    /// Start was given up because [`stop`](super::ManagedPostgres::stop) was called, or the handle dropped.
    #[error("PostgreSQL was stopped before it was ready")]
    Stopped,
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
    move |source| PostgresError::Io { action, path: path.to_owned(), source }
}

/// Makes an error from what a PostgreSQL program wrote before it ended: the well known causes by name, the rest by
/// `otherwise` with its own words.
pub(super) fn from_output(
    output: &str,
    data_dir: &Path,
    uid: u32,
    otherwise: impl FnOnce(String) -> PostgresError,
) -> PostgresError {
    if let Some(line) = output.lines().find(|line| SIGNS_OF_A_FULL_DISK.iter().any(|sign| line.contains(sign))) {
        PostgresError::DiskFull { path: data_dir.to_owned(), reason: decisive_line(line) }
    } else if output.contains("could not look up effective user ID") {
        PostgresError::NoAccount { uid }
    } else {
        otherwise(decisive_line(output))
    }
}

/// The last is what PostgreSQL says where the system wrote less than it was given.
const SIGNS_OF_A_FULL_DISK: [&str; 3] = ["No space left on device", "Disk quota exceeded", "wrote only "];

/// The line that says why: the last FATAL or PANIC or error, else the last line at all.
fn decisive_line(output: &str) -> String {
    const MARKS: [&str; 4] = ["FATAL: ", "PANIC: ", "ERROR: ", "error: "];
    let lines = || output.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let marked = lines().find_map(|line| {
        let (at, mark) = MARKS.iter().find_map(|mark| line.find(mark).map(|at| (at, mark)))?;
        Some(line[at + mark.len()..].trim())
    });
    marked.or_else(|| lines().next()).unwrap_or("it ended without a word").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(output: &str) -> PostgresError {
        from_output(output, Path::new("/data"), 1234, |reason| PostgresError::Initialise { reason })
    }

    #[test]
    fn a_full_disk_is_recognised_and_named() {
        let error = classify(
            "creating directory /data/postgres ... ok\n\
             FATAL:  could not extend file \"base/1/2691\": No space left on device\n\
             PANIC:  cannot abort transaction 1, it was already committed\n\
             initdb: removing contents of data directory \"/data/postgres\"\n",
        );
        assert!(matches!(error, PostgresError::DiskFull { .. }));
        let text = error.to_string();
        assert!(text.starts_with("not enough space on the disk of /data (could not extend file"), "{text}");
        assert!(!text.contains('\n'), "{text}");
        let partly = classify("FATAL:  could not extend file \"x\": wrote only 4096 of 8192 bytes at block 5\n");
        assert!(matches!(partly, PostgresError::DiskFull { .. }));
    }

    #[test]
    fn a_user_without_account_is_recognised() {
        let error = classify("initdb: error: could not look up effective user ID 1234: user does not exist\n");
        assert!(error.to_string().contains("user id 1234 has no entry"), "{error}");
    }

    #[test]
    fn otherwise_the_fatal_line_is_quoted() {
        let error = classify(
            "2026-01-01 00:00:00 UTC [1] LOG:  starting\n\
             2026-01-01 00:00:00 UTC [1] FATAL:  could not map anonymous shared memory\n\
             2026-01-01 00:00:00 UTC [1] LOG:  database system is shut down\n",
        );
        assert_eq!(error.to_string(), "PostgreSQL could not create its cluster: could not map anonymous shared memory");
    }

    #[test]
    fn silence_is_said_to_be_silence() {
        assert!(classify("").to_string().ends_with("it ended without a word"));
    }
}
