//! How many transfers a second the library makes durable, as a ratio to `pgbench`'s TPC-B on the same managed PostgreSQL
//! in the same minutes. Runs `cargo bench --bench write_path`, or with `-- --rounds 3 --seconds 2`.
//!
//! Each round measures everything once, one after the other, so that a slow minute of the machine is everybody's; the
//! figures are medians of the rounds. Only the write path runs: the relay and the projections are measured end to end.

#![expect(clippy::float_arithmetic, reason = "times and rates, not money")]

#[expect(dead_code, reason = "the other bench has more kinds of target")]
mod measuring;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use measuring::{PGBENCH_CLIENTS, Pgbench, Sample, Target, note, tell};
use tokio::task::JoinSet;
use wallex::embedded::ManagedPostgres;
use wallex::loadtest::Distribution;
use wallex::loadtest::plan::Plan;
use wallex::money::{Amount, Currency};
use wallex::runtime::{Config, Parts, Wallex};
use wallex::wallet::{Command, OwnerId, WalletId};

const WALLETS: u32 = 1_000;
/// Enough for any number of transfers of one unit.
const OPENING_MINOR: i64 = 100_000_000_000;

const DRAWN_PAIRS: usize = 1_000;

#[derive(Parser)]
struct Args {
    /// Rounds, each of which measures everything once
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where to keep the data; a disk, not memory [default: /var/tmp]
    #[arg(long)]
    directory: Option<PathBuf>,
    /// What `cargo bench` says to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// Which wallets transfer.
#[derive(Clone, Copy)]
enum Pairs {
    Spread,
    /// Each transfer goes into or out of the first wallet.
    OneHot,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let directory = measuring::directory(args.directory.as_ref());
    let postgres = ManagedPostgres::start(directory.path()).await.expect("a PostgreSQL");
    let pgbench = Pgbench::prepare(postgres.url());
    let parts = Parts { commands: true, ..Parts::NONE };
    let config = Config { database_url: Some(postgres.url().to_owned()), parts, ..Config::default() };
    let wallex = Wallex::open(Config { data_dir: Some(directory.path().join("wallex")), ..config }).await;
    let wallex = Arc::new(wallex.expect("a wallex"));
    let wallets = open_wallets(&wallex).await;

    let (mut tpc_b, mut few, mut many, mut hot) =
        (Sample::default(), Sample::default(), Sample::default(), Sample::default());
    for round in 1..=args.rounds {
        tpc_b.push(pgbench.run(args.seconds));
        few.push(transfers(&wallex, &wallets, 20, Pairs::Spread, args.seconds).await);
        many.push(transfers(&wallex, &wallets, 256, Pairs::Spread, args.seconds).await);
        hot.push(transfers(&wallex, &wallets, 20, Pairs::OneHot, args.seconds).await);
        eprintln!("round {round} of {}", args.rounds);
    }

    let (tpc_b, few, many, hot) = (tpc_b.median(), few.median(), many.median(), hot.median());
    note(&format!("pgbench TPC-B, {PGBENCH_CLIENTS} clients, a second"), format!("{tpc_b:.0}"));
    note("transfers, 20 callers, a second", format!("{few:.0}"));
    note("transfers, 256 callers, a second", format!("{many:.0}"));
    note("transfers on one hot wallet, 20 callers, a second", format!("{hot:.0}"));
    tell("20 callers against pgbench", few / tpc_b, "x", Target::AtLeast(5.0));
    tell("256 callers against pgbench", many / tpc_b, "x", Target::AtLeast(12.0));
    tell("one hot wallet against the spread rate", hot / few, "x", Target::AtLeast(0.7));

    if let Some(wallex) = Arc::into_inner(wallex) {
        wallex.close().await;
    }
    postgres.stop().await;
}

async fn open_wallets(wallex: &Arc<Wallex>) -> Arc<[WalletId]> {
    let ids = (0..WALLETS).map(|number| WalletId::new(format!("wallet-{number:04}")).expect("an id"));
    let ids: Arc<[WalletId]> = ids.collect();
    let mut opening = JoinSet::new();
    for id in ids.iter().cloned() {
        let wallex = Arc::clone(wallex);
        let initial = Amount::from_minor(OPENING_MINOR).expect("not negative");
        opening.spawn(async move {
            let owner = OwnerId::new("owner").expect("an owner");
            wallex.execute(Command::create(id, owner, Currency::USD, initial)).await.expect("a new wallet");
        });
    }
    opening.join_all().await;
    ids
}

/// Durable transfers a second.
async fn transfers(wallex: &Arc<Wallex>, wallets: &Arc<[WalletId]>, callers: u64, pairs: Pairs, seconds: u64) -> f64 {
    // Drawn before the clock starts: each caller has pairs of its own, which it goes through again and again.
    let drawn: Vec<Vec<_>> = (0..callers).map(|caller| draw(caller, pairs)).collect();
    let started = Instant::now();
    let until = started + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for drawn in drawn {
        let (wallex, wallets) = (Arc::clone(wallex), Arc::clone(wallets));
        tasks.spawn(async move {
            let mut done = 0_u64;
            for (from, to) in drawn.into_iter().cycle() {
                if Instant::now() >= until {
                    break;
                }
                let (from, to) = (wallets[from as usize].clone(), wallets[to as usize].clone());
                wallex.execute(Command::transfer(from, to, "1")).await.expect("a transfer");
                done += 1;
            }
            done
        });
    }
    let done: u64 = tasks.join_all().await.into_iter().sum();
    done as f64 / started.elapsed().as_secs_f64()
}

/// The pairs of a load test's plan, of which only its transfers are used.
fn draw(seed: u64, pairs: Pairs) -> Vec<(u32, u32)> {
    let plan = Plan::new(seed, WALLETS, Distribution::Uniform);
    (0..).filter_map(|number| pair(&plan, number, pairs)).take(DRAWN_PAIRS).collect()
}

fn pair(plan: &Plan, number: u64, pairs: Pairs) -> Option<(u32, u32)> {
    let operation = plan.operation(number);
    let receiver = operation.receiver?;
    match pairs {
        Pairs::Spread => Some((operation.wallet, receiver)),
        Pairs::OneHot if receiver == 0 || operation.wallet == 0 => Some((operation.wallet, receiver)),
        Pairs::OneHot if number.is_multiple_of(2) => Some((0, receiver)),
        Pairs::OneHot => Some((receiver, 0)),
    }
}
