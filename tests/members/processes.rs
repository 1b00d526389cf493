//! Three `wallex project` in one group.

use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wallex::embedded::EmbeddedBroker;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC};
use wallex::postgres::sqlx;
use wallex::projection::{LEDGER_PROJECTOR, READ_MODEL_PROJECTOR};

use crate::process::wallex;
use crate::world::World;

/// A process that is killed when it is dropped.
pub struct Process(Child);

impl Process {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).expect("a process id")), signal).expect("a signal");
    }

    /// Asks it to end and waits until it has.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.0.wait().expect("its end").code(), Some(143));
    }

    /// How it has ended by itself, once it has, and what it said.
    pub fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().expect("its words");
        std::io::Read::read_to_string(&mut stderr, &mut said).expect("text");
        (self.0.wait().expect("its end").code(), said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where processes find a broker.
pub struct Place {
    pub brokers: String,
    /// Options of each process beside that.
    pub options: Vec<&'static str>,
    /// Longer than a session of its groups lasts.
    pub longer_than_a_session: Duration,
    pub data_dir: tempfile::TempDir,
}

impl Place {
    pub fn start(&self, world: &World, arguments: &[&str], stderr: Stdio) -> Process {
        let data_dir = self.data_dir.path().to_str().expect("UTF-8");
        let on = ["--database-url", &world.database.url, "--kafka-brokers", &self.brokers, "--data-dir", data_dir];
        let mut command = wallex(&[arguments, &on, &self.options, &["--log", "error"]].concat());
        Process(command.stdout(Stdio::null()).stderr(stderr).spawn().expect("wallex runs"))
    }

    fn project(&self, world: &World) -> Process {
        self.start(world, &["project"], Stdio::null())
    }
}

/// New events, and the wait until both projections have them, whoever does the work.
async fn traffic(world: &mut World) {
    world.operate(300).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
}

/// Members of both groups come, go, and stand still; after each change there is traffic in all partitions, and all of it gets through.
pub async fn come_and_go(seed: u64, place: &Place) {
    let mut world = World::new(seed).await;
    world.open((0..40).map(|number| format!("wallet-{number}"))).await;
    let _relay = place.start(&world, &["relay"], Stdio::null());
    let mut members: Vec<Process> = (0..3).map(|_| place.project(&world)).collect();
    traffic(&mut world).await;
    // Killed, in the middle of its work.
    world.operate(2_000).await;
    drop(members.remove(0));
    traffic(&mut world).await;
    // Another one in its place, while there is work.
    world.operate(2_000).await;
    members.push(place.project(&world));
    traffic(&mut world).await;
    // Stopped in order.
    world.operate(2_000).await;
    members.remove(0).stop();
    traffic(&mut world).await;
    // Halted for longer than its session lasts, in the middle of its work: the others get its partitions, and when it wakes it
    // believes for a moment that it still has them.
    members.push(place.project(&world));
    traffic(&mut world).await;
    for halted in &members {
        world.operate(2_000).await;
        halted.signal(Signal::SIGSTOP);
        tokio::time::sleep(place.longer_than_a_session).await;
        traffic(&mut world).await;
        world.operate(500).await;
        halted.signal(Signal::SIGCONT);
        traffic(&mut world).await;
    }
    world.assert_ledger_and_read_model().await;
    assert_eq!(world.database.number("SELECT count(*) FROM parked_records").await, 0);
    for mut member in members {
        member.stop();
    }
}

fn embedded(broker: &EmbeddedBroker) -> Place {
    // This broker lets a session run out at each change of members.
    let options = ["--kafka-config", "session.timeout.ms=1500", "--kafka-config", "heartbeat.interval.ms=200"];
    Place {
        brokers: broker.bootstrap_servers().to_owned(),
        options: options.to_vec(),
        longer_than_a_session: Duration::from_secs(4),
        data_dir: tempfile::tempdir().expect("a directory"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_halted_in_the_middle_of_a_transaction_does_not_halt_the_others() {
    let broker = EmbeddedBroker::start(&[(EVENTS_TOPIC, EVENTS_PARTITIONS)]).expect("a broker");
    let place = embedded(&broker);
    let mut world = World::new(80).await;
    for statement in [
        "CREATE TABLE turnstile (passed bigint NOT NULL)",
        "INSERT INTO turnstile VALUES (0)",
        "CREATE FUNCTION pass() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN UPDATE turnstile SET passed = passed + 1; RETURN NULL; END'",
        "CREATE TRIGGER pass BEFORE INSERT ON ledger_postings FOR EACH STATEMENT EXECUTE FUNCTION pass()",
    ] {
        world.database.run(statement).await;
    }
    world.open((0..40).map(|number| format!("wallet-{number}"))).await;
    world.operate(200).await;
    let mut holder = world.database.database.pool().begin().await.expect("a transaction");
    sqlx::query("UPDATE turnstile SET passed = passed").execute(&mut *holder).await.expect("a lock");
    let _relay = place.start(&world, &["relay"], Stdio::null());
    let halted = place.project(&world);
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                      AND query LIKE '%INSERT INTO ledger_postings%'";
    world.until("it writes", || async { world.database.number(waiting).await > 0 }).await;
    // Halted while it waits: what it asked for is done, and it does not hear of it.
    halted.signal(Signal::SIGSTOP);
    holder.rollback().await.expect("a rollback");
    let mut other = place.project(&world);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    halted.signal(Signal::SIGCONT);
    traffic(&mut world).await;
    world.assert_ledger_and_read_model().await;
    other.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_processes_that_come_go_and_stand_still_double_and_skip_nothing() {
    let broker = EmbeddedBroker::start(&[(EVENTS_TOPIC, EVENTS_PARTITIONS)]).expect("a broker");
    come_and_go(81, &embedded(&broker)).await;
}
