//! As many records as may be are parked, and no more; what is beyond waits where it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wallex::dlq::{self, Action, ActionKind, Reach, Selection};
use wallex::lag::{self, State};
use wallex::projection::{ApplyError, LEDGER_PROJECTOR};

use crate::operator::Operator;
use crate::process::Part;
use crate::wallets::{mend, names, parked, publish_poison};
use crate::world::{Raw, Recorder, Topic, World, partition, wallets_of};

const PARKED_MAX: i64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn past_the_bound_only_the_partition_concerned_pauses_and_it_goes_on_by_itself_with_nothing_lost() {
    let mut world = World::new(401).await;
    let topic = Topic::new();
    let victim = wallets_of(4, 1).remove(0);
    world.open(names(30).filter(|name| partition(name) != 4).chain([victim.clone()])).await;
    world.operate(100).await;
    let bad = world.credit(&victim).await;
    for _ in 0..30 {
        world.credit(&victim).await;
    }
    let is_mended = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_mended);
    let recorder = Recorder::new("recorder").refusing(move |record| {
        let refused = record.position == bad && !asked.load(Ordering::Relaxed);
        refused.then(|| ApplyError::Permanent("not yet".to_owned()))
    });
    world.relay(&topic, 0, world.head()).await;
    let running = world.start_within(recorder.clone(), topic.kafka(), PARKED_MAX);
    let paused = "SELECT count(*) FROM projection_checkpoints WHERE paused_since IS NOT NULL";
    let is_full = || async { parked(&world, "recorder").await == 31 || world.database.number(paused).await > 0 };
    world.until("all of them are parked, or no more may be", is_full).await;
    // What came at once was parked at once: all 31. A busy broker hands them out in parts, and then a part may find no room.
    let kept = parked(&world, "recorder").await;
    assert!((PARKED_MAX..=31).contains(&kept), "{kept}");
    if world.database.number(paused).await == 0 {
        assert_eq!(kept, 31);
        world.through("recorder", world.head()).await;
    }

    // More of the same wallet, and a foreign record of the same partition: no room.
    let before = world.head();
    for _ in 0..30 {
        world.credit(&victim).await;
    }
    topic.send(4, &Raw { value: Some(b"foreign".to_vec()), ..Raw::default() });
    world.relay(&topic, before, world.head()).await;
    world.until("its partition is paused", || async { world.database.number(paused).await > 0 }).await;
    // The others go on, also with what comes now.
    let held_at = world.head();
    world.operate(200).await;
    world.credit(&wallets_of(7, 1)[0]).await;
    world.relay(&topic, held_at, world.head()).await;
    let head = world.head();
    let through = format!("SELECT count(*) FROM projection_checkpoints WHERE position >= {head} AND partition <> 4");
    world.until("the others are through", || async { world.database.number(&through).await == 9 }).await;
    assert_eq!(
        world
            .database
            .number("SELECT partition::bigint FROM projection_checkpoints WHERE paused_since IS NOT NULL")
            .await,
        4
    );
    assert_eq!(parked(&world, "recorder").await, kept);
    let report = lag::report(&world.database.database, Some(&topic.kafka())).await.expect("a report");
    let group = report.groups.iter().find(|group| group.group == "recorder").expect("the group");
    assert_eq!((group.state, group.needs_help), (State::Full, true));
    assert_eq!((group.parked, group.parked_max), (kept, Some(PARKED_MAX)));
    assert!(group.partitions.iter().all(|it| (it.state == State::Full) == (it.partition == 4)));
    let operator = Operator::of(&world, &topic);
    let table = operator.says(&["lag"]).await;
    assert!(table.contains("full") && table.contains(&format!("{kept} of 20")), "{table}");

    // A replay makes room.
    is_mended.store(true, Ordering::Relaxed);
    let database = &world.database.database;
    let plan = dlq::plan(database, ActionKind::Replay, &Selection::default(), Reach::Whole, &["recorder"]).await;
    let action = Action::new(ActionKind::Replay, "test", None);
    dlq::replay(recorder, database, &plan.expect("a plan").queues, &action, |_| ()).await.expect("a replay");
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    assert_eq!(world.database.number(paused).await, 0);
    let foreign = "SELECT count(*) FROM parked_records WHERE record_value = 'foreign' AND wallet_id IS NULL";
    assert_eq!((parked(&world, "recorder").await, world.database.number(foreign).await), (1, 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_ends_while_a_partition_is_paused_leaves_everything_for_the_next() {
    let mut world = World::new(402).await;
    let topic = Topic::new();
    world.open(names(20)).await;
    let bad = world.credit("wallet-3").await;
    for _ in 0..80 {
        world.credit("wallet-3").await;
    }
    world.operate(100).await;
    let refusing = Recorder::new("recorder")
        .refusing(move |record| (record.position == bad).then(|| ApplyError::Permanent("no".to_owned())));
    world.relay(&topic, 0, world.head()).await;
    let running = world.start_within(refusing.clone(), topic.kafka(), 1);
    let paused = "SELECT count(*) FROM projection_checkpoints WHERE paused_since IS NOT NULL";
    world.until("its partition is paused", || async { world.database.number(paused).await > 0 }).await;
    running.stop().await;
    let kept = parked(&world, "recorder").await;
    assert!((1..81).contains(&kept), "{kept}");

    // The next one may park more.
    let running = world.start(refusing, &topic);
    world.through("recorder", world.head()).await;
    world.assert_each_once_but_from("recorder", "wallet-3", bad).await;
    let seen = world.seen("recorder").await.len() as i64;
    assert_eq!(seen + parked(&world, "recorder").await, world.head());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_told_in_time_and_makes_room_from_the_shell() {
    let mut world = World::new(403).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    let log = operator.room().join("log");
    world.open(names(5)).await;
    let bad = publish_poison(&mut world, &topic, &[LEDGER_PROJECTOR], "wallet-3").await;
    let command = operator.command(&["project", "ledger", "--parked-max", "10", "--log", "error"]);
    let projecting = Part::spawn_into(command, &log);
    let said = || std::fs::read_to_string(&log).expect("the log");
    let mut published = bad;
    for expected in 2..=9 {
        world.credit("wallet-3").await;
        world.relay(&topic, published, world.head()).await;
        published = world.head();
        world.until("it is parked", || async { parked(&world, LEDGER_PROJECTOR).await == expected }).await;
        assert_eq!(said().contains("nearly as many"), expected > 8, "{}", said());
    }
    assert!(!said().contains("paused until"));
    for _ in 0..20 {
        world.credit("wallet-3").await;
        world.relay(&topic, published, world.head()).await;
        published = world.head();
    }
    world.until("it is said", || async { said().contains("paused until there is room") }).await;
    let full = operator.json(&["lag"]).await;
    let group = full["groups"].as_array().expect("groups").iter().find(|group| group["group"] == LEDGER_PROJECTOR);
    let group = group.expect("the group");
    assert_eq!((&group["state"], &group["needsHelp"], &group["parkedMax"]), (&"full".into(), &true.into(), &10.into()));
    mend(&world, LEDGER_PROJECTOR, bad).await;
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, 0);
    let postings = "SELECT count(*) FROM ledger_postings WHERE account = 'wallet/wallet-3' AND position >= ";
    assert_eq!(world.database.number(&format!("{postings}{bad}")).await, 29);
    drop(projecting);
}
