//! A machine of stand-ins, in a folder.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Programs that any Mac has too. Whatever else this machine has (`nproc`, `timeout`, `flock`, …) is not found.
const OF_ANY_SYSTEM: [&str; 14] =
    ["cat", "chmod", "cut", "dirname", "grep", "head", "mkdir", "mktemp", "pgrep", "ps", "rm", "sed", "sleep", "touch"];

/// What the scripts are, and what they read.
const PROJECT: [&str; 7] = [
    "Cargo.toml",
    "scripts/demo",
    "scripts/test",
    "scripts/lib/prerequisites.sh",
    "scripts/kafka.d/cluster.sh",
    "scripts/kafka.d/jars.sh",
    "scripts/kafka.d/jars.sha256",
];

/// Where a program of this very machine is.
pub fn real(name: &str) -> String {
    let path = std::env::var_os("PATH").expect("a path");
    let places: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join(name)).collect();
    places.iter().find(|place| place.is_file()).expect(name).to_str().expect("UTF-8").to_owned()
}

/// `ROOT` in what it is given stands for its folder. What its programs are asked to do is noted in `asked`.
pub struct Machine(tempfile::TempDir);

impl Machine {
    /// It has a Rust, which is not on the path, and nothing of what the scripts install.
    pub fn new(system: &str) -> Machine {
        let machine = Machine(tempfile::tempdir().expect("a folder"));
        for file in PROJECT {
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(file);
            // What this very machine has installed must not be found.
            let moved = |text: String, folder: &str| text.replace(&format!(" {folder}"), &format!(" ROOT{folder}"));
            machine.write(&format!("project/{file}"), &["/opt/", "/usr/l", "/etc/ssl/"].into_iter().fold(text, moved));
        }
        for name in ["bash", "env", "sh"] {
            symlink(real(name), machine.path(&format!("bin/{name}"))).expect("a link");
        }
        let refuse = r#"for word; do case $word in --?*) echo "illegal option $word" >&2; exit 64 ;; esac; done"#;
        for name in OF_ANY_SYSTEM {
            machine.has(&format!("bin/{name}"), &format!("{refuse}\nexec {} \"$@\"", real(name)));
        }
        machine.has("bin/uname", &format!("echo {system}"));
        machine.has("bin/id", "case $1 in -u) echo 501 ;; *) echo someone ;; esac");
        machine.has("bin/sudo", r#"echo "sudo $*" >>ROOT/asked"#);
        for name in ["curl", "openssl", "python3"] {
            machine.has(&format!("bin/{name}"), "");
        }
        machine.has("home/.cargo/bin/cargo", r#"[ "$1" = --version ] || echo "cargo $*" >>ROOT/asked"#);
        machine.has("home/.cargo/bin/rustc", "echo 'rustc 1.999.0 (0 2026-01-01)'");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        path
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::write(&path, text.replace("ROOT", self.0.path().to_str().expect("UTF-8"))).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("its permissions");
    }

    /// Gives it a program: a script for `sh`.
    pub fn has(&self, path: &str, script: &str) {
        self.write(path, &format!("#!/bin/sh\n{script}\n"));
    }

    /// Runs a line of shell in the project, with nobody at a terminal: its exit code, and what it said.
    pub fn run(&self, line: &str) -> (Option<i32>, String) {
        self.finish(Command::new(self.path("bin/bash")).args(["-c", line]).stdin(Stdio::null()))
    }

    /// The same at a terminal, at which somebody types this answer.
    pub fn run_and_type(&self, answer: &str, line: &str) -> (Option<i32>, String) {
        fs::write(self.path("typed"), answer).expect("a file");
        let typed = fs::File::open(self.path("typed")).expect("a file");
        let mut terminal = Command::new(real("script"));
        match cfg!(target_os = "linux") {
            true => terminal.args(["-qec", line, "/dev/null"]),
            false => terminal.args(["-q", "/dev/null", "sh", "-c", line]),
        };
        self.finish(terminal.stdin(typed))
    }

    fn finish(&self, command: &mut Command) -> (Option<i32>, String) {
        let command = command.env_clear().env("PATH", self.path("bin")).env("HOME", self.path("home"));
        let output = command.current_dir(self.path("project")).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), said.into_owned())
    }

    /// What its programs were asked to do since this was asked last.
    pub fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.path("asked")).unwrap_or_default();
        let _ = fs::remove_file(self.path("asked"));
        asked.lines().map(str::to_owned).collect()
    }
}
