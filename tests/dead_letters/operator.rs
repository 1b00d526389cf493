//! An operator at the shell: `wallex` on a test's database.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{room, wallex};
use crate::world::{Topic, World};

/// Whoever runs `wallex dlq`, and sees what it prints.
pub struct Operator {
    room: TempDir,
    url: String,
    brokers: String,
}

impl Operator {
    pub fn of(world: &World, topic: &Topic) -> Operator {
        Operator { room: room(), url: world.database.url.clone(), brokers: topic.kafka().brokers }
    }

    /// A directory of this operator's own.
    pub fn room(&self) -> &Path {
        self.room.path()
    }

    /// Runs it at a terminal, types an answer, and tells what is to be seen there.
    pub async fn types(&self, arguments: &[&str], answer: &str) -> String {
        let command = self.command(arguments);
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| format!("'{}'", word.to_str().expect("text")))
            .collect();
        let mut terminal = Command::new("script");
        let command_line = words.join(" ");
        // The program of this name on macOS is another one, with options of its own.
        let at_a_terminal: &[&str] = if cfg!(target_os = "linux") {
            &["-qec", &command_line, "/dev/null"]
        } else {
            &["-q", "/dev/null", "sh", "-c", &command_line]
        };
        terminal.args(at_a_terminal).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => terminal.env(name, value),
                None => terminal.env_remove(name),
            };
        }
        let answer = format!("{answer}\n");
        let typing = move || {
            let mut terminal = terminal.spawn().expect("a terminal");
            // It stays open until the end, as a keyboard does.
            let mut keyboard = terminal.stdin.take().expect("its keyboard");
            keyboard.write_all(answer.as_bytes()).expect("an answer");
            let mut seen = Vec::new();
            terminal.stdout.take().expect("its screen").read_to_end(&mut seen).expect("what is seen");
            terminal.wait().expect("its end");
            String::from_utf8_lossy(&seen).into_owned()
        };
        tokio::task::spawn_blocking(typing).await.expect("its end")
    }

    /// The command, not run yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = wallex(arguments);
        let data_dir = self.room.path().join("data");
        command.arg("--data-dir").arg(data_dir).args(["--database-url", &self.url, "--kafka-brokers", &self.brokers]);
        command
    }

    /// Runs it, off the runtime's threads: a runner may have to go on meanwhile.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().expect("wallex runs")).await.expect("its end")
    }

    /// What it answers for people, with exit code 0.
    pub async fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What it answers for programs, with its exit code.
    pub async fn json_and_code(&self, arguments: &[&str]) -> (Value, Option<i32>) {
        let output = self.run(&[arguments, &["-o", "json"]].concat()).await;
        let value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", stderr(&output)));
        (value, output.status.code())
    }

    /// What it answers for programs, with exit code 0.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let (value, code) = self.json_and_code(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {value:#}");
        value
    }

    /// Asserts that `verify` finds no difference; its checks by name.
    pub async fn verified(&self) -> Value {
        self.json(&["verify", "--wait", "0"]).await["checks"].clone()
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a verification has found by the check of this name.
pub fn found<'a>(checks: &'a Value, name: &str) -> &'a str {
    let check = checks.as_array().expect("checks").iter().find(|check| check["name"] == name);
    check.expect("a check of that name")["actual"].as_str().expect("text")
}
