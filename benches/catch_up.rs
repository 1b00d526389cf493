//! How fast a backlog goes through each part by itself: the relay from the log to the topic, each projection from the topic to its
//! tables, a rebuild from the log beside a live table; and what one poison wallet costs all others. Runs
//! `cargo bench --bench catch_up`, or with `-- --events 1000000 --kafka`.
//!
//! On the embedded broker, which forgets, the topic holds the end of the log only, and the projections read the rest from the log.
//! With `--kafka` it is a real one (`scripts/kafka`), beside everything else on the same machine.

#![expect(clippy::float_arithmetic, reason = "times and rates, not money")]

#[path = "measuring/history.rs"]
mod history;
#[path = "../tests/kafka/mod.rs"]
mod kafka;
#[expect(dead_code, reason = "other benches measure against pgbench")]
mod measuring;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use history::{fill, wallet_name};
use kafka::Kafka;
use measuring::{Sample, Target, note, tell};
use wallex::embedded::{EmbeddedBroker, ManagedPostgres};
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC};
use wallex::log::PostgresLog;
use wallex::postgres::{Database, sqlx};
use wallex::projection::rebuild::{Rebuildable, drop_previous, rebuild};
use wallex::projection::{LEDGER_PROJECTOR, READ_MODEL_PROJECTOR};
use wallex::runtime::{Config, Parts, Wallex};

/// How often it is looked how far something is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Longer than anything here takes at a hundredth of its target.
const PATIENCE: Duration = Duration::from_secs(3_600);

#[derive(Parser)]
struct Args {
    /// Events in the log
    #[arg(long, default_value_t = 400_000)]
    events: usize,
    /// Wallets that they are spread over
    #[arg(long, default_value_t = 10_000)]
    wallets: usize,
    /// Catch-ups with and without a poison wallet, each in turn
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// On a real Kafka, started for this
    #[arg(long)]
    kafka: bool,
    /// Where to keep the data; a disk, not memory [default: /var/tmp]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// What `cargo bench` says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// A broker to measure on.
enum Broker {
    Real(Kafka),
    Embedded(EmbeddedBroker),
}

impl Broker {
    fn start(real: bool) -> Self {
        if real {
            return Broker::Real(Kafka::start());
        }
        let topics = [(EVENTS_TOPIC, EVENTS_PARTITIONS)];
        Broker::Embedded(EmbeddedBroker::start(&topics).expect("a broker"))
    }

    fn address(&self) -> String {
        match self {
            Broker::Real(kafka) => kafka.address(),
            Broker::Embedded(broker) => broker.bootstrap_servers().to_owned(),
        }
    }
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let directory = measuring::directory(args.directory.as_ref());
    let postgres = ManagedPostgres::start(directory.path()).await.expect("a PostgreSQL");
    let broker = Broker::start(args.kafka);
    let database = Database::connect(postgres.url(), 8).await.expect("a connection");
    database.migrate().await.expect("the schema");
    let config = Config {
        data_dir: Some(directory.path().join("wallex")),
        database_url: Some(postgres.url().to_owned()),
        kafka_brokers: Some(broker.address()),
        ..Config::default()
    };
    let world = World { database, config };

    let began = Instant::now();
    let head = fill(&PostgresLog::new(world.database.clone()), args.wallets, args.events).await;
    note("events in the log, filled a second", format!("{:.0}", head as f64 / began.elapsed().as_secs_f64()));
    world.settle().await;
    world.relay(head).await;
    let parts = [
        ("ledger", LEDGER_PROJECTOR, Parts { ledger: true, ..Parts::NONE }),
        ("read model", READ_MODEL_PROJECTOR, Parts { read_model: true, ..Parts::NONE }),
    ];
    for (what, projection, parts) in parts {
        let rate = world.catch_up(projection, parts, head).await;
        tell(&format!("{what}, events a second"), rate, "", Target::AtLeast(30_000.0));
    }
    for (what, which) in [("ledger", Rebuildable::Ledger), ("read model", Rebuildable::ReadModel)] {
        let made = rebuild(&world.database, which, false, &mut |_| {}).await.expect("a rebuild");
        assert!(made.swapped, "{made:?}");
        drop_previous(&world.database, which, true).await.expect("a drop");
        let rate = made.events as f64 * 1_000.0 / made.took_ms as f64;
        tell(
            &format!("rebuild of the {what}, events a second, compared and swapped"),
            rate,
            "",
            Target::AtLeast(30_000.0),
        );
    }
    world.prove().await;
    world.poison(&args, head).await;
    world.database.close().await;
    postgres.stop().await;
}

struct World {
    database: Database,
    config: Config,
}

impl World {
    /// Parts of a wallex, on this database and broker.
    async fn run(&self, parts: Parts) -> Wallex {
        Wallex::open(Config { parts, ..self.config.clone() }).await.expect("a wallex")
    }

    /// What one measurement has left to be written, and to be tidied, is not done during the next.
    async fn settle(&self) {
        for statement in ["VACUUM (ANALYZE)", "CHECKPOINT"] {
            sqlx::query(statement).execute(self.database.pool()).await.expect(statement);
        }
    }

    async fn number(&self, query: &'static str, projection: &str) -> i64 {
        let asked = sqlx::query_scalar(query).bind(projection);
        asked.fetch_one(self.database.pool()).await.expect("an answer")
    }

    /// Waits until this number is reached; since when it has taken how long.
    async fn until(&self, since: Instant, query: &'static str, projection: &str, number: i64) -> f64 {
        while self.number(query, projection).await < number {
            assert!(since.elapsed() < PATIENCE, "{projection} does not get through");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        since.elapsed().as_secs_f64()
    }

    async fn relay(&self, head: i64) {
        let began = Instant::now();
        let wallex = self.run(Parts { relay: true, ..Parts::NONE }).await;
        let published = "SELECT position FROM relay_checkpoint WHERE $1 <> ''";
        let took = self.until(began, published, "relay", head).await;
        wallex.close().await;
        tell("relay from a backlog, events a second", head as f64 / took, "", Target::AtLeast(50_000.0));
        self.settle().await;
    }

    /// One projection alone, from the beginning to the end of what there is, with its start and its joining of the group.
    async fn catch_up(&self, projection: &str, parts: Parts, head: i64) -> f64 {
        let began = Instant::now();
        let wallex = self.run(parts).await;
        let through = "SELECT CASE WHEN count(*) = 10 THEN min(position) ELSE 0 END FROM projection_checkpoints WHERE projection = $1";
        let took = self.until(began, through, projection, head).await;
        wallex.close().await;
        self.settle().await;
        head as f64 / took
    }

    async fn prove(&self) {
        let wallex = self.run(Parts::NONE).await;
        let began = Instant::now();
        let proof = wallex.verify().await.expect("a proof");
        assert!(proof.ok, "{proof:#?}");
        note(
            "verify, events a second; everything agrees",
            format!("{:.0}", proof.position as f64 / began.elapsed().as_secs_f64()),
        );
        wallex.close().await;
    }

    /// The ledger once more, from the beginning: with a wallet whose postings its table refuses, and without. The constraint is there
    /// both times, and names nobody the other time.
    async fn poison(&self, args: &Args, head: i64) {
        let (mut with, mut without) = (Sample::default(), Sample::default());
        let parts = Parts { ledger: true, ..Parts::NONE };
        for _ in 0..args.rounds {
            self.forget_ledger("nobody").await;
            let rate = self.catch_up(LEDGER_PROJECTOR, parts, head).await;
            note("ledger without poison, events a second", format!("{rate:.0}"));
            without.push(rate);
            self.forget_ledger(&wallet_name(args.wallets / 2)).await;
            let rate = self.catch_up(LEDGER_PROJECTOR, parts, head).await;
            note("ledger with one poison wallet, events a second", format!("{rate:.0}"));
            with.push(rate);
            let parked = "SELECT count(DISTINCT wallet_id) FROM parked_records WHERE projection = $1";
            assert_eq!(self.number(parked, LEDGER_PROJECTOR).await, 1);
        }
        let what = format!("ledger with one poison wallet among {}, against without", args.wallets);
        tell(&what, with.median() / without.median(), "x", Target::AtLeast(0.9));
    }

    /// Nothing is in the ledger, and postings of this wallet are refused from now on.
    async fn forget_ledger(&self, refused: &str) {
        let check = format!("ALTER TABLE ledger_postings ADD CONSTRAINT poison CHECK (account <> 'wallet/{refused}')");
        let statements = [
            "TRUNCATE ledger_postings, parked_records",
            "DELETE FROM projection_checkpoints WHERE projection = 'ledger-projector'",
            "ALTER TABLE ledger_postings DROP CONSTRAINT IF EXISTS poison",
            &check,
        ];
        for statement in statements {
            let statement = sqlx::AssertSqlSafe(statement.to_owned());
            sqlx::query(statement).execute(self.database.pool()).await.expect("a statement");
        }
    }
}
