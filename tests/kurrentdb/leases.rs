//! Leases in a real Redis: servers that share a wallet queue there while it is well, and go on without it whatever becomes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use wallex::lease::{EXPIRY, KEY_PREFIX, Leases, RedisConfig, WAIT_MAX};
use wallex::wallet::Command;

use crate::redis_server::RedisServer;
use crate::world::{PATIENCE, World, Writer, id, opening};

const CALLERS: usize = 8;
/// Longer than any test waits for a lease that must come.
const FOR_EVER: Duration = Duration::from_secs(120);

/// Leases as one process has them, for as long as the guard is held.
fn leases(address: &str) -> (Leases, DropGuard) {
    let leases = Leases::new(RedisConfig::new(address).expect("an address"));
    let stop = CancellationToken::new();
    tokio::spawn(leases.clone().run(stop.clone()));
    (leases, stop.drop_guard())
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// Two servers that share a hot wallet, and callers of both.
struct Hot {
    world: World,
    leases: Vec<Leases>,
    /// How many commands of each server.
    answered: Arc<[AtomicU64; 2]>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
    _running: Vec<DropGuard>,
}

impl Hot {
    /// `address` is of the Redis in which they queue, if they do.
    async fn start(address: Option<&str>) -> Self {
        let world = World::new().await;
        let (leases, running): (Vec<_>, Vec<_>) = (0..2).filter_map(|_| address.map(leases)).unzip();
        let writers: Vec<Arc<Writer>> =
            (0..2).map(|server| Arc::new(world.writer_with(leases.get(server).cloned()))).collect();
        writers[0].ok(opening("hot", 0)).await;
        let (answered, stop) = (Arc::<[AtomicU64; 2]>::default(), Arc::new(AtomicBool::new(false)));
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (writer, answered, stop) = (Arc::clone(&writers[caller % 2]), Arc::clone(&answered), Arc::clone(&stop));
            callers.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    writer.ok(Command::credit(id("hot"), "0.01")).await;
                    answered[caller % 2].fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Hot { world, leases, answered, stop, callers, _running: running }
    }

    /// How many commands were answered by each server.
    fn answered(&self) -> [u64; 2] {
        [0, 1].map(|server| self.answered[server].load(Ordering::SeqCst))
    }

    /// Waits until so many more commands have been answered: the signal that everything goes on.
    async fn more(&self, commands: u64) {
        let goal = self.answered().iter().sum::<u64>() + commands;
        until("answers", || self.answered().iter().sum::<u64>() >= goal).await;
    }

    /// The same of each server.
    async fn more_of_each(&self, commands: u64) {
        let goals = self.answered().map(|answered| answered + commands);
        until("answers of both", || self.answered().iter().zip(goals).all(|(answered, goal)| *answered >= goal)).await;
    }

    async fn until_connected(&self, connected: bool) {
        let what = if connected { "a Redis that answers" } else { "a Redis that is away" };
        until(what, || self.leases.iter().all(|leases| leases.is_connected() == connected)).await;
    }

    /// Each answered command is there once, and no other.
    async fn prove(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(caller) = self.callers.join_next().await {
            caller.expect("a caller whom nothing went wrong for");
        }
        let answered = self.answered().iter().sum::<u64>() as i64;
        assert_eq!(self.world.balance("hot").await, answered);
        assert_eq!(self.world.events("hot").await.len() as i64, answered + 1);
    }
}

/// Whoever loses must get its turn as well: its callers have a deadline.
#[tokio::test]
async fn of_servers_that_do_not_queue_none_starves_on_a_hot_wallet() {
    let hot = Hot::start(None).await;
    hot.more_of_each(10).await;
    let before = hot.answered();
    hot.more_of_each(500).await;
    let done = [0, 1].map(|server| hot.answered()[server] - before[server]);
    println!("answered by each: {done:?}");
    assert!(done.iter().max() < done.iter().min().map(|least| least * 10).as_ref(), "{done:?}");
    hot.prove().await;
}

#[tokio::test]
async fn servers_that_queue_for_a_hot_wallet_hardly_collide() {
    let redis = RedisServer::start();
    let hot = Hot::start(Some(&redis.address())).await;
    hot.until_connected(true).await;
    // Only servers that are both at it can collide.
    hot.more_of_each(10).await;
    let before = (hot.world.store.conflicts(), hot.answered().iter().sum::<u64>());
    hot.more_of_each(300).await;
    let after = (hot.world.store.conflicts(), hot.answered().iter().sum::<u64>());
    let (refused, answered) = (after.0 - before.0, after.1 - before.1);
    println!("{refused} appends refused, {answered} commands answered");
    // It is one append in ten without a lease, and one in thirty where only those queue that lose.
    assert!(refused * 40 < answered, "{refused} appends refused, {answered} commands answered");
    hot.prove().await;
}

#[tokio::test]
async fn a_halted_redis_holds_nobody_up() {
    let redis = RedisServer::start();
    let hot = Hot::start(Some(&redis.address())).await;
    hot.until_connected(true).await;
    hot.more(50).await;
    redis.halt();
    hot.more(100).await;
    hot.until_connected(false).await;
    hot.more(100).await;
    redis.go_on();
    hot.until_connected(true).await;
    hot.more(50).await;
    hot.prove().await;
}

#[tokio::test]
async fn a_redis_that_forgets_everything_again_and_again_costs_nothing_but_time() {
    let redis = RedisServer::start();
    let hot = Hot::start(Some(&redis.address())).await;
    hot.until_connected(true).await;
    for _ in 0..50 {
        hot.more(5).await;
        redis.ask("FLUSHALL");
    }
    hot.prove().await;
}

#[tokio::test]
async fn a_killed_redis_is_done_without_and_used_again_once_it_is_back() {
    let mut redis = RedisServer::start();
    let hot = Hot::start(Some(&redis.address())).await;
    for _ in 0..2 {
        hot.until_connected(true).await;
        hot.more(50).await;
        redis.kill();
        hot.until_connected(false).await;
        hot.more(100).await;
        redis.start_again();
    }
    hot.until_connected(true).await;
    hot.prove().await;
}

#[tokio::test]
async fn a_redis_that_is_not_there_at_the_start_is_done_without_until_it_is() {
    let mut redis = RedisServer::start();
    redis.kill();
    let hot = Hot::start(Some(&redis.address())).await;
    hot.more(100).await;
    hot.until_connected(false).await;
    redis.start_again();
    hot.until_connected(true).await;
    hot.more(50).await;
    hot.prove().await;
}

#[tokio::test]
async fn a_redis_that_refuses_the_password_or_does_not_give_leases_is_done_without() {
    let redis = RedisServer::start_with_password("secret-word");
    for address in [redis.address_with("another-word"), redis.address_with("")] {
        let hot = Hot::start(Some(&address)).await;
        hot.more(100).await;
        hot.until_connected(false).await;
        hot.prove().await;
    }
    // It lets everybody in and refuses what a lease needs, as a replica does.
    let hot = Hot::start(Some(&redis.address())).await;
    hot.until_connected(true).await;
    redis.ask("REPLICAOF 127.0.0.1 1");
    hot.more(50).await;
    hot.until_connected(false).await;
    hot.more(50).await;
    redis.ask("REPLICAOF NO ONE");
    hot.until_connected(true).await;
    hot.prove().await;
}

#[tokio::test]
async fn leases_that_run_out_while_they_are_held_cost_nothing_but_time() {
    let redis = RedisServer::start();
    let hot = Hot::start(Some(&redis.address())).await;
    hot.until_connected(true).await;
    hot.more(50).await;
    hot.world.store.answer_after(EXPIRY + EXPIRY / 2);
    hot.more(10).await;
    hot.world.store.answer_after(Duration::ZERO);
    hot.more(50).await;
    hot.prove().await;
}

#[tokio::test]
async fn a_lease_that_never_comes_is_waited_for_no_longer_than_its_bound() {
    let redis = RedisServer::start();
    let (leases, _running) = leases(&redis.address());
    until("a Redis that answers", || leases.is_connected()).await;
    redis.ask(&format!("SET {KEY_PREFIX}hot somebody"));
    let begun = Instant::now();
    assert!(leases.take(&id("hot"), WAIT_MAX, false).await.is_none());
    let waited = begun.elapsed();
    assert!(waited >= WAIT_MAX && leases.is_connected(), "{waited:?}");
    // Others are not concerned.
    assert!(leases.take(&id("cold"), WAIT_MAX, false).await.is_some());

    // Commands go on all the same.
    let hot = Hot::start(Some(&redis.address())).await;
    hot.until_connected(true).await;
    hot.more(100).await;
    assert!(redis.ask(&format!("GET {KEY_PREFIX}hot")).contains("somebody"));
    hot.prove().await;
}

#[tokio::test]
async fn a_lease_is_one_server_s_until_it_is_given_back_or_runs_out() {
    let redis = RedisServer::start();
    let ((one, _one_runs), (other, _other_runs)) = (leases(&redis.address()), leases(&redis.address()));
    until("a Redis that answers", || one.is_connected() && other.is_connected()).await;
    let held = one.take(&id("hot"), FOR_EVER, false).await.expect("a lease");
    assert!(other.take(&id("hot"), Duration::ZERO, false).await.is_none());
    let waiting = {
        let other = other.clone();
        tokio::spawn(async move { other.take(&id("hot"), FOR_EVER, false).await })
    };
    drop(held);
    let held = waiting.await.expect("no panic").expect("a lease that was given back");
    assert!(one.take(&id("hot"), Duration::ZERO, false).await.is_none());
    drop(held);

    // One of a server that is gone.
    redis.ask(&format!("SET {KEY_PREFIX}left somebody PX 200"));
    assert!(one.take(&id("left"), FOR_EVER, false).await.is_some());
}

#[tokio::test]
async fn what_has_become_another_s_lease_is_not_given_back() {
    let redis = RedisServer::start();
    let (leases, _running) = leases(&redis.address());
    until("a Redis that answers", || leases.is_connected()).await;
    let held = leases.take(&id("hot"), FOR_EVER, false).await.expect("a lease");
    redis.ask(&format!("SET {KEY_PREFIX}hot somebody"));
    drop(held);
    // Given back after it, on the same connection.
    let marker = leases.take(&id("marker"), FOR_EVER, false).await.expect("a lease");
    drop(marker);
    until("the marker given back", || redis.ask(&format!("EXISTS {KEY_PREFIX}marker")).contains(":0")).await;
    assert!(redis.ask(&format!("GET {KEY_PREFIX}hot")).contains("somebody"));
}
