//! As whom PostgreSQL runs. It refuses to run as root, so root hands it to another user; anybody else runs it himself.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, chown, getegid, geteuid};

use super::error::{PostgresError, io_error};

/// Whom root hands PostgreSQL to, the first that exists.
const SERVER_USERS: [&str; 2] = ["postgres", "nobody"];

#[derive(Clone, Debug)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// False where it is ourselves.
    switch: bool,
}

impl Account {
    /// The account for the cluster at `cluster`, which need not exist yet. For root, a cluster that does exist decides:
    /// its owner is the only one as whom PostgreSQL accepts it.
    pub(super) fn for_cluster(cluster: &Path) -> Result<Account, PostgresError> {
        let uid = geteuid();
        if !uid.is_root() {
            let name = account_name(uid)?.unwrap_or_else(|| uid.to_string());
            return Ok(Account { name, uid, gid: getegid(), switch: false });
        }
        if let Ok(owner) = fs::metadata(cluster)
            && owner.uid() != 0
        {
            let uid = Uid::from_raw(owner.uid());
            let name = account_name(uid)?.unwrap_or_else(|| uid.to_string());
            return Ok(Account { name, uid, gid: Gid::from_raw(owner.gid()), switch: true });
        }
        for name in SERVER_USERS {
            if let Some(user) = User::from_name(name).map_err(passwd_error)? {
                return Ok(Account { name: user.name, uid: user.uid, gid: user.gid, switch: true });
            }
        }
        Err(PostgresError::NoServerUser)
    }

    /// Gives a file or directory that we made to the account.
    pub(super) fn give(&self, path: &Path) -> Result<(), PostgresError> {
        if !self.switch {
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid))
            .map_err(io::Error::from)
            .map_err(io_error("hand over to PostgreSQL's user", path))
    }

    /// A command for one of PostgreSQL's programs, run as the account. It has no input, an environment in which nothing
    /// of the caller's own PostgreSQL settings counts, a process group of its own (a Ctrl-C in the terminal is for us,
    /// and it is us who stop the server, after the last command has been answered), and where the system can do that it
    /// gets `at_our_death` when **the thread that spawns it** ends, in whatever way.
    pub(super) fn command(&self, program: &Path, at_our_death: Signal) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).current_dir("/").process_group(0);
        for name in std::env::vars_os().map(|(name, _)| name).filter(is_postgres_setting) {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C");
        if self.switch {
            // Also drops root's supplementary groups.
            command.gid(self.gid.as_raw()).uid(self.uid.as_raw());
        }
        die_with_parent(&mut command, at_our_death);
        command
    }

    /// The topmost directory on the way to `path` that the account cannot pass, judged by the permission bits. Asked
    /// after a failure only: where an access list allows more than the bits do, nothing has failed.
    pub(super) fn blocked_at(&self, path: &Path) -> Option<PathBuf> {
        if !self.switch {
            return None;
        }
        let mut way: Vec<&Path> = path.ancestors().collect();
        way.reverse();
        way.into_iter().find(|directory| !self.may_pass(directory)).map(Path::to_owned)
    }

    fn may_pass(&self, directory: &Path) -> bool {
        let Ok(metadata) = fs::metadata(directory) else { return true };
        let bit = if metadata.uid() == self.uid.as_raw() {
            0o100
        } else if metadata.gid() == self.gid.as_raw() {
            0o010
        } else {
            0o001
        };
        metadata.mode() & bit != 0
    }
}

fn account_name(uid: Uid) -> Result<Option<String>, PostgresError> {
    Ok(User::from_uid(uid).map_err(passwd_error)?.map(|user| user.name))
}

fn passwd_error(error: nix::Error) -> PostgresError {
    io_error("read the password database", Path::new("/etc/passwd"))(error.into())
}

fn is_postgres_setting(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("PG"))
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::getpid();
    let set = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // It may have died before the line above, and then nobody would send the signal.
        if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    #[expect(
        unsafe_code,
        reason = "between fork and exec only async-signal-safe calls are allowed; this makes two system calls and \
                  allocates nothing. It runs after the change of user, which would clear the setting"
    )]
    unsafe {
        command.pre_exec(set);
    }
}

/// Elsewhere there is no such signal: a server that outlives us is stopped by the next start (see `leftover`).
#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _signal: Signal) {}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_topmost_closed_directory_is_named() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        let closed = open.join("closed");
        let inner = closed.join("inner");
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
        let stranger = Account {
            name: "stranger".to_owned(),
            uid: Uid::from_raw(54_321),
            gid: Gid::from_raw(54_321),
            switch: true,
        };
        assert_eq!(stranger.blocked_at(&inner), Some(closed.clone()));
        fs::set_permissions(&closed, Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(stranger.blocked_at(&inner), None);
    }

    #[test]
    fn settings_for_other_postgres_servers_are_recognised() {
        assert!(is_postgres_setting(&OsString::from("PGPORT")));
        assert!(!is_postgres_setting(&OsString::from("PATH")));
    }
}
