//! Finding the machine's own PostgreSQL.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::PostgresError;

/// The oldest major version that is accepted.
pub(super) const OLDEST_MAJOR: u32 = 14;

/// Where to look for PostgreSQL's server binaries.
#[derive(Clone, Debug, Default)]
pub enum PostgresSearch {
    /// In `PATH`, where `pg_config --bindir` says, and where Debian, PGDG and Homebrew install, in that order; among
    /// several versions in one such place the highest. A cluster that exists decides for its own major version.
    #[default]
    System,
    /// In these directories only, in their order.
    Only(Vec<PathBuf>),
}

/// An installation: a directory with `postgres` and `initdb` in it.
#[derive(Clone, Debug)]
pub(super) struct Binaries {
    directory: PathBuf,
    major: u32,
}

impl Binaries {
    pub(super) fn postgres(&self) -> PathBuf {
        self.directory.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.directory.join("initdb")
    }

    /// Asks the `postgres` in `directory` what it is; `None` where there is none that answers.
    fn in_directory(directory: &Path) -> Option<Binaries> {
        // Resolved, because a link in a bin directory has no server files beside it.
        let postgres = directory.join("postgres").canonicalize().ok()?;
        let directory = postgres.parent()?.to_owned();
        if !directory.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(&postgres).arg("--version").stdin(Stdio::null()).output().ok()?;
        let major = major_version(std::str::from_utf8(&output.stdout).ok()?)?;
        Some(Binaries { directory, major })
    }
}

impl PostgresSearch {
    /// The first installation that fits `cluster`, or (where that does not exist yet) is recent enough.
    pub(super) fn find(&self, cluster: &Path) -> Result<Binaries, PostgresError> {
        let wanted = if cluster.exists() { Some(cluster_major(cluster)?) } else { None };
        let mut asked: Vec<Binaries> = Vec::new();
        for directory in self.directories() {
            let Some(found) = Binaries::in_directory(&directory) else { continue };
            if wanted.map_or(found.major >= OLDEST_MAJOR, |wanted| wanted == found.major) {
                return Ok(found);
            }
            asked.push(found);
        }
        let installed =
            asked.first().map(|other| format!("PostgreSQL {} in {}", other.major, other.directory.display()));
        match (wanted, installed) {
            (Some(wanted), Some(found)) => {
                Err(PostgresError::OtherMajor { cluster: cluster.to_owned(), wanted, found })
            }
            (_, too_old) => Err(PostgresError::NotInstalled { looked: self.describe(), too_old }),
        }
    }

    /// Candidates, cheapest first: they are asked one by one until one fits.
    fn directories(&self) -> Box<dyn Iterator<Item = PathBuf> + '_> {
        match self {
            PostgresSearch::Only(directories) => Box::new(directories.iter().cloned()),
            PostgresSearch::System => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let in_path: Vec<PathBuf> = std::env::split_paths(&path).filter(|entry| entry.is_absolute()).collect();
                let installed = [
                    ("/usr/lib/postgresql", ""),
                    ("/usr", "pgsql-"),
                    ("/opt/homebrew/opt", "postgresql"),
                    ("/usr/local/opt", "postgresql"),
                ];
                Box::new(
                    in_path
                        .into_iter()
                        .chain(std::iter::once_with(pg_config_bindir).flatten())
                        .chain(installed.into_iter().flat_map(|(root, prefix)| versions_below(Path::new(root), prefix)))
                        .chain(std::iter::once(PathBuf::from("/usr/local/pgsql/bin"))),
                )
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            PostgresSearch::System => "PATH, pg_config and the usual places".to_owned(),
            PostgresSearch::Only(directories) => {
                let names: Vec<String> = directories.iter().map(|directory| directory.display().to_string()).collect();
                names.join(", ")
            }
        }
    }
}

/// The major version that made the cluster.
fn cluster_major(cluster: &Path) -> Result<u32, PostgresError> {
    let text = fs::read_to_string(cluster.join("PG_VERSION")).ok();
    text.and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| PostgresError::NotACluster { cluster: cluster.to_owned() })
}

/// `postgres (PostgreSQL) 15.16 (Debian 15.16-0+deb12u1)`, also `17beta1`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split_once(") ")?.1;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

fn pg_config_bindir() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    Some(PathBuf::from(std::str::from_utf8(&output.stdout).ok()?.trim()))
}

/// `bin` directories of installations side by side below `root`, named `prefix` and a version, the highest first.
fn versions_below(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let version = version_in(&entry.file_name(), prefix)?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_unstable_by(|left, right| right.cmp(left));
    found.into_iter().map(|(_, bin)| bin).collect()
}

/// `postgresql@17` is 17; a bare `postgresql` (Homebrew's alias) counts as the least.
fn version_in(name: &OsStr, prefix: &str) -> Option<u32> {
    let version = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@');
    if version.is_empty() && !prefix.is_empty() { Some(0) } else { version.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_releases_and_betas() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.16 (Debian 15.16-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 17beta1\n"), Some(17));
        assert_eq!(major_version("postgres (PostgreSQL) 18\n"), Some(18));
        assert_eq!(major_version("mysqld 8.0"), None);
    }

    #[test]
    fn installations_side_by_side_are_ordered_by_number_not_by_text() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9.6", "9", "14", "16", "common"] {
            fs::create_dir_all(root.path().join(name).join("bin")).unwrap();
        }
        let found = versions_below(root.path(), "");
        let expected: Vec<PathBuf> = ["16", "14", "9"].map(|name| root.path().join(name).join("bin")).into();
        assert_eq!(found, expected);
    }

    #[test]
    fn homebrew_kegs_are_recognised() {
        assert_eq!(version_in(OsStr::new("postgresql@17"), "postgresql"), Some(17));
        assert_eq!(version_in(OsStr::new("postgresql"), "postgresql"), Some(0));
        assert_eq!(version_in(OsStr::new("postgrest"), "postgresql"), None);
        assert_eq!(version_in(OsStr::new("pgsql-16"), "pgsql-"), Some(16));
    }

    #[test]
    fn nothing_installed_says_what_to_install() {
        let search = PostgresSearch::Only(vec![PathBuf::from("/nowhere")]);
        let error = search.find(Path::new("/no/cluster")).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("apt install postgresql"), "{error}");
        assert!(error.contains("WALLEX_DATABASE_URL") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn an_installation_that_is_too_old_is_named() {
        let root = tempfile::tempdir().unwrap();
        fake_installation(root.path(), "12.3");
        let error = PostgresSearch::Only(vec![root.path().to_owned()]).find(Path::new("/no/cluster")).unwrap_err();
        assert!(error.to_string().contains("only PostgreSQL 12 in"), "{error}");
    }

    #[test]
    fn a_cluster_of_another_major_version_names_both() {
        let root = tempfile::tempdir().unwrap();
        fake_installation(root.path(), "15.1");
        let cluster = root.path().join("cluster");
        fs::create_dir(&cluster).unwrap();
        fs::write(cluster.join("PG_VERSION"), "13\n").unwrap();
        let error = PostgresSearch::Only(vec![root.path().to_owned()]).find(&cluster).unwrap_err().to_string();
        assert!(error.contains("made by PostgreSQL 13") && error.contains("only PostgreSQL 15 in"), "{error}");
    }

    #[test]
    fn a_directory_that_is_no_cluster_is_said_to_be_none() {
        let root = tempfile::tempdir().unwrap();
        let error = PostgresSearch::System.find(root.path()).unwrap_err();
        assert!(matches!(error, PostgresError::NotACluster { .. }), "{error}");
    }

    fn fake_installation(directory: &Path, version: &str) {
        use std::os::unix::fs::PermissionsExt;
        for name in ["postgres", "initdb"] {
            let file = directory.join(name);
            fs::write(&file, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}
