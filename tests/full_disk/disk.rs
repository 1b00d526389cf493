//! A small disk of a test's own: a file system in memory, in a mount namespace that ends with the processes in it, so that
//! nothing is left behind. Root may mount it; anybody else is root in a user namespace for as long as that takes.

use std::fs::File;
use std::io::{ErrorKind, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::unistd::{Gid, Uid};

/// Where the small disk is, for the part of a test that runs on it.
const DISK: &str = "SMALL_DISK_OF_THIS_TEST";
const MIB: u64 = 1024 * 1024;
/// Mounts a disk of `$1` MiB on `$2`, passable for root's PostgreSQL, and runs the rest there.
const ON_THE_DISK: &str = r#"size=$1 place=$2; shift 2
    mount -t tmpfs -o size="$size"m,mode=0711 small-disk "$place" && exec "$@""#;

/// Runs `test` on a disk of so many MiB, in a process of its own; `name` is the name of the test function that calls this.
/// Where the system does not let this user have such a disk, a line says so, and nothing is run.
pub fn on_a_disk_of(mib: u64, name: &str, test: impl FnOnce(&Path)) {
    if let Some(disk) = std::env::var_os(DISK) {
        return test(&PathBuf::from(disk));
    }
    let place = crate::process::room();
    let run = |program: &Path, arguments: &[&str]| -> std::io::Result<Output> {
        let (mut unshare, and_then) = unshare();
        unshare.args(["sh", "-c", ON_THE_DISK, "sh", &mib.to_string()]).arg(place.path()).args(and_then);
        unshare.arg(program).args(arguments).env(DISK, place.path()).output()
    };
    // On macOS there is no such program.
    let refused = match run(Path::new("true"), &[]) {
        Ok(possible) if possible.status.success() => None,
        Ok(refused) => Some(String::from_utf8_lossy(&refused.stderr).into_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    };
    if let Some(reason) = refused {
        // Past the test's own output, which is kept from who runs it while all is well.
        let line = format!("NOT RUN: {name}: this user may not mount a small disk here ({})\n", reason.trim());
        stderr().write_all(line.as_bytes()).expect("standard error");
        return;
    }
    let this_program = std::env::current_exe().expect("this program");
    let output = run(&this_program, &[name, "--exact", "--nocapture"]).expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "it ran there: {said}");
    println!("{said}");
}

/// The command that enters namespaces in which this user may mount, and what leads back to this very user once it is done.
fn unshare() -> (Command, Vec<String>) {
    let mut unshare = Command::new("unshare");
    unshare.arg("--mount");
    if Uid::effective().is_root() {
        return (unshare, Vec::new());
    }
    unshare.arg("--map-root-user");
    let (user, group) = (Uid::effective(), Gid::effective());
    let back = ["unshare".to_owned(), format!("--map-user={user}"), format!("--map-group={group}")];
    (unshare, back.into())
}

/// What takes the disk's place away. The place is there again when it is dropped.
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    /// Fills the disk but for so many MiB.
    pub fn leaving(mib: u64, disk: &Path) -> Ballast {
        let path = disk.join("ballast");
        let mut file = File::create(&path).expect("a file on the small disk");
        // Page by page, so that in the end there is no place for even one.
        let page = [1_u8; 4_096];
        let mut written = 0;
        loop {
            match file.write(&page) {
                Ok(bytes) => written += bytes as u64,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("the ballast could not be written: {error}"),
            }
        }
        file.set_len(written.saturating_sub(mib * MIB)).expect("a shorter file");
        Ballast { path }
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).expect("the ballast goes");
    }
}
