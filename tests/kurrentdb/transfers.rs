//! Transfers of two appends: whole in the end, exactly once, whoever dies in between; and back where there is no room.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wallex::log::{Appended, Batch, EventLog, NewEvent};
use wallex::money::Amount;
use wallex::sequencer::CommandError;
use wallex::wallet::{Command, Rejection, Transfer, WalletEvent};

use crate::world::{PATIENCE, World, id, opening, patiently};

const MAX: i64 = Amount::MAX.minor();

/// Appends the paying leg alone, as a server does that is killed right after it.
pub async fn leave_in_transit(world: &World, from: &str, to: &str, minor: i64) {
    let log = world.log();
    let history = world.events(from).await;
    let last = history.last().expect("a wallet").decode().expect("an event of ours");
    let amount = Amount::from_minor(minor).expect("an amount");
    let debit = WalletEvent::WalletDebited {
        amount,
        balance: last.balance().checked_sub(amount).expect("the funds"),
        currency: last.currency(),
        description: None,
        transfer: Some(Transfer { id: uuid::Uuid::now_v7(), counterparty: id(to) }),
    };
    let event = NewEvent {
        stream: id(from),
        stream_key: None,
        revision: history.len() as i64,
        event_id: uuid::Uuid::now_v7(),
        event_type: debit.event_type(),
        payload: debit.to_payload(),
        metadata: br#"{"correlationId":"c","causationId":"d"}"#[..].into(),
    };
    let batch = Batch { recorded_at: history[0].recorded_at, events: vec![event], ..Batch::default() };
    assert!(matches!(patiently(async || log.append(&batch).await).await, Appended::At(_)));
}

pub async fn until_nothing_is_in_transit(world: &World) {
    let settled = async {
        loop {
            world.copied().await;
            if world.in_transit().await == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("an end of the transit");
}

#[tokio::test]
async fn what_a_dead_server_left_half_way_is_finished_once_by_those_that_live() {
    let world = World::new().await;
    let dead = world.writer();
    dead.ok(opening("a", 1_000)).await;
    dead.ok(opening("b", 0)).await;
    dead.kill();
    for _ in 0..3 {
        leave_in_transit(&world, "a", "b", 100).await;
    }
    world.copy().await;
    assert_eq!(world.in_transit().await, 3);
    // Two find it at the same time, and go on looking.
    let writers = [world.writer(), world.writer()];
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    until_nothing_is_in_transit(&world).await;
    assert_eq!((world.balance("a").await, world.balance("b").await), (700, 300));
    let length = world.store.log().len();
    assert_eq!(length, 2 + 1 + 3 + 3);
    for writer in writers {
        writer.ok(Command::credit(id("b"), "1.00")).await;
        writer.stop().await;
    }
    assert_eq!(world.balance("b").await, 500);
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}

/// Who asks again with its key, and who finds it in transit, come to the receiver's lane together.
#[tokio::test]
async fn a_leg_that_is_asked_for_many_times_at_once_is_appended_once() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    writer.ok(opening("b", 0)).await;
    // The debit is written, and the server that took it is gone.
    let dead = world.writer();
    world.store.fail_next_append(crate::kurrentdb_server::AppendFault::CutAfter);
    let service = dead.service.clone();
    let asked = tokio::spawn(async move {
        service.execute(crate::world::with_key(Command::transfer(id("a"), id("b"), "1.00"), "k")).await
    });
    while world.events("a").await.len() < 3 {}
    dead.kill();
    let _ = asked.await;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let service = writer.service.clone();
        let request = crate::world::with_key(Command::transfer(id("a"), id("b"), "1.00"), "k");
        callers.spawn(async move { service.execute(request).await.expect("an answer") });
    }
    while let Some(answer) = callers.join_next().await {
        assert!(answer.expect("no panic").replayed);
    }
    assert_eq!((world.balance("a").await, world.balance("b").await), (900, 100));
    assert_eq!(world.events("b").await.len(), 2);
}

/// The copy says that a transfer is in transit, because it is behind; the store knows better.
#[tokio::test]
async fn a_copy_that_is_behind_makes_nobody_append_a_leg_again() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", 1_000)).await;
    writer.ok(opening("b", 0)).await;
    leave_in_transit(&world, "a", "b", 100).await;
    world.copy().await;
    // Not copied any more from here on; the transfer is taken up again and again.
    let received = async {
        while world.events("b").await.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, received).await.expect("the leg in time");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!((world.in_transit().await, world.balance("b").await), (1, 100));
    assert_eq!(world.events("b").await.len(), 2);
}

async fn transfer_without_room(sender: i64, receiver: i64, amount: &str, returns: usize) {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", sender)).await;
    writer.ok(opening("b", receiver)).await;
    let command = || Command::transfer(id("a"), id("b"), amount);
    for attempt in 0..2 {
        let refused = writer.keyed(command(), "k").await;
        match refused {
            Err(CommandError::Rejected(Rejection::BalanceTooLarge { wallet_id, .. })) => assert_eq!(wallet_id, id("b")),
            other => panic!("attempt {attempt}: {other:?}"),
        }
    }
    assert_eq!((world.balance("a").await, world.balance("b").await), (sender, receiver));
    // Out, and back in one part or two.
    assert_eq!(world.events("a").await.len(), 2 + 1 + returns);
    assert_eq!(world.events("b").await.len(), 2 + 1 + returns);
    world.copy().await;
    assert_eq!(world.in_transit().await, 0);
    world.assert_copy_is_true().await;
    // A process that has only the copy answers the same.
    let other = world.writer();
    assert!(matches!(
        other.keyed(command(), "k").await,
        Err(CommandError::Rejected(Rejection::BalanceTooLarge { .. }))
    ));
    assert_eq!(world.events("a").await.len(), 2 + 1 + returns);
}

#[tokio::test]
async fn a_receiver_without_room_sends_the_money_back_once() {
    transfer_without_room(500, MAX - 100, "2.00", 1).await;
}

#[tokio::test]
async fn a_receiver_that_has_less_than_it_must_send_back_does_it_in_two_parts() {
    transfer_without_room(MAX, 1, "92233720368547758.07", 2).await;
}

#[tokio::test]
async fn a_return_without_room_waits_until_there_is_room() {
    let world = World::new().await;
    let writer = world.writer();
    writer.ok(opening("a", MAX)).await;
    writer.ok(opening("b", MAX)).await;
    // The payer is full again before the money is back.
    leave_in_transit(&world, "a", "b", 100).await;
    writer.ok(Command::credit(id("a"), "1.00")).await;
    let stop = CancellationToken::new();
    let ingest = world.ingest(stop.clone());
    let sent_back = async {
        while world.events("b").await.len() < 4 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, sent_back).await.expect("sent back in time");
    world.copied().await;
    assert_eq!(world.in_transit().await, 1);
    writer.ok(Command::debit(id("a"), "3.00")).await;
    until_nothing_is_in_transit(&world).await;
    assert_eq!((world.balance("a").await, world.balance("b").await), (MAX - 200, MAX));
    stop.cancel();
    ingest.await.expect("an ingest that stopped");
}
