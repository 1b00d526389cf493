//! The data directory: where it is, who has it, and how other commands find the `serve` that has it.
//!
//! | file | what it is |
//! |---|---|
//! | `lock` | held (flock) by the running `serve` for as long as it lives; its text is the holder's pid |
//! | `serve.json` | a [`ServeInfo`]: where that `serve` can be reached; mode 0600, it may hold passwords |
//! | `postgres/`, `postgres.log`, `socket/` | the managed cluster, see [`ManagedPostgres`](super::ManagedPostgres) |
//!
//! The lock is the truth and `serve.json` only a note beside it: the kernel drops the lock however its holder dies, so a
//! note without a lock is a leftover of a killed `serve`, and is removed by the first command that sees it.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const LOCK: &str = "lock";
const SERVE_INFO: &str = "serve.json";
const ROOT_DATA_DIR: &str = "/var/lib/wallex";

/// How long [`DataDir::acquire`] keeps trying: a command that only looks ([`DataDir::find_running`]) holds the lock for
/// an instant, and a `serve` that starts in that instant must not be told that the directory is in use.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Why a data directory cannot be used. Each message is one line that says what would be right.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// The path given is the empty text.
    #[error("the data directory is given as an empty path; name a directory with --data-dir or WALLEX_DATA_DIR")]
    Empty,
    /// There is no default: the user has no home directory.
    #[error("there is no home directory to keep data in; name a data directory with --data-dir or WALLEX_DATA_DIR")]
    NoHome,
    /// Another `wallex serve` holds the directory.
    #[error(
        "the data directory {} is in use by {holder}; stop that one, or name another directory with --data-dir or WALLEX_DATA_DIR",
        path.display()
    )]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who holds it, as far as it says: pid and URL.
        holder: String,
    },
    /// The directory, or a file in it, cannot be created, read or written.
    #[error("cannot {action} {}: {source}; {}", path.display(), advice(source))]
    Unusable {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the operating system answered.
        source: io::Error,
    },
    /// `serve.json` is not what a `serve` writes.
    #[error("{} cannot be understood: {source}; restart the wallex serve that wrote it", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space there",
        _ => "name a directory that this user can write to with --data-dir or WALLEX_DATA_DIR",
    }
}

/// What a running `serve` tells the other commands about itself, through `serve.json` in its data directory.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServeInfo {
    /// Process id of the `serve`.
    pub pid: u32,
    /// Base URL of its HTTP interface, without a trailing slash.
    pub url: String,
    /// The database it writes to. May hold a password: never print it unmasked.
    pub database_url: String,
    /// The event store that it writes to, where its events are not in the database. May hold a password too.
    #[serde(default)]
    pub event_store: Option<String>,
    /// What the wallets' streams are called there, before the wallet's id.
    #[serde(default)]
    pub event_store_prefix: Option<String>,
    /// Kafka bootstrap servers, comma separated.
    pub kafka_brokers: String,
    /// True where that `serve` manages the database itself, so that it goes away with it.
    pub embedded_postgres: bool,
    /// True where the broker lives inside that `serve`, and its topics with it.
    pub embedded_kafka: bool,
    /// When it was ready.
    pub started_at: DateTime<Utc>,
    /// Version of wallex that it runs.
    pub version: String,
}

/// Leaves the URLs of database and event store out: they may hold a password, and debug output ends up in logs.
impl fmt::Debug for ServeInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServeInfo")
            .field("pid", &self.pid)
            .field("url", &self.url)
            .field("kafka_brokers", &self.kafka_brokers)
            .field("embedded_postgres", &self.embedded_postgres)
            .field("embedded_kafka", &self.embedded_kafka)
            .field("started_at", &self.started_at)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A data directory that this process holds alone, until it is dropped (or the process ends, in whatever way).
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Never read: it is held. Closing it gives the directory up.
    _lock: File,
}

impl DataDir {
    /// Where data is kept: `explicit` where given; `/var/lib/wallex` for root; otherwise `wallex` below
    /// `$XDG_DATA_HOME`, or below `.local/share` in the home directory. The path is absolute; nothing is created.
    ///
    /// # Errors
    /// [`DataDirError::Empty`] for an empty explicit path, [`DataDirError::NoHome`] where there is no home directory.
    pub fn resolve(explicit: Option<PathBuf>) -> Result<PathBuf, DataDirError> {
        let xdg = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
        resolve_from(explicit, nix::unistd::geteuid().is_root(), xdg, std::env::home_dir())
    }

    /// Takes the directory for this process alone, creating it where it does not exist.
    ///
    /// A new directory is private (0700), except that root makes it traversable (0711): root's PostgreSQL runs as
    /// another user and has to get to the cluster inside. Everything in it that is worth hiding is private by itself.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] where another `serve` holds it (with its pid and URL), [`DataDirError::Unusable`] where
    /// it cannot be created or written.
    pub fn acquire(path: &Path) -> Result<DataDir, DataDirError> {
        let path = absolute(path)?;
        create(&path).map_err(unusable("create the data directory", &path))?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(unusable("write the lock file", &lock_path))?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // Nothing announces that a lock became free except taking it, and taking it could wait for ever.
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                Err(TryLockError::WouldBlock) => {
                    let holder = describe_holder(&path);
                    return Err(DataDirError::InUse { path, holder });
                }
                Err(TryLockError::Error(error)) => return Err(unusable("lock", &lock_path)(error)),
            }
        }
        // The note of a predecessor that was killed: whoever reads it now would go to a server that is not there.
        remove_if_there(&path.join(SERVE_INFO)).map_err(unusable("remove", &path.join(SERVE_INFO)))?;
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(unusable("write the lock file", &lock_path))?;
        Ok(DataDir { path, _lock: lock })
    }

    /// The directory, absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells other commands where this `serve` is, replacing what was told before in one step. The file is removed
    /// when the [`DataDir`] is dropped.
    ///
    /// # Errors
    /// [`DataDirError::Unusable`] where it cannot be written.
    pub fn write_serve_info(&self, info: &ServeInfo) -> Result<(), DataDirError> {
        let target = self.path.join(SERVE_INFO);
        let fresh = self.path.join(format!("{SERVE_INFO}.new"));
        let write = || -> io::Result<()> {
            // create_new, so that the mode is ours and not that of a file that was there.
            remove_if_there(&fresh)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            let mut text = serde_json::to_vec_pretty(info)?;
            text.push(b'\n');
            file.write_all(&text)?;
            fs::rename(&fresh, &target)
        };
        write().map_err(unusable("write", &target))
    }

    /// The `serve` that holds the directory at `path` now, if there is one that is ready to be talked to. A note left
    /// by one that was killed is removed.
    ///
    /// # Errors
    /// [`DataDirError::Unusable`] where this user cannot read the directory, [`DataDirError::Garbled`] where the note
    /// is no [`ServeInfo`].
    pub fn find_running(path: &Path) -> Result<Option<ServeInfo>, DataDirError> {
        let path = absolute(path)?;
        let lock_path = path.join(LOCK);
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(unusable("read the lock file", &lock_path)(error)),
        };
        match lock.try_lock_shared() {
            // While this shared lock is held no serve can start, so the note is certainly nobody's.
            Ok(()) => {
                if let Err(error) = remove_if_there(&path.join(SERVE_INFO)) {
                    tracing::debug!(%error, path = %path.display(), "a leftover serve.json stays");
                }
                Ok(None)
            }
            Err(TryLockError::WouldBlock) => read_serve_info(&path),
            Err(TryLockError::Error(error)) => Err(unusable("lock", &lock_path)(error)),
        }
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Before the lock goes, so that nobody's note but ours can be meant.
        if let Err(error) = remove_if_there(&self.path.join(SERVE_INFO)) {
            tracing::debug!(%error, path = %self.path.display(), "serve.json could not be removed");
        }
    }
}

fn resolve_from(
    explicit: Option<PathBuf>,
    is_root: bool,
    xdg_data_home: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Result<PathBuf, DataDirError> {
    if let Some(path) = explicit {
        return absolute(&path);
    }
    if is_root {
        return Ok(PathBuf::from(ROOT_DATA_DIR));
    }
    // The XDG specification: a relative path here is to be ignored.
    if let Some(base) = xdg_data_home.filter(|base| base.is_absolute()) {
        return Ok(base.join("wallex"));
    }
    let home = home.filter(|home| home.is_absolute()).ok_or(DataDirError::NoHome)?;
    Ok(home.join(".local/share/wallex"))
}

fn absolute(path: &Path) -> Result<PathBuf, DataDirError> {
    if path.as_os_str().is_empty() {
        return Err(DataDirError::Empty);
    }
    std::path::absolute(path).map_err(unusable("find", path))
}

fn create(path: &Path) -> io::Result<()> {
    let mode = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(mode).create(directory) {
            // Again, because the mode given at creation is cut by the umask, and root's may well be 077.
            Ok(()) => fs::set_permissions(directory, Permissions::from_mode(mode))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    if path.is_dir() { Ok(()) } else { Err(ErrorKind::NotADirectory.into()) }
}

fn read_serve_info(path: &Path) -> Result<Option<ServeInfo>, DataDirError> {
    let path = path.join(SERVE_INFO);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| DataDirError::Garbled { path, source }),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(unusable("read", &path)(error)),
    }
}

/// Words for whoever holds the lock: best from its note, else (it is just starting) from the lock file.
fn describe_holder(path: &Path) -> String {
    if let Ok(Some(info)) = read_serve_info(path) {
        return format!("the wallex serve with pid {} at {}", info.pid, info.url);
    }
    match fs::read_to_string(path.join(LOCK)).ok().and_then(|text| text.trim().parse::<u32>().ok()) {
        Some(pid) => format!("the wallex serve with pid {pid}, which is starting or stopping"),
        None => "another wallex serve".to_owned(),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn unusable(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    move |source| DataDirError::Unusable { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<PathBuf> {
        Some(PathBuf::from(text))
    }

    #[test]
    fn an_explicit_path_wins_even_for_root() {
        assert_eq!(resolve_from(path("/x"), true, path("/xdg"), path("/home/u")).unwrap(), Path::new("/x"));
    }

    #[test]
    fn root_keeps_data_in_var_lib() {
        assert_eq!(resolve_from(None, true, path("/xdg"), path("/root")).unwrap(), Path::new("/var/lib/wallex"));
    }

    #[test]
    fn a_user_keeps_data_below_xdg_data_home_else_below_the_home_directory() {
        let user = |xdg| resolve_from(None, false, xdg, path("/home/u")).unwrap();
        assert_eq!(user(path("/xdg")), Path::new("/xdg/wallex"));
        assert_eq!(user(None), Path::new("/home/u/.local/share/wallex"));
        assert_eq!(user(path("relative")), Path::new("/home/u/.local/share/wallex"));
        assert_eq!(user(path("")), Path::new("/home/u/.local/share/wallex"));
    }

    #[test]
    fn without_a_home_the_message_says_what_to_give() {
        let error = resolve_from(None, false, None, None).unwrap_err();
        assert!(error.to_string().contains("--data-dir"), "{error}");
    }

    #[test]
    fn an_empty_path_is_refused_and_a_relative_one_made_absolute() {
        assert!(matches!(resolve_from(path(""), false, None, None), Err(DataDirError::Empty)));
        assert!(resolve_from(path("here"), false, None, None).unwrap().is_absolute());
    }

    #[test]
    fn a_full_disk_is_named_as_such() {
        let error = unusable("write", Path::new("/data/serve.json"))(ErrorKind::StorageFull.into());
        assert!(error.to_string().ends_with("free some space there"), "{error}");
    }

    #[test]
    fn debug_output_of_a_serve_info_has_no_password() {
        let info = ServeInfo {
            pid: 1,
            url: "http://127.0.0.1:3000".to_owned(),
            database_url: "postgres://wallex:s3cret@db/wallex".to_owned(),
            event_store: Some("esdb://wallex:s3cret@events:2113".to_owned()),
            event_store_prefix: Some("wallet-".to_owned()),
            kafka_brokers: "127.0.0.1:9092".to_owned(),
            embedded_postgres: false,
            embedded_kafka: false,
            started_at: Utc::now(),
            version: "0.1.0".to_owned(),
        };
        assert!(!format!("{info:?}").contains("s3cret"));
    }
}
