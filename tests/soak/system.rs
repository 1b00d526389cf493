//! A wallex of many processes on a PostgreSQL and a Kafka that outlive them, all of which can be disturbed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wallex::embedded::{DataDir, ManagedPostgres, ServerState};
use wallex::lag::progress;
use wallex::postgres::Database;

use crate::kafka::Kafka;
use crate::process::{room, wallex};

/// How long anything that must come right by itself is given. Machines under test are busy.
const PATIENCE: Duration = Duration::from_secs(240);

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Web,
    Relay,
    Project,
}

/// One process, started again whenever it has ended.
pub struct Member {
    pub role: Role,
    pub name: String,
    data_dir: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
    halted_until: Option<Instant>,
}

impl Member {
    fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let mut command = wallex(&arguments);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("wallex runs");
        (self.child, self.halted_until) = (Some(child), None);
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn signal(&self, signal: Signal) {
        let Some(child) = &self.child else { return };
        // It may have ended already, which is for `tend` to see.
        let _ = kill(Pid::from_raw(child.id() as i32), signal);
    }

    pub fn is_halted(&self) -> bool {
        self.halted_until.is_some()
    }

    /// Halts it; it goes on by itself after this time.
    pub fn halt(&mut self, time: Duration) {
        self.signal(Signal::SIGSTOP);
        self.halted_until = Some(Instant::now() + time);
    }

    fn go_on(&mut self) {
        self.signal(Signal::SIGCONT);
        self.halted_until = None;
    }

    /// Ends it by a signal and waits for the end.
    pub fn end(&mut self, signal: Signal) {
        self.signal(signal);
        if self.is_halted() && signal != Signal::SIGKILL {
            self.go_on();
        }
        if let Some(mut child) = self.child.take() {
            child.wait().expect("its end");
        }
    }

    fn tend(&mut self) {
        if self.halted_until.is_some_and(|until| until <= Instant::now()) {
            self.go_on();
        }
        let ended = self.child.as_mut().is_none_or(|child| child.try_wait().expect("its state").is_some());
        if ended {
            self.start();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
    }
}

/// The whole of it.
pub struct System {
    pub members: Vec<Member>,
    pub database: Database,
    pub kafka: Arc<Kafka>,
    pub database_url: String,
    postgres: ManagedPostgres,
    broker_comes_back: Option<JoinHandle<()>>,
    broker_halted_until: Option<Instant>,
    room: tempfile::TempDir,
    started: usize,
}

impl System {
    pub async fn start() -> System {
        let room = room();
        let kafka = Arc::new(Kafka::start());
        let directory = room.path().join("postgres");
        std::fs::create_dir(&directory).expect("a directory");
        let postgres = ManagedPostgres::start(&directory).await.expect("PostgreSQL starts");
        let database_url = postgres.url().to_owned();
        let database = Database::connect(&database_url, 4).await.expect("a connection");
        database.migrate().await.expect("the schema");
        let mut system = System {
            members: Vec::new(),
            database,
            kafka,
            database_url,
            postgres,
            broker_comes_back: None,
            broker_halted_until: None,
            room,
            started: 0,
        };
        for role in [Role::Web, Role::Web, Role::Relay, Role::Relay, Role::Project, Role::Project] {
            system.add(role);
        }
        system
    }

    pub fn add(&mut self, role: Role) {
        self.started += 1;
        let (verb, own): (&str, &[&str]) = match role {
            Role::Web => ("serve", &["--only", "http", "--listen", "127.0.0.1:0"]),
            Role::Relay => ("relay", &[]),
            Role::Project => ("project", &[]),
        };
        let name = format!("{verb}-{}", self.started);
        let data_dir = self.room.path().join(&name);
        let place = self.arguments_at(&data_dir);
        let arguments = [verb].iter().chain(own).map(|it| (*it).to_owned()).chain(place).collect();
        let log = self.room.path().join(format!("{name}.log"));
        let mut member = Member { role, name, data_dir, arguments, log, child: None, halted_until: None };
        member.start();
        self.members.push(member);
    }

    fn arguments_at(&self, data_dir: &Path) -> Vec<String> {
        let data_dir = data_dir.to_str().expect("a path in UTF-8").to_owned();
        let (url, brokers) = (self.database_url.clone(), self.kafka.address());
        ["--data-dir".to_owned(), data_dir, "--database-url".to_owned(), url, "--kafka-brokers".to_owned(), brokers]
            .into()
    }

    /// What a command is told to find all of it.
    pub fn place(&self) -> Vec<String> {
        self.arguments_at(&self.room.path().join("commands"))
    }

    /// Where HTTP is served now.
    pub fn urls(&self) -> Vec<String> {
        let webs = self.members.iter().filter(|member| member.role == Role::Web);
        webs.filter_map(|web| DataDir::find_running(&web.data_dir).ok().flatten().map(|info| info.url)).collect()
    }

    /// Starts what has ended, and lets go on what has been halted for long enough.
    pub fn tend(&mut self) {
        self.members.iter_mut().for_each(Member::tend);
        if self.broker_halted_until.is_some_and(|until| until <= Instant::now()) {
            self.kafka.go_on(1);
            self.broker_halted_until = None;
        }
        if self.broker_comes_back.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(back) = self.broker_comes_back.take()
        {
            back.join().expect("the broker is back");
        }
    }

    /// Lets everything go on at once.
    pub fn calm(&mut self) {
        self.members.iter_mut().filter(|member| member.is_halted()).for_each(Member::go_on);
        if self.broker_halted_until.take().is_some() {
            self.kafka.go_on(1);
        }
        if let Some(back) = self.broker_comes_back.take() {
            back.join().expect("the broker is back");
        }
    }

    pub fn broker_answers(&self) -> bool {
        self.broker_comes_back.is_none() && self.broker_halted_until.is_none()
    }

    /// `kill -9`; it comes back by itself.
    pub fn kill_broker(&mut self) {
        self.kafka.kill(1);
        let kafka = Arc::clone(&self.kafka);
        self.broker_comes_back = Some(std::thread::spawn(move || kafka.start_again(1)));
    }

    pub fn halt_broker(&mut self, time: Duration) {
        self.kafka.halt(1);
        self.broker_halted_until = Some(Instant::now() + time);
    }

    /// `kill -9` of PostgreSQL, which is started again by itself; whether it ran.
    pub fn kill_postgres(&self) -> bool {
        let state = *self.postgres.state().borrow();
        match state {
            ServerState::Running { pid } => kill(Pid::from_raw(pid as i32), Signal::SIGKILL).is_ok(),
            _ => false,
        }
    }

    /// Waits until something is so, while everything is tended.
    pub async fn until(&mut self, what: &str, mut is_so: impl AsyncFnMut(&System) -> bool) {
        let began = Instant::now();
        loop {
            self.tend();
            if is_so(self).await {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", self.lag());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until both web processes are there.
    pub async fn until_served(&mut self) {
        self.until("web processes serve", async |system: &System| system.urls().len() == 2).await;
    }

    /// Waits until relay and projections have dealt with everything that is in the log now.
    pub async fn until_drained(&mut self) {
        let mut head = None;
        self.until("relay and projections come after", async |system: &System| {
            let Ok(progress) = progress(&system.database).await else { return false };
            progress.is_through(*head.get_or_insert(progress.head))
        })
        .await;
    }

    /// What an operator would see.
    pub fn lag(&self) -> String {
        let lag = self.command(&["lag"]);
        format!("{}{}", String::from_utf8_lossy(&lag.stdout), String::from_utf8_lossy(&lag.stderr))
    }

    /// Runs a command of wallex's on this system, to its end.
    pub fn command(&self, arguments: &[&str]) -> std::process::Output {
        let place = self.place();
        let arguments: Vec<&str> = arguments.iter().copied().chain(place.iter().map(String::as_str)).collect();
        wallex(&arguments).output().expect("wallex runs")
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.room.disable_cleanup(true);
            eprintln!("what the processes said is in {}", self.room.path().display());
        }
    }
}
