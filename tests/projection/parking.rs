//! Events that cannot be applied, and records that are not the relay's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wallex::kafka::{HEADER_POSITION, HEADER_REVISION};
use wallex::postgres::sqlx;
use wallex::projection::{ApplyError, LEDGER_PROJECTOR, LedgerProjection};

use crate::world::{Raw, Recorder, Topic, World, partition, wallets_of};

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("wallet-{number}"))
}

/// What is parked for a projection: wallet, position, class, attempts, in the order in which it was parked.
async fn parked(world: &World, projection: &str) -> Vec<(Option<String>, Option<i64>, String, i32)> {
    let query = "SELECT wallet_id, position, error_class, attempts FROM parked_records WHERE projection = $1 ORDER BY parked_id";
    sqlx::query_as(query).bind(projection).fetch_all(world.database.database.pool()).await.expect("parked records")
}

/// Asserts that the wallet's events from a position on are parked, in order, the first one for its own sake.
async fn assert_parked_from(world: &World, projection: &str, wallet: &str, from: i64, class: &str) {
    let of_wallet = world.events(0, world.head()).await.into_iter().filter(|event| event.stream.as_str() == wallet);
    let expected: Vec<i64> = of_wallet.map(|event| event.position).filter(|position| *position >= from).collect();
    let found = parked(world, projection).await;
    let found: Vec<_> = found.into_iter().filter(|(id, ..)| id.as_deref() == Some(wallet)).collect();
    assert_eq!(found.iter().filter_map(|(_, position, ..)| *position).collect::<Vec<_>>(), expected);
    assert_eq!(found[0].2, class);
    assert!(found[1..].iter().all(|(_, _, class, attempts)| class == "BEHIND" && *attempts == 0), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_refused_parks_its_wallet_in_order_and_all_others_go_on() {
    let mut world = World::new(31).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(800).await;
    let of_victim = world.events(100, world.head()).await;
    let poison = of_victim.iter().find(|event| event.stream.as_str() == "wallet-5").expect("an event").position;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let recorder = Recorder::new("recorder").refusing(move |record| {
        (record.position == poison).then(|| {
            counted.fetch_add(1, Ordering::Relaxed);
            ApplyError::Permanent("it smells\0".to_owned())
        })
    });
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(recorder.clone(), &topic);
    world.through("recorder", world.head()).await;
    assert_parked_from(&world, "recorder", "wallet-5", poison, "APPLY").await;
    assert!(attempts.load(Ordering::Relaxed) > 5);
    let attempts_kept = parked(&world, "recorder").await[0].3;
    assert_eq!(attempts_kept, 5);

    // Later ones wait behind it, over a restart too.
    running.stop().await;
    let before = world.head();
    world.operate(300).await;
    world.credit("wallet-5").await;
    world.relay(&topic, before, world.head()).await;
    let running = world.start(recorder, &topic);
    world.through("recorder", world.head()).await;
    assert_parked_from(&world, "recorder", "wallet-5", poison, "APPLY").await;
    world.assert_each_once_but_from("recorder", "wallet-5", poison).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_a_handler_parks_the_event_and_not_the_runner() {
    let mut world = World::new(32).await;
    let topic = Topic::new();
    world.open(names(20)).await;
    world.operate(200).await;
    let poison = world.credit("wallet-3").await;
    world.operate(100).await;
    let recorder = Recorder::new("recorder").refusing(move |record| {
        assert!(record.position != poison, "on purpose");
        None
    });
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(recorder, &topic);
    world.through("recorder", world.head()).await;
    assert_parked_from(&world, "recorder", "wallet-3", poison, "APPLY").await;
    world.assert_each_once_but_from("recorder", "wallet-3", poison).await;
    let error = "SELECT error FROM parked_records ORDER BY parked_id LIMIT 1";
    let error: String = sqlx::query_scalar(error).fetch_one(world.database.database.pool()).await.expect("an error");
    assert!(error.contains("panicked: on purpose"), "{error}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_parks_its_wallet_for_every_projection() {
    let mut world = World::new(33).await;
    let topic = Topic::new();
    world.open(names(20)).await;
    world.operate(200).await;
    let poison = world.credit("wallet-3").await;
    world.operate(200).await;
    // As a newer wallex would have written it.
    world.database.run(&format!("UPDATE events SET event_type = 'WalletFrozen' WHERE position = {poison}")).await;
    world.relay(&topic, 0, world.head()).await;
    let recorder = world.start(Recorder::new("recorder"), &topic);
    let ledger = world.start(LedgerProjection::new(), &topic);
    for projection in ["recorder", LEDGER_PROJECTOR] {
        world.through(projection, world.head()).await;
        assert_parked_from(&world, projection, "wallet-3", poison, "DECODE").await;
    }
    world.assert_each_once_but_from("recorder", "wallet-3", poison).await;
    recorder.stop().await;
    ledger.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bad_events_in_one_batch_park_their_wallets_and_no_other() {
    let mut world = World::new(34).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(600).await;
    world.relay(&topic, 0, world.head()).await;
    let recorder = Recorder::new("recorder")
        .refusing(|record| (record.position % 90 == 0).then(|| ApplyError::Permanent("on purpose".to_owned())));
    let running = world.start(recorder, &topic);
    world.through("recorder", world.head()).await;
    let mut victims = std::collections::BTreeMap::new();
    for event in world.events(0, world.head()).await {
        if event.position % 90 == 0 {
            victims.entry(event.stream.to_string()).or_insert(event.position);
        }
    }
    assert!(victims.len() > 3);
    for (wallet, from) in &victims {
        assert_parked_from(&world, "recorder", wallet, *from, "APPLY").await;
    }
    let parked = parked(&world, "recorder").await.len();
    assert_eq!(parked + world.seen("recorder").await.len(), world.head() as usize);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_records_are_kept_and_hold_nobody_back() {
    let mut world = World::new(35).await;
    let topic = Topic::new();
    let names: Vec<String> = wallets_of(4, 10);
    world.open(names.clone()).await;
    world.operate(100).await;
    let events = world.events(0, world.head()).await;
    let (done, coming) = events.split_at(60);
    topic.publish(done);
    let next = coming.iter().find(|event| event.position > 65).expect("an event");
    let with = |change: &dyn Fn(&mut Raw)| {
        let mut raw = Raw::of(next);
        change(&mut raw);
        raw
    };
    let set = |raw: &mut Raw, name: &str, value: &str| {
        raw.headers.retain(|(found, _)| found != name);
        raw.headers.push((name.to_owned(), value.as_bytes().to_vec()));
    };
    let foreign = [
        Raw::default(),
        Raw { key: Some(b"wallet-1".to_vec()), ..Raw::default() },
        Raw { value: Some(vec![0, 159, 146, 150]), ..Raw::default() },
        with(&|raw| raw.key = None),
        with(&|raw| raw.key = Some(vec![0xff, 0])),
        with(&|raw| raw.headers.clear()),
        with(&|raw| set(raw, HEADER_POSITION, "٣")),
        with(&|raw| set(raw, HEADER_POSITION, "-1")),
        with(&|raw| set(raw, HEADER_POSITION, "9223372036854775807")),
        with(&|raw| set(raw, HEADER_POSITION, "99999999999999999999")),
        with(&|raw| set(raw, HEADER_REVISION, "999")),
        // Events that are still to come, announced by somebody who does not have them.
        with(&|raw| set(raw, HEADER_POSITION, &world.head().to_string())),
        with(&|raw| raw.value = Some(b"{}".to_vec())),
        with(&|raw| raw.value = None),
        with(&|raw| {
            let text = String::from_utf8(raw.value.clone().expect("a value")).expect("JSON");
            raw.value =
                Some(text.replace(&next.event_id.to_string(), "01890000-0000-7000-8000-000000000000").into_bytes());
        }),
    ];
    for raw in &foreign {
        topic.send(4, raw);
    }
    // Right in every respect but its place.
    topic.send(5, &Raw::of(next));
    topic.publish(coming);
    world.published(world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    let found = parked(&world, "recorder").await;
    assert!(
        found.iter().all(|(wallet, position, class, _)| wallet.is_none() && position.is_none() && class == "FOREIGN")
    );
    assert_eq!(found.len(), foreign.len() + 1);
    assert!(names.iter().all(|name| partition(name) == 4));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_record_in_an_events_place_does_not_hide_the_event() {
    let mut world = World::new(36).await;
    let topic = Topic::new();
    world.open(wallets_of(4, 10)).await;
    world.operate(100).await;
    for event in world.events(0, world.head()).await {
        let mut raw = Raw::of(&event);
        if event.position % 10 == 0 {
            // The relay's record, spoilt on its way.
            raw.value = Some(b"spoilt".to_vec());
        }
        topic.send(4, &raw);
    }
    topic.flush();
    world.published(world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    assert_eq!(parked(&world, "recorder").await.len() as i64, world.head() / 10);
    running.stop().await;
}
