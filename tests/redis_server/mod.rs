//! A real redis-server of a test's own, with a port and a directory of its own, that can be halted, flushed, killed and started
//! again.
//!
//! It ends when this is dropped, and also when the test process is killed. `scripts/test` installs the program where it is missing.

#![allow(dead_code, reason = "each test binary uses its own part of this, so an expectation would not hold in all")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long it may take to be there. Machines under test are busy.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the server beside itself, tells its process id, and kills it once nobody holds its standard input any more.
const KEEPER: &str = r#"
    trap '' INT HUP TERM
    redis-server "$@" >/dev/null 2>&1 &
    echo $!
    read -r _
    kill -9 $!"#;

/// A Redis that only this test uses.
pub struct RedisServer {
    directory: tempfile::TempDir,
    port: u16,
    password: Option<String>,
    running: Option<Running>,
}

struct Running {
    server: Pid,
    /// What the keeper waits on.
    held: Option<ChildStdin>,
    keeper: Child,
}

impl RedisServer {
    /// One that takes everybody.
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// One that wants a password.
    pub fn start_with_password(password: &str) -> Self {
        Self::start_as(Some(password.to_owned()))
    }

    fn start_as(password: Option<String>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut server = RedisServer { directory, port: 0, password, running: None };
        let begun = Instant::now();
        // A port that is free now may be somebody else's a moment later.
        while !server.starts_on(free_port()) {
            assert!(begun.elapsed() < START_PATIENCE, "no redis-server: {}", server.log());
        }
        server
    }

    /// Starts it again where it was. It has forgotten everything.
    pub fn start_again(&mut self) {
        let begun = Instant::now();
        while !self.starts_on(self.port) {
            assert!(begun.elapsed() < START_PATIENCE, "no redis-server: {}", self.log());
        }
    }

    /// Whether a server of ours answers on this port.
    fn starts_on(&mut self, port: u16) -> bool {
        self.port = port;
        let directory = self.directory.path().to_str().expect("a path in UTF-8").to_owned();
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper", "--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "no", "--dir", &directory, "--logfile", "log"]);
        command.args(self.password.iter().flat_map(|password| ["--requirepass", password]));
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut keeper = started.expect("a shell");
        let held = keeper.stdin.take();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("its output")).read_line(&mut line).expect("a process id");
        let server = Pid::from_raw(line.trim().parse().expect("a number"));
        self.running = Some(Running { server, held, keeper });
        let (begun, is_ours) = (Instant::now(), format!("process_id:{server}\r\n"));
        while begun.elapsed() < START_PATIENCE / 5 {
            if self.asked("INFO server").is_ok_and(|answer| answer.contains(&is_ours)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.running = None;
        false
    }

    /// How wallex is told where it is.
    pub fn address(&self) -> String {
        self.address_with(self.password.as_deref().unwrap_or_default())
    }

    /// The same, with this password.
    pub fn address_with(&self, password: &str) -> String {
        match password {
            "" => format!("redis://127.0.0.1:{}", self.port),
            password => format!("redis://:{password}@127.0.0.1:{}", self.port),
        }
    }

    /// `kill -9`. What it held is gone.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Halts it: its connections stay open, and nothing answers.
    pub fn halt(&self) {
        kill(self.server(), Signal::SIGSTOP).expect("a halt");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        kill(self.server(), Signal::SIGCONT).expect("it goes on");
    }

    /// What it answers to a command, in its own protocol.
    pub fn ask(&self, command: &str) -> String {
        self.asked(command).unwrap_or_else(|error| panic!("{command}: {error}; {}", self.log()))
    }

    fn asked(&self, command: &str) -> std::io::Result<String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut connection = TcpStream::connect_timeout(&address, ANSWER_PATIENCE)?;
        connection.set_read_timeout(Some(ANSWER_PATIENCE))?;
        if let Some(password) = &self.password {
            connection.write_all(format!("AUTH {password}\r\n").as_bytes())?;
        }
        connection.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn server(&self) -> Pid {
        self.running.as_ref().expect("it runs").server
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log"));
        log.unwrap_or_else(|error| format!("is redis-server installed? its log: {error}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.held.take());
        let _ = self.keeper.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}
