//! The write path: many callers, several writers, a log that fails, keys that come twice.

mod ahead;
mod faulty;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use faulty::{Fault, FaultyLog};
use support::{TestDatabase, TestServer};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wallex::log::{EventLog, MemoryLog, Position, read_wallet};
use wallex::money::{Amount, Currency};
use wallex::sequencer::{Answer, CommandError, CommandService, Request, Sequencer, SequencerOptions};
use wallex::wallet::{Command, OwnerId, WalletId};

fn id(name: &str) -> WalletId {
    WalletId::new(name).expect("a wallet id of the test")
}

fn opening(name: &str, minor: i64) -> Command {
    let balance = Amount::from_minor(minor).expect("a balance");
    Command::create(id(name), OwnerId::new("owner").expect("an owner"), Currency::USD, balance)
}

fn with_key(command: Command, key: &str) -> Request {
    Request { idempotency_key: Some(key.into()), ..Request::new(command) }
}

fn start<L: EventLog>(log: &L, options: SequencerOptions) -> (CommandService, CancellationToken) {
    let (service, sequencer) = Sequencer::new(log.clone(), options, |_| {});
    let stop = CancellationToken::new();
    tokio::spawn(sequencer.run(stop.clone()));
    (service, stop)
}

async fn ok(service: &CommandService, command: Command) -> Answer {
    service.execute(Request::new(command)).await.expect("a command that goes well")
}

/// Every wallet's history folds, money is conserved, and versions count events.
async fn assert_sound<L: EventLog>(log: &L, expected_total_minor: i64) {
    let mut wallets = HashSet::new();
    for event in log.read(0, 1_000_000).await.expect("events") {
        wallets.insert(event.stream);
    }
    let mut total = 0;
    for wallet in wallets {
        let view = read_wallet(log, &wallet, 10).await.expect("a sound history").expect("a wallet");
        total += view.wallet.balance.minor();
    }
    assert_eq!(total, expected_total_minor);
}

#[tokio::test]
async fn many_callers_get_true_answers_and_share_commits() {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("hot", 0)).await;
    let mut callers = JoinSet::new();
    for _ in 0..256 {
        let service = service.clone();
        callers.spawn(async move { ok(&service, Command::credit(id("hot"), "0.01")).await.wallet });
    }
    let mut versions: Vec<i64> = callers
        .join_all()
        .await
        .into_iter()
        .map(|wallet| {
            assert_eq!(wallet.balance.minor(), wallet.version, "each answer is the state that its own command made");
            wallet.version
        })
        .collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=256).collect::<Vec<_>>());
    assert!(log.appends.load(Ordering::SeqCst) < 128, "commits are shared");
    assert_sound(&log, 256).await;
}

#[tokio::test]
async fn writers_in_several_processes_lose_nothing_and_all_get_on() {
    let database = TestDatabase::new().await;
    let services: Vec<_> = (0..3).map(|_| start(&database.log(), SequencerOptions::default()).0).collect();
    for name in ["a", "b", "c", "d"] {
        ok(&services[0], opening(name, 100_000)).await;
    }
    let mut callers = JoinSet::new();
    for (number, service) in services.iter().cycle().take(24).cloned().enumerate() {
        callers.spawn(async move {
            let names = ["a", "b", "c", "d"];
            for turn in 0..25 {
                let (from, to) = (names[(number + turn) % 4], names[(number + turn + 1 + turn % 3) % 4]);
                ok(&service, Command::transfer(id(from), id(to), "0.01")).await;
            }
        });
    }
    callers.join_all().await;
    assert_eq!(database.number("SELECT position FROM log_head").await, 4 * 2 + 24 * 25 * 2);
    assert_sound(&database.log(), 400_000).await;
}

/// The streams' revisions alone would let these two pass each other: only the swap of the head tells where events will lie.
#[tokio::test]
async fn writers_of_different_wallets_know_where_their_events_lie() {
    let database = TestDatabase::new().await;
    let log = database.log();
    let (one, _) = start(&database.log(), SequencerOptions::default());
    let (other, _) = start(&database.log(), SequencerOptions::default());
    ok(&one, opening("a", 0)).await;
    ok(&other, opening("b", 0)).await;
    for round in 0..10 {
        for (service, name) in [(&one, "a"), (&other, "b")] {
            let request = with_key(Command::credit(id(name), "1"), &format!("k{round}"));
            let first = service.execute(request.clone()).await.expect("an answer");
            let recorded = log.read(first.position - 1, 1).await.expect("events").pop().expect("an event");
            assert_eq!((recorded.stream, recorded.revision), (id(name), first.wallet.version));
            let again = service.execute(request).await.expect("the same answer");
            assert_eq!(Answer { replayed: false, ..again }, first);
        }
    }
}

#[tokio::test]
async fn a_rejection_is_never_older_than_what_another_process_has_answered() {
    let database = TestDatabase::new().await;
    let (one, _) = start(&database.log(), SequencerOptions::default());
    let (other, _) = start(&database.log(), SequencerOptions::default());
    ok(&one, opening("a", 0)).await;
    for round in 1..=20 {
        // `one` still believes that there is nothing.
        ok(&other, Command::credit(id("a"), "1")).await;
        let paid = ok(&one, Command::debit(id("a"), "1")).await;
        assert_eq!(paid.wallet.version, round * 2);
        let refused = other.execute(Request::new(Command::debit(id("a"), "0.01"))).await;
        assert!(matches!(refused, Err(CommandError::Rejected(rejection)) if rejection.code() == "INSUFFICIENT_FUNDS"));
    }
}

#[tokio::test]
async fn an_append_that_was_cut_before_it_was_written_happens_once() {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("a", 1_000)).await;
    log.meets(&[Fault::AwayBeforeWriting; 3]);
    assert_eq!(ok(&service, Command::debit(id("a"), "1")).await.wallet.balance.minor(), 900);
    assert_eq!(log.head().await.expect("a head"), 3);
}

#[tokio::test]
async fn an_append_that_was_cut_after_it_was_written_is_recognised_and_not_doubled() {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("a", 1_000)).await;
    log.meets(&[Fault::AwayAfterWriting]);
    assert_eq!(ok(&service, Command::debit(id("a"), "1")).await.wallet.balance.minor(), 900);
    log.meets(&[Fault::AwayBeforeWriting, Fault::AwayAfterWriting]);
    let answer = service.execute(with_key(Command::debit(id("a"), "1"), "k")).await.expect("an answer");
    assert_eq!((answer.wallet.balance.minor(), answer.replayed), (800, false));
    assert_eq!(log.head().await.expect("a head"), 4);
    assert_sound(&log, 800).await;
}

#[tokio::test]
async fn an_outcome_that_cannot_be_read_at_once_is_found_out_later_and_not_doubled() {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("a", 1_000)).await;
    log.meets(&[Fault::AwayAfterWriting]);
    log.reads_away.store(2, Ordering::SeqCst);
    // No key: nothing but the log's own events can tell that it has happened.
    assert_eq!(ok(&service, Command::debit(id("a"), "1")).await.wallet.balance.minor(), 900);
    assert_eq!(log.head().await.expect("a head"), 3);
}

#[tokio::test]
async fn a_refusal_after_an_unknown_outcome_does_not_claim_that_nothing_was_done() {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("a", 1_000)).await;
    log.meets(&[Fault::AwayAfterWriting, Fault::Refused]);
    let answer = service.execute(Request::new(Command::debit(id("a"), "1"))).await;
    assert!(matches!(answer, Err(CommandError::Unavailable { maybe_done: true, .. })), "{answer:?}");
    assert_eq!(ok(&service, Command::debit(id("a"), "1")).await.wallet.balance.minor(), 800);
}

#[tokio::test]
async fn a_call_to_the_log_that_hangs_does_not_hold_up_everything() {
    let memory = MemoryLog::new();
    let (other, _) = start(&memory, SequencerOptions::default());
    ok(&other, opening("a", 0)).await;
    for call in ["append", "lock_head", "head", "read", "load", "find_keys"] {
        let log = FaultyLog::new(memory.clone());
        let options = SequencerOptions { append_timeout: Duration::from_millis(50), ..SequencerOptions::default() };
        let (service, _) = start(&log, options);
        *log.hangs.lock().expect("no panic") = Some(call);
        let refused = service.execute(with_key(Command::debit(id("a"), "1"), call)).await;
        assert!(matches!(refused, Err(CommandError::Rejected(_))), "{call}: {refused:?}");
        // Somebody else writes, so that the swap is lost, the head locked and the tail read.
        ok(&other, Command::credit(id("a"), "1")).await;
        assert!(ok(&service, Command::debit(id("a"), "1")).await.wallet.balance.is_zero(), "{call}");
        assert_eq!(log.hangs.lock().expect("no panic").take(), None, "{call} was not asked for");
    }
}

#[tokio::test]
async fn a_writer_that_rejects_does_not_keep_the_heads_lock() {
    let database = TestDatabase::new().await;
    let (one, _) = start(&database.log(), SequencerOptions::default());
    let (other, _) = start(&database.log(), SequencerOptions::default());
    ok(&one, opening("a", 0)).await;
    ok(&other, Command::credit(id("a"), "1")).await;
    // `one` has lost the race, and locks the head from here on for some batches.
    ok(&one, Command::debit(id("a"), "1")).await;
    let locks = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    for _ in 0..20 {
        let refused = one.execute(Request::new(Command::debit(id("a"), "1"))).await;
        assert!(matches!(refused, Err(CommandError::Rejected(_))));
        assert_eq!(database.number(locks).await, 0, "nobody is kept waiting once the callers have their answers");
    }
}

#[tokio::test]
async fn a_command_that_the_log_refuses_for_good_does_not_take_others_with_it() {
    let database = TestDatabase::new().await;
    let (service, _) = start(&database.log(), SequencerOptions::default());
    ok(&service, opening("a", 0)).await;
    let mut callers = JoinSet::new();
    for number in 0..20 {
        let service = service.clone();
        // PostgreSQL keeps no text with a NUL in it.
        let key = if number == 7 { "\0".to_owned() } else { format!("k{number}") };
        callers.spawn(async move { service.execute(with_key(Command::credit(id("a"), "1"), &key)).await });
    }
    let answers = callers.join_all().await;
    let refused = |answer: &&Result<Answer, CommandError>| matches!(answer, Err(CommandError::Corrupt(_)));
    assert_eq!(answers.iter().filter(refused).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 19);
    assert_sound(&database.log(), 1_900).await;
}

#[tokio::test]
async fn lost_events_are_noticed_though_they_cancel_each_other_out() {
    let database = TestDatabase::new().await;
    let (service, _) = start(&database.log(), SequencerOptions::default());
    ok(&service, opening("good", 100)).await;
    ok(&service, opening("bad", 100)).await;
    ok(&service, Command::credit(id("bad"), "1")).await;
    ok(&service, Command::debit(id("bad"), "1")).await;
    ok(&service, Command::credit(id("bad"), "2")).await;
    assert_eq!(database.run("DELETE FROM events WHERE position IN (5, 6)").await, 2);
    let (service, _) = start(&database.log(), SequencerOptions::default());
    let (bad, good) = tokio::join!(
        service.execute(Request::new(Command::credit(id("bad"), "1"))),
        service.execute(Request::new(Command::credit(id("good"), "1"))),
    );
    assert!(matches!(&bad, Err(CommandError::Corrupt(reason)) if reason.contains("revision")), "{bad:?}");
    assert_eq!(good.expect("an answer").wallet.balance.minor(), 200);
    assert!(read_wallet(&database.log(), &id("bad"), 10).await.is_err());
}

#[tokio::test]
async fn a_wallet_can_be_read_while_it_gets_more_events_than_its_trail_is_long() {
    let log = FaultyLog::new(MemoryLog::new());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("hot", 0)).await;
    let earlier = log.load(&[id("hot")], wallex::log::SNAPSHOT_FORMAT).await.expect("a stream");
    for _ in 0..30 {
        ok(&service, Command::credit(id("hot"), "0.01")).await;
    }
    *log.next_load.lock().expect("no panic") = Some(earlier);
    let view = read_wallet(&log, &id("hot"), 10).await.expect("a view").expect("a wallet");
    assert_eq!((view.wallet.version, view.wallet.balance.minor(), view.trail.len()), (30, 30, 10));
}

#[tokio::test]
async fn somebody_elses_append_in_the_same_place_is_not_taken_for_ours() {
    let memory = MemoryLog::new();
    let log = FaultyLog::new(memory.clone());
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("a", 1_000)).await;
    // Another process writes where ours was to be, while ours is cut before it is written.
    let (other, _) = start(&memory, SequencerOptions::default());
    ok(&other, Command::credit(id("a"), "5")).await;
    log.meets(&[Fault::AwayBeforeWriting]);
    let answer = ok(&service, Command::debit(id("a"), "1")).await;
    assert_eq!((answer.wallet.balance.minor(), answer.wallet.version), (1_400, 3));
}

#[tokio::test]
async fn the_same_key_gives_the_same_answer_and_one_effect() {
    let log = MemoryLog::new();
    let (service, stop) = start(&log, SequencerOptions::default());
    let created = service.execute(with_key(opening("a", 1_000), "k")).await.expect("created");
    ok(&service, opening("b", 0)).await;
    let transfer = Command::transfer(id("a"), id("b"), "10");
    let first = service.execute(with_key(transfer.clone(), "k")).await.expect("a transfer");
    // Another sequencer, as after a restart; by now the transfer could not be paid any more.
    stop.cancel();
    let (service, _) = start(&log, SequencerOptions::default());
    let again = service.execute(with_key(transfer, "k")).await.expect("the same answer");
    assert!(again.replayed && !first.replayed);
    assert_eq!(Answer { replayed: false, ..again }, first);
    let created_again = service.execute(with_key(opening("a", 1_000), "k")).await.expect("the same answer");
    assert_eq!(Answer { replayed: false, ..created_again }, created);
    assert_eq!(log.head().await.expect("a head"), 5);
}

#[tokio::test]
async fn a_key_used_for_something_else_is_refused_and_a_failed_attempt_does_not_burn_it() {
    let log = MemoryLog::new();
    let (service, _) = start(&log, SequencerOptions::default());
    ok(&service, opening("a", 0)).await;
    ok(&service, opening("b", 0)).await;
    let refused = service.execute(with_key(Command::debit(id("a"), "1"), "k")).await;
    assert!(matches!(refused, Err(CommandError::Rejected(_))));
    ok(&service, Command::credit(id("a"), "5")).await;
    let paid = service.execute(with_key(Command::debit(id("a"), "1"), "k")).await.expect("now it goes");
    assert!(!paid.replayed);
    let reused = service.execute(with_key(Command::debit(id("a"), "2"), "k")).await;
    assert_eq!(reused, Err(CommandError::KeyReused));
    // A key counts per wallet and kind of command.
    assert!(!service.execute(with_key(Command::credit(id("a"), "2"), "k")).await.expect("another kind").replayed);
    assert!(!service.execute(with_key(Command::credit(id("b"), "2"), "k")).await.expect("another wallet").replayed);
}

#[tokio::test]
async fn the_same_key_from_everywhere_at_once_has_one_effect() {
    let database = TestDatabase::new().await;
    let services: Vec<_> = (0..2).map(|_| start(&database.log(), SequencerOptions::default()).0).collect();
    ok(&services[0], opening("a", 0)).await;
    for round in 1..=10 {
        let mut callers = JoinSet::new();
        for service in services.iter().cycle().take(16) {
            let service = service.clone();
            callers.spawn(async move {
                service.execute(with_key(Command::credit(id("a"), "1"), &format!("k{round}"))).await.expect("an answer")
            });
        }
        let answers = callers.join_all().await;
        assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1);
        assert!(answers.iter().all(|answer| answer.wallet.balance.minor() == round * 100));
    }
}

#[tokio::test]
async fn a_full_queue_turns_callers_away_with_nothing_done() {
    let log = FaultyLog::new(MemoryLog::new());
    let options = SequencerOptions { queue_max: 4, batch_max: 1, ..SequencerOptions::default() };
    let (service, _) = start(&log, options);
    ok(&service, opening("a", 0)).await;
    let closed = log.gate.clone().acquire_owned().await.expect("an open gate");
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let service = service.clone();
        callers.spawn(async move { service.execute(Request::new(Command::credit(id("a"), "1"))).await });
    }
    // Whoever is turned away is told at once, while the log still does not answer.
    let turned_away = async {
        let mut busy = 0;
        while busy < 15 {
            let answer = callers.join_next().await.expect("a caller").expect("no panic");
            assert!(matches!(answer, Err(CommandError::Busy { .. })), "{answer:?}");
            busy += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), turned_away).await.expect("at once");
    drop(closed);
    let done = callers.join_all().await.into_iter().filter(Result::is_ok).count() as i64;
    // As many as the queue holds, and the one that the sequencer may have taken out of it already.
    assert!((4..=5).contains(&done), "{done}");
    assert_eq!(log.head().await.expect("a head"), done + 1);
}

#[tokio::test]
async fn a_caller_whose_time_is_up_is_told_whether_it_may_have_happened() {
    let log = FaultyLog::new(MemoryLog::new());
    let options =
        SequencerOptions { batch_max: 1, command_deadline: Duration::from_millis(200), ..SequencerOptions::default() };
    let (service, _) = start(&log, options);
    ok(&service, opening("a", 0)).await;
    let closed = log.gate.clone().acquire_owned().await.expect("an open gate");
    let credit = || service.execute(Request::new(Command::credit(id("a"), "1")));
    // The first is in the sequencer's hands, the second still in the queue.
    let (first, second) = tokio::join!(biased; credit(), credit());
    assert!(matches!(first, Err(CommandError::Unavailable { maybe_done: true, .. })), "{first:?}");
    assert!(matches!(second, Err(CommandError::Unavailable { maybe_done: false, .. })), "{second:?}");
    drop(closed);
    assert_eq!(ok(&service, Command::credit(id("a"), "1")).await.wallet.balance.minor(), 200);
}

#[tokio::test]
async fn the_store_away_for_a_while_is_a_503_in_time_and_heals_by_itself() {
    let server = TestServer::start().await;
    let database = server.database().await;
    let options = SequencerOptions {
        command_deadline: Duration::from_millis(300),
        append_timeout: Duration::from_secs(1),
        ..SequencerOptions::default()
    };
    let (service, _) = start(&database.log(), options);
    ok(&service, opening("a", 0)).await;
    let postmaster = nix::unistd::Pid::from_raw(server.pid().expect("it runs"));
    let everything = |signal| {
        let children = std::process::Command::new("pkill")
            .args([&format!("-{signal}"), "-P", &postmaster.to_string()])
            .status()
            .expect("pkill runs");
        assert!(children.success());
    };
    everything("STOP");
    let away = service.execute(with_key(Command::credit(id("a"), "1"), "k")).await;
    assert!(matches!(away, Err(CommandError::Unavailable { .. })), "{away:?}");
    everything("CONT");
    let answer = loop {
        match service.execute(with_key(Command::credit(id("a"), "1"), "k")).await {
            Ok(answer) => break answer,
            Err(CommandError::Unavailable { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(
        (answer.wallet.balance.minor(), answer.wallet.version),
        (100, 1),
        "once, however often it was asked for"
    );
}

#[tokio::test]
async fn one_wallet_with_a_damaged_history_does_not_keep_the_others_from_working() {
    let database = TestDatabase::new().await;
    let (service, stop) = start(&database.log(), SequencerOptions::default());
    ok(&service, opening("good", 100)).await;
    ok(&service, opening("bad", 100)).await;
    stop.cancel();
    database.run("UPDATE events SET payload = 'no JSON' WHERE position = 4").await;
    let (service, _) = start(&database.log(), SequencerOptions::default());
    let (bad, good) = tokio::join!(
        service.execute(Request::new(Command::credit(id("bad"), "1"))),
        service.execute(Request::new(Command::credit(id("good"), "1"))),
    );
    assert!(matches!(bad, Err(CommandError::Corrupt(_))), "{bad:?}");
    assert_eq!(good.expect("an answer").wallet.balance.minor(), 200);
}

#[tokio::test]
async fn more_wallets_than_memory_holds_are_loaded_in_bulk() {
    let log = FaultyLog::new(MemoryLog::new());
    let options = SequencerOptions { cached_wallets_max: 10, ..SequencerOptions::default() };
    let (service, _) = start(&log, options);
    let run = async |make: fn(&str) -> Command| {
        let mut callers = JoinSet::new();
        for number in 0..100 {
            let service = service.clone();
            callers.spawn(async move { ok(&service, make(&format!("w{number}"))).await });
        }
        callers.join_all().await
    };
    run(|name| opening(name, 100)).await;
    let before = log.loads.load(Ordering::SeqCst);
    let answers = run(|name| Command::debit(id(name), "1")).await;
    assert!(answers.iter().all(|answer| answer.wallet.balance.is_zero()));
    assert!(log.loads.load(Ordering::SeqCst) - before < 50, "many are loaded at once");
}

#[tokio::test]
async fn snapshots_are_taken_and_deleting_them_changes_nothing() {
    let database = TestDatabase::new().await;
    let (service, stop) = start(&database.log(), SequencerOptions::default());
    ok(&service, opening("a", 0)).await;
    for _ in 0..230 {
        ok(&service, Command::credit(id("a"), "0.01")).await;
    }
    stop.cancel();
    let snapshots = "SELECT coalesce(max(revision), 0) FROM snapshots";
    while database.number(snapshots).await < 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let view = async || read_wallet(&database.log(), &id("a"), 10).await.expect("a view").expect("a wallet");
    let with = view().await;
    assert_eq!(database.run("DELETE FROM snapshots").await, 1);
    assert_eq!(view().await, with);
    assert_eq!((with.wallet.version, with.trail.len()), (230, 10));
}

#[tokio::test]
async fn a_stop_answers_every_command_that_was_taken() {
    let log = MemoryLog::new();
    let (service, sequencer) = Sequencer::new(log.clone(), SequencerOptions::default(), |_| {});
    let stop = CancellationToken::new();
    let running = tokio::spawn(sequencer.run(stop.clone()));
    ok(&service, opening("a", 0)).await;
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let service = service.clone();
        callers.spawn(async move { service.execute(Request::new(Command::credit(id("a"), "0.01"))).await });
    }
    tokio::task::yield_now().await;
    stop.cancel();
    running.await.expect("it ends");
    let answers = callers.join_all().await;
    let done = answers.iter().filter(|answer| answer.is_ok()).count() as i64;
    assert!(
        answers.iter().all(|answer| matches!(answer, Ok(_) | Err(CommandError::Unavailable { maybe_done: false, .. })))
    );
    assert_eq!(log.head().await.expect("a head"), done + 1);
}

/// Two writers, a log that is cut at random, callers that try again with their keys. A seed names a run.
#[tokio::test]
async fn whatever_fails_every_answered_command_is_in_the_log_exactly_once() {
    let mut runs = JoinSet::new();
    (0..40).for_each(|seed| drop(runs.spawn(random_faults(seed, 30))));
    // So many that batches are decided ahead.
    (40..60).for_each(|seed| drop(runs.spawn(random_faults(seed, 300))));
    runs.join_all().await;
}

async fn random_faults(seed: u64, commands: usize) {
    let memory = MemoryLog::new();
    let logs: Vec<_> = (0..2).map(|_| FaultyLog::new(memory.clone())).collect();
    let options = SequencerOptions { command_deadline: Duration::from_secs(60), ..SequencerOptions::default() };
    let services: Vec<_> = logs.iter().map(|log| start(log, options.clone()).0).collect();
    ok(&services[0], opening("a", 10_000)).await;
    ok(&services[0], opening("b", 10_000)).await;
    let mut callers = JoinSet::new();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for number in 0..commands {
        let service = services[draw() as usize % 2].clone();
        let fault = match draw() % (commands as u64 / 5) {
            0 => Some(Fault::AwayBeforeWriting),
            1 => Some(Fault::AwayAfterWriting),
            _ => None,
        };
        logs[draw() as usize % 2].meets(fault.as_slice());
        let command = match draw() % 3 {
            0 => Command::credit(id("a"), "1"),
            1 => Command::debit(id("b"), "1"),
            _ => Command::transfer(id("a"), id("b"), "1"),
        };
        callers.spawn(async move {
            let request = with_key(command.clone(), &format!("k{number}"));
            let first = service.execute(request.clone()).await.expect("an answer");
            let again = service.execute(request).await.expect("an answer");
            assert_eq!((&again.wallet, again.replayed), (&first.wallet, true), "seed {seed}");
            (command, first)
        });
    }
    let answers = callers.join_all().await;
    let mut positions: HashMap<Position, &Command> = HashMap::new();
    let mut expected = 20_000;
    for (command, answer) in &answers {
        assert!(positions.insert(answer.position, command).is_none(), "seed {seed}: two answers for one event");
        expected += match command {
            Command::Credit { .. } => 100,
            Command::Debit { .. } => -100,
            _ => 0,
        };
    }
    let transfers = answers.iter().filter(|(command, _)| command.counterparty().is_some()).count();
    assert_eq!(memory.head().await.expect("a head"), (4 + answers.len() + transfers) as i64, "seed {seed}");
    assert_sound(&memory, expected).await;
}
