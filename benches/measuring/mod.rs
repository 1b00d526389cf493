//! What the benches share: `pgbench` to measure against, medians, and lines that say what was found.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// Clients of `pgbench`, as many as the callers.
pub const PGBENCH_CLIENTS: u32 = 20;
/// Rows: 100,000 accounts and a branch for each unit, so that the clients do not wait for one branch's row.
const PGBENCH_SCALE: u32 = 20;

/// Where a bench keeps its data: on a disk, as `/var/tmp` is, even where `/tmp` is memory. It goes when this does.
pub fn directory(named: Option<&PathBuf>) -> tempfile::TempDir {
    let base = named.cloned().unwrap_or_else(|| PathBuf::from("/var/tmp"));
    // PostgreSQL does not run as root, and as whoever it runs it must be able to come here.
    let passable = std::fs::Permissions::from_mode(0o755);
    let made = tempfile::Builder::new().prefix("wallex-bench-").permissions(passable).tempdir_in(base);
    made.expect("a directory that can be written to")
}

/// TPC-B as `pgbench` has it, on a database of its own beside the one that is measured.
pub struct Pgbench {
    url: String,
}

impl Pgbench {
    /// Makes its database on the server of `url`, whose database is called `wallex`.
    pub fn prepare(url: &str) -> Self {
        let pgbench = Pgbench { url: url.replacen("/wallex?", "/pgbench?", 1) };
        assert_ne!(pgbench.url, url, "the managed PostgreSQL's database is called wallex");
        call(Command::new(tool("psql")).args(["-qc", "CREATE DATABASE pgbench", url]));
        let scale = PGBENCH_SCALE.to_string();
        call(Command::new(tool("pgbench")).args(["-i", "-q", "-s", &scale, &pgbench.url]));
        pgbench
    }

    /// Transactions a second, over so many seconds.
    pub fn run(&self, seconds: u64) -> f64 {
        let (clients, seconds) = (PGBENCH_CLIENTS.to_string(), seconds.to_string());
        let told =
            call(Command::new(tool("pgbench")).args(["-n", "-c", &clients, "-j", "2", "-T", &seconds, &self.url]));
        // What it has left to be written is not to be written while something else is measured.
        call(Command::new(tool("psql")).args(["-qc", "CHECKPOINT", &self.url]));
        let rate = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        rate.unwrap_or_else(|| panic!("pgbench told no tps: {told}"))
    }
}

fn call(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A client program of PostgreSQL: in the path, or beside the server's own.
fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file());
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut beside: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
    beside.sort();
    in_path
        .or_else(|| beside.into_iter().rfind(|file| file.is_file()))
        .unwrap_or_else(|| panic!("no {name} here: install PostgreSQL's client programs (Debian: postgresql-client)"))
}

/// The middle one of some measurements.
#[derive(Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * share).round() as usize]
    }
}

/// What a figure must be.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    Below(f64),
    Within(f64, f64),
}

/// One line: what, how much, what it must be, and whether it is.
pub fn tell(what: &str, found: f64, unit: &str, target: Target) {
    let (met, due) = match target {
        Target::AtLeast(least) => (found >= least, format!("at least {least}{unit}")),
        Target::Below(most) => (found < most, format!("below {most}{unit}")),
        Target::Within(least, most) => ((least..=most).contains(&found), format!("{least} to {most}{unit}")),
    };
    let verdict = if met { "met" } else { "MISSED" };
    println!("{what:<66} {:>12}   {due:<18} {verdict}", format!("{found:.2}{unit}"));
}

/// How much memory of a process is resident, in MiB: `VmRSS` now, `VmHWM` at its peak. `None` once it has ended.
pub fn resident_mib(pid: u32, which: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(which)?.strip_prefix(':'))?;
    let kib: u32 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(f64::from(kib) / 1_024.0)
}

/// One line without a verdict.
pub fn note(what: &str, found: impl std::fmt::Display) {
    println!("{what:<66} {found:>12}");
}
