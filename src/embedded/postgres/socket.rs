//! Where the Unix socket lives. Its directory is what keeps other users out, and its path must be short.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use sha2::{Digest, Sha256};

use super::account::Account;
use super::cluster::{DATABASE, PORT, ROLE};
use super::error::{PostgresError, io_error};

/// The longest path of a socket file, in bytes: the system's field for it less the final NUL.
const LONGEST_SOCKET_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// How many names below a shared directory are tried before giving up: somebody else may have taken one, by chance or
/// to spite us.
const NAMES_TRIED: usize = 8;

/// Makes the directory for the socket, private to the account: `socket` in the data directory, or where that is too
/// long (or has characters that PostgreSQL's list of directories or a URL would trip over) a short one elsewhere.
pub(super) fn prepare(data_dir: &Path, account: &Account) -> Result<PathBuf, PostgresError> {
    let own = data_dir.join("socket");
    if fits(&own) {
        make_private(&own, account)?;
        return Ok(own);
    }
    let mut refused = Vec::new();
    for base in short_bases() {
        for attempt in 0..NAMES_TRIED {
            let candidate = base.join(short_name(data_dir, account, attempt));
            if !fits(&candidate) {
                refused.push(format!("{} is too long", candidate.display()));
                break;
            }
            match make_private(&candidate, account) {
                Ok(()) => return Ok(candidate),
                Err(error) => refused.push(error.to_string()),
            }
        }
    }
    Err(PostgresError::Socket { reason: refused.join("; ") })
}

/// The socket file, and PostgreSQL's lock file beside it.
pub(super) fn files(directory: &Path) -> [PathBuf; 2] {
    [socket_file(directory), directory.join(format!(".s.PGSQL.{PORT}.lock"))]
}

/// The database's URL through the socket in `directory`, in the form that libpq and sqlx share. Port and TLS are spelled
/// out because both clients would otherwise take them from the environment (`PGPORT`, `PGSSLMODE`).
pub(super) fn url(directory: &Path) -> String {
    let host = percent_encode(&directory.to_string_lossy());
    format!("postgres://{ROLE}@localhost:{PORT}/{DATABASE}?host={host}&sslmode=disable")
}

fn socket_file(directory: &Path) -> PathBuf {
    directory.join(format!(".s.PGSQL.{PORT}"))
}

fn fits(directory: &Path) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '@' | ' ');
    directory.to_str().is_some_and(|path| path.chars().all(plain))
        && socket_file(directory).as_os_str().len() <= LONGEST_SOCKET_PATH
}

/// Directories for short-lived files of this user, the safest first.
fn short_bases() -> Vec<PathBuf> {
    let runtime = if geteuid().is_root() {
        Some(PathBuf::from("/run"))
    } else {
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
    };
    let bases = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    bases.filter(|base| base.is_absolute() && base.is_dir()).collect()
}

/// The same for the same data directory, so that a restart finds its own again rather than leaving one behind.
fn short_name(data_dir: &Path, account: &Account, attempt: usize) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let mut name = format!("wallex-{}-", account.uid);
    for byte in &digest[..6] {
        name.push_str(&format!("{byte:02x}"));
    }
    if attempt > 0 {
        name.push_str(&format!("-{attempt}"));
    }
    name
}

/// Makes the directory, or accepts it where it is one that we made before: really a directory (no link), owned by the
/// account, and closed to everybody else. In `/tmp` anybody can make one of that name first.
fn make_private(directory: &Path, account: &Account) -> Result<(), PostgresError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => account.give(directory),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(directory).map_err(io_error("look at", directory))?;
            // Ours and root's are both right: a start that was killed may not have come to hand it over.
            let owned = found.uid() == account.uid.as_raw() || found.uid() == geteuid().as_raw();
            if found.is_dir() && owned && found.mode() & 0o077 == 0 {
                account.give(directory)
            } else {
                let reason =
                    format!("{} exists and is not a private directory of {}", directory.display(), account.name);
                Err(PostgresError::Socket { reason })
            }
        }
        Err(error) => Err(io_error("create", directory)(error)),
    }
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn account() -> Account {
        Account::for_cluster(Path::new("/no/cluster")).unwrap()
    }

    #[test]
    fn the_url_survives_blanks_and_signs_in_the_path() {
        assert_eq!(
            url(Path::new("/var/my data+1/socket")),
            "postgres://wallex@localhost:5432/wallex?host=%2Fvar%2Fmy%20data%2B1%2Fsocket&sslmode=disable"
        );
    }

    #[test]
    fn a_long_or_odd_path_does_not_fit() {
        assert!(fits(Path::new("/var/lib/wallex/socket")));
        assert!(!fits(Path::new(&format!("/{}", "x".repeat(LONGEST_SOCKET_PATH)))));
        assert!(!fits(Path::new("/a,b")));
        assert!(!fits(Path::new("/geld\u{e4}")));
    }

    #[test]
    fn the_short_name_stays_the_same_for_one_data_directory() {
        let name = |path: &str| short_name(Path::new(path), &account(), 0);
        assert_eq!(name("/a"), name("/a"));
        assert_ne!(name("/a"), name("/b"));
    }

    #[test]
    fn a_directory_prepared_by_somebody_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        assert!(make_private(&open, &account()).is_err());
        let real = root.path().join("real");
        DirBuilder::new().mode(0o700).create(&real).unwrap();
        let link = root.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(make_private(&link, &account()).is_err());
        make_private(&real, &account()).unwrap();
        make_private(&real, &account()).unwrap();
    }
}
