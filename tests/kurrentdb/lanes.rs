//! The write path over a store of single streams: answers, conflicts, keys, unknown outcomes.

use std::sync::Arc;

use tokio::task::JoinSet;
use wallex::money::Amount;
use wallex::sequencer::{Answer, CommandError, Request};
use wallex::wallet::{Command, Rejection};

use crate::kurrentdb_server::AppendFault;
use crate::world::{World, Writer, id, opening, with_key};

#[tokio::test]
async fn commands_are_answered_with_the_state_that_they_made() {
    let world = World::new().await;
    let writer = world.writer();
    let alice = writer.ok(opening("alice", 10_000)).await;
    assert_eq!((alice.wallet.balance.minor(), alice.wallet.version), (10_000, 1));
    let bob = writer.ok(opening("bob", 0)).await;
    assert_eq!((bob.wallet.balance.minor(), bob.wallet.version), (0, 0));
    assert_eq!(writer.ok(Command::credit(id("alice"), "1.00")).await.wallet.balance.minor(), 10_100);
    assert_eq!(writer.ok(Command::debit(id("alice"), "0.50")).await.wallet.version, 3);
    let moved = writer.ok(Command::transfer(id("alice"), id("bob"), "100")).await;
    let (transfer, receiver) = moved.transfer.clone().expect("a transfer");
    assert_eq!((moved.wallet.balance.minor(), receiver.balance.minor()), (50, 10_000));
    assert_eq!((moved.wallet.version, receiver.version, moved.replayed), (4, 1, false));
    for (name, last) in [("alice", 4), ("bob", 1)] {
        let events = world.events(name).await;
        let leg = events.last().expect("events").decode().expect("an event of ours");
        assert_eq!((events.len() as i64 - 1, leg.transfer().expect("a leg").id), (last, transfer));
    }
    let refused = async |command| match writer.service.execute(Request::new(command)).await {
        Err(CommandError::Rejected(rejection)) => rejection,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(opening("alice", 0)).await, Rejection::WalletExists(_)));
    assert!(matches!(refused(Command::debit(id("alice"), "1")).await, Rejection::InsufficientFunds { .. }));
    assert!(matches!(refused(Command::credit(id("nobody"), "1")).await, Rejection::WalletNotFound(_)));
    assert!(matches!(refused(Command::transfer(id("bob"), id("nobody"), "1")).await, Rejection::WalletNotFound(_)));
    assert!(matches!(refused(Command::transfer(id("bob"), id("bob"), "1")).await, Rejection::TransferToSelf));
    // One that is made after it was asked for is found.
    writer.ok(opening("nobody", 0)).await;
    writer.ok(Command::transfer(id("bob"), id("nobody"), "1")).await;
    assert_eq!(world.store.log().len(), 2 + 1 + 1 + 1 + 2 + 1 + 2);
    writer.stop().await;
}

/// Two processes on the same few wallets, one of them hot: nobody sees a conflict, and nothing is lost or made.
#[tokio::test]
async fn several_processes_on_the_same_wallets_lose_and_make_nothing() {
    const WALLETS: u32 = 4;
    const CALLERS: u32 = 12;
    const EACH: u32 = 15;
    let world = World::new().await;
    let writers = [Arc::new(world.writer()), Arc::new(world.writer())];
    for wallet in 0..WALLETS {
        writers[0].ok(opening(&format!("w{wallet}"), 1_000)).await;
    }
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let writer = Arc::clone(&writers[caller as usize % 2]);
        callers.spawn(async move {
            for turn in 0..EACH {
                let to = 1 + (caller + turn) % (WALLETS - 1);
                let hot = || id("w0");
                writer.ok(Command::credit(hot(), "0.02")).await;
                writer.ok(Command::transfer(hot(), id(&format!("w{to}")), "0.01")).await;
                writer.ok(Command::transfer(id(&format!("w{to}")), hot(), "0.01")).await;
            }
        });
    }
    while let Some(done) = callers.join_next().await {
        done.expect("a caller whom nothing went wrong for");
    }
    let mut total = 0;
    for wallet in 0..WALLETS {
        total += world.balance(&format!("w{wallet}")).await;
    }
    assert_eq!(total, i64::from(WALLETS * 1_000 + CALLERS * EACH * 2));
    assert_eq!(world.store.log().len() as u32, WALLETS * 2 + CALLERS * EACH * 5);
}

#[tokio::test]
async fn a_refusal_is_as_true_as_a_success() {
    let world = World::new().await;
    let (one, other) = (world.writer(), world.writer());
    one.ok(opening("a", 100)).await;
    // What one knows is out of date now.
    other.ok(Command::credit(id("a"), "1")).await;
    assert_eq!(one.ok(Command::debit(id("a"), "2")).await.wallet.balance.minor(), 0);
    let refused = other.service.execute(Request::new(Command::debit(id("a"), "1"))).await;
    assert!(matches!(refused, Err(CommandError::Rejected(Rejection::InsufficientFunds { .. }))));
}

/// Whatever the copy knows: nothing yet, a part, everything.
#[tokio::test]
async fn a_key_means_one_effect_and_one_answer_in_every_process() {
    let world = World::new().await;
    let first = world.writer();
    first.ok(opening("a", 1_000)).await;
    first.ok(opening("b", 0)).await;
    let commands = [
        ("credit", Command::credit(id("a"), "1.00")),
        ("debit", Command::debit(id("a"), "2.00")),
        ("transfer", Command::transfer(id("a"), id("b"), "3.00")),
    ];
    let created = first.keyed(opening("c", 700), "create").await.expect("an answer");
    let mut answers: Vec<Answer> = Vec::new();
    for (key, command) in &commands {
        answers.push(first.keyed(command.clone(), key).await.expect("an answer"));
    }
    let events = world.store.log().len();
    for copied in [false, true] {
        if copied {
            world.copy().await;
            // What comes after the copy.
            first.ok(Command::credit(id("a"), "5.00")).await;
        }
        let events = world.store.log().len();
        for writer in [&first, &world.writer()] {
            let again = writer.keyed(opening("c", 700), "create").await.expect("an answer");
            assert_eq!((again.wallet, again.replayed), (created.wallet.clone(), true));
            for ((key, command), answer) in commands.iter().zip(&answers) {
                let again = writer.keyed(command.clone(), key).await.expect("the same answer");
                assert!(again.replayed);
                assert_eq!(
                    (&again.wallet, &again.transfer),
                    (&answer.wallet, &answer.transfer),
                    "{key}, copied: {copied}"
                );
            }
            let reused = writer.keyed(Command::credit(id("a"), "1.01"), "credit").await;
            assert_eq!(reused, Err(CommandError::KeyReused));
            // A key counts per wallet and kind.
            assert_eq!(world.store.log().len(), events);
        }
    }
    assert!(!first.keyed(Command::credit(id("b"), "1.00"), "credit").await.expect("an answer").replayed);
    assert!(!first.keyed(Command::debit(id("b"), "1.00"), "credit").await.expect("an answer").replayed);
    assert_eq!(world.store.log().len(), events + 1 + 2);
}

/// A server learns so many of a wallet's keys when it first meets the wallet, and asks for the others one by one.
#[tokio::test]
async fn of_more_keys_than_are_learnt_at_once_none_is_forgotten() {
    const KEYS: usize = 1_100;
    let world = World::new().await;
    let first = world.writer();
    first.ok(opening("a", 0)).await;
    let credit = |number: usize| with_key(Command::credit(id("a"), "0.01"), &format!("k{number}"));
    let all_of_them = async |writer: &Writer| {
        let mut callers: JoinSet<_> = (0..KEYS)
            .map(|number| {
                let (service, request) = (writer.service.clone(), credit(number));
                async move { service.execute(request).await.expect("an answer").replayed }
            })
            .collect();
        let mut replayed = 0;
        while let Some(answer) = callers.join_next().await {
            replayed += usize::from(answer.expect("no panic"));
        }
        replayed
    };
    assert_eq!(all_of_them(&first).await, 0);
    world.copy().await;
    assert_eq!(all_of_them(&world.writer()).await, KEYS);
    assert_eq!(world.balance("a").await, KEYS as i64);
}

#[tokio::test]
async fn one_key_from_many_callers_of_two_processes_at_once_is_one_effect() {
    let world = World::new().await;
    let writers = [world.writer(), world.writer()];
    writers[0].ok(opening("a", 0)).await;
    writers[0].ok(opening("b", 0)).await;
    let mut callers = JoinSet::new();
    for caller in 0..40 {
        let service = writers[caller % 2].service.clone();
        let command = if caller % 4 < 2 { Command::credit(id("a"), "1.00") } else { Command::credit(id("b"), "1.00") };
        callers.spawn(async move { service.execute(with_key(command, "k")).await.expect("an answer") });
    }
    let mut new = 0;
    while let Some(answer) = callers.join_next().await {
        let answer = answer.expect("no panic");
        assert_eq!(answer.wallet.balance.minor(), 100);
        new += u32::from(!answer.replayed);
    }
    assert_eq!((new, world.balance("a").await, world.balance("b").await), (2, 100, 100));
}

#[tokio::test]
async fn an_append_of_unknown_outcome_happens_once() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", 0)).await;
    for (turn, fault) in [AppendFault::CutBefore, AppendFault::CutAfter, AppendFault::CutAfter].into_iter().enumerate()
    {
        world.store.fail_next_append(fault);
        let answer = writer.ok(Command::credit(id("a"), "1.00")).await;
        assert_eq!(answer.wallet.balance.minor(), 100 * (turn as i64 + 1));
    }
    assert_eq!(world.balance("a").await, 300);
    assert_eq!(world.store.log().len(), 4);
}

#[tokio::test]
async fn a_store_that_is_away_for_a_while_is_waited_for() {
    let mut world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", 0)).await;
    world.store.kill();
    let service = writer.service.clone();
    let waiting = tokio::spawn(async move { service.execute(Request::new(Command::credit(id("a"), "1.00"))).await });
    // Away it is: a read by another client says so.
    let log = world.log();
    while wallex::log::EventLog::head(&log).await.is_ok() {}
    assert!(!waiting.is_finished());
    world.store.start_again();
    assert_eq!(waiting.await.expect("no panic").expect("an answer").wallet.balance.minor(), 100);
    assert_eq!(world.store.log().len(), 2);
    writer.stop().await;
}

#[tokio::test]
async fn on_stop_what_was_taken_is_answered_both_legs_of_a_transfer_included() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    writer.ok(opening("b", 0)).await;
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let service = writer.service.clone();
        callers.spawn(async move { service.execute(Request::new(Command::transfer(id("a"), id("b"), "0.10"))).await });
    }
    // All of them are in the queue: it is only taken from when this task waits.
    tokio::task::yield_now().await;
    writer.stop().await;
    let (mut done, mut turned_away) = (0, 0);
    while let Some(answer) = callers.join_next().await {
        match answer.expect("no panic") {
            Ok(_) => done += 1,
            Err(CommandError::Unavailable { maybe_done: false, .. }) => turned_away += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(done + turned_away, 20);
    assert_eq!((world.balance("a").await, world.balance("b").await), (1_000 - done * 10, done * 10));
}

#[tokio::test]
async fn amounts_stay_within_what_a_wallet_can_hold() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("full", Amount::MAX.minor())).await;
    let refused = writer.service.execute(Request::new(Command::credit(id("full"), "0.01"))).await;
    assert!(matches!(refused, Err(CommandError::Rejected(Rejection::BalanceTooLarge { .. }))));
}
