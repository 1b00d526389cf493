//! A real Apache Kafka of a test's own, by `scripts/kafka`: one broker or several, each of which can be killed, halted,
//! stopped and started again, and Kafka's own Java tools to ask it.
//!
//! It ends when this is dropped, and also when the test process is killed. Everything fetched from elsewhere (Java, the
//! jars) is there before the tests begin where `scripts/test` runs them.
//!
//! A test that uses it has `real_kafka` in its name or its module's: by that `scripts/test --without-kafka` leaves it out.

#![allow(dead_code, reason = "each test binary uses its own part of this, so an expectation would not hold in all")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Topics: create, alter, describe, delete.
pub const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
/// Consumer groups: describe, reset offsets.
pub const CONSUMER_GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
/// Prints the records of a topic.
pub const CONSOLE_CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
/// Sends lines of its standard input.
pub const CONSOLE_PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
/// Settings of topics and brokers.
pub const CONFIGS: &str = "kafka.admin.ConfigCommand";
/// The end of each partition.
pub const OFFSETS: &str = "org.apache.kafka.tools.GetOffsetShell";
/// Elects leaders anew.
pub const LEADER_ELECTION: &str = "org.apache.kafka.tools.LeaderElectionCommand";
/// Deletes records below an offset.
pub const DELETE_RECORDS: &str = "org.apache.kafka.tools.DeleteRecordsCommand";

/// A Kafka that only this test uses.
pub struct Kafka {
    directory: tempfile::TempDir,
    addresses: Vec<String>,
}

impl Kafka {
    /// One broker without login or encryption, as most tests need it.
    pub fn start() -> Kafka {
        Self::start_with(&[])
    }

    /// With options of `scripts/kafka start`: `--brokers 3`, `--sasl scram-512`, `--tls`.
    pub fn start_with(options: &[&str]) -> Kafka {
        Self::start_in(&std::env::temp_dir(), options)
    }

    /// With its data in a new directory below this one.
    pub fn start_in(place: &Path, options: &[&str]) -> Kafka {
        let test = std::thread::current().name().unwrap_or("main").to_owned();
        assert!(
            test == "main" || test.contains("real_kafka"),
            "{test} uses a real Kafka: say so in its name, so that it can be left out where there is none"
        );
        let directory = tempfile::tempdir_in(place).expect("a directory");
        let this_process = std::process::id().to_string();
        let address = script(directory.path(), "start", &[&["--while", &this_process], options].concat());
        let addresses = address.trim().split(',').map(str::to_owned).collect();
        Kafka { directory, addresses }
    }

    /// `bootstrap.servers`: all brokers.
    pub fn address(&self) -> String {
        self.addresses.join(",")
    }

    /// The address of one broker; the first has the number 1, which is also its id in Kafka.
    pub fn address_of(&self, broker: usize) -> &str {
        &self.addresses[broker - 1]
    }

    /// Where its data, logs, settings and certificates are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The variables by which wallex finds it and may use it, with the password if there is one.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.directory().join("wallex.env")).expect("the file for wallex");
        text.lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// `kill -9` of a broker.
    pub fn kill(&self, broker: usize) {
        self.run("stop", &["--now", "--broker", &broker.to_string()]);
    }

    /// Ends a broker in order: it hands its partitions over first.
    pub fn stop(&self, broker: usize) {
        self.run("stop", &["--broker", &broker.to_string()]);
    }

    /// Starts a broker that was killed or stopped, on its data, and waits until it answers.
    pub fn start_again(&self, broker: usize) {
        self.run("start", &["--broker", &broker.to_string()]);
    }

    /// The same for every broker that does not run, all at once.
    pub fn start_all_again(&self) {
        self.run("start", &[]);
    }

    /// Whether a broker runs; it may have ended by itself.
    pub fn runs(&self, broker: usize) -> bool {
        // A process that has ended and that nobody has waited for is still there to be signalled, but runs nothing.
        let pid = self.process_of(broker).to_string();
        let command = Command::new("ps").args(["-ww", "-o", "command=", "-p", &pid]).output().expect("ps");
        String::from_utf8_lossy(&command.stdout).contains("server.properties")
    }

    /// How many records the partitions of a topic hold together, counted by their ends.
    pub fn held(&self, topic: &str) -> usize {
        let ends = self.tool(OFFSETS, &["--topic", topic]);
        let end = |line: &str| line.rsplit(':').next().and_then(|end| end.parse::<usize>().ok()).expect("an end");
        ends.lines().map(end).sum()
    }

    /// Halts a broker: its connections stay open, and nothing answers.
    pub fn halt(&self, broker: usize) {
        kill(self.process_of(broker), Signal::SIGSTOP).expect("a halt");
    }

    /// Lets a halted broker go on.
    pub fn go_on(&self, broker: usize) {
        kill(self.process_of(broker), Signal::SIGCONT).expect("it goes on");
    }

    fn process_of(&self, broker: usize) -> Pid {
        let file = self.directory().join(format!("broker-{broker}/pid"));
        Pid::from_raw(std::fs::read_to_string(file).expect("a process").trim().parse().expect("a number"))
    }

    /// What one of Kafka's own tools answers. It has to succeed.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        answer(&format!("{class} {arguments:?}"), &self.tool_output(class, arguments))
    }

    /// The same, whatever comes of it.
    pub fn tool_output(&self, class: &str, arguments: &[&str]) -> Output {
        self.tool_command(class, arguments).stdin(Stdio::null()).output().expect("a tool")
    }

    /// The same, to be given something to read, or to be run beside something else.
    pub fn tool_command(&self, class: &str, arguments: &[&str]) -> Command {
        let mut command = command(self.directory(), "tool");
        command.arg(class).args(arguments);
        command
    }

    fn run(&self, verb: &str, arguments: &[&str]) {
        script(self.directory(), verb, arguments);
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // What fails here is mended by the script's own watch over this process.
        let _ = command(self.directory(), "stop").arg("--now").output();
    }
}

fn command(directory: &Path, verb: &str) -> Command {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka");
    let mut command = Command::new(script);
    command.arg(verb).arg("--directory").arg(directory);
    // Tests are short: quick to start is worth more than quick in the end.
    command.env("KAFKA_JVM_PERFORMANCE_OPTS", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1");
    command
}

fn script(directory: &Path, verb: &str, arguments: &[&str]) -> String {
    let output = command(directory, verb).args(arguments).stdin(Stdio::null()).output().expect("scripts/kafka");
    answer(&format!("scripts/kafka {verb}"), &output)
}

fn answer(what: &str, output: &Output) -> String {
    let (answer, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what} failed: {answer}{errors}");
    answer.into_owned()
}
