//! What is parked is applied again: in order, once, and by any number of operators at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wallex::dlq::{self, Action, ActionKind, Page, Reach, Selection};
use wallex::projection::{
    ApplyError, BUILT_IN, LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection,
};

use crate::operator::{Operator, stderr};
use crate::process::Part;
use crate::wallets::{mend, names, parked, poison, positions_of, publish_poison};
use crate::world::{Recorder, Topic, World};

const VICTIM: &str = "wallet-5";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_listed_shown_replayed_and_accounted_for() {
    let mut world = World::new(101).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    for list in ["list", "history"] {
        assert_eq!(operator.json(&["dlq", list]).await, serde_json::json!([]));
        assert!(operator.says(&["dlq", list]).await.contains("Nothing"));
    }
    world.open(names(20)).await;
    world.operate(400).await;
    let bad = world.credit(VICTIM).await;
    world.operate(200).await;
    let last = world.credit(VICTIM).await;
    poison(&world, LEDGER_PROJECTOR, bad).await;
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    let waiting: Vec<i64> = positions_of(&world, VICTIM).await.into_iter().filter(|at| *at >= bad).collect();
    let count = waiting.len() as i64;

    let list = operator.json(&["dlq", "list"]).await;
    let queue = &list[0];
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list:#}");
    assert_eq!((&queue["group"], &queue["walletId"]), (&LEDGER_PROJECTOR.into(), &VICTIM.into()));
    assert_eq!((&queue["records"], &queue["behind"]), (&count.into(), &(count - 1).into()));
    assert_eq!((&queue["firstPosition"], &queue["lastPosition"]), (&bad.into(), &last.into()));
    assert_eq!((&queue["errorClass"], &queue["attempts"]), (&"APPLY".into(), &5.into()));
    assert_eq!(queue["eventType"], "WalletCredited");
    let table = operator.says(&["dlq", "list"]).await;
    assert!(table.contains(VICTIM) && table.contains("violates check constraint"), "{table}");
    for (filter, value, matches) in [
        ("--wallet", VICTIM, true),
        ("--wallet", "wallet-6", false),
        ("--group", LEDGER_PROJECTOR, true),
        ("--group", READ_MODEL_PROJECTOR, false),
        ("--error", "POISON_", true),
        ("--error", "another", false),
        ("--event-type", "WalletCredited", true),
        ("--event-type", "WalletDebited", false),
        ("--older-than", "0s", true),
        ("--older-than", "1h", false),
        ("--offset", "1", false),
    ] {
        let list = operator.json(&["dlq", "list", filter, value]).await;
        assert_eq!(list.as_array().map(Vec::len), Some(usize::from(matches)), "{filter} {value}");
    }

    let shown = operator.json(&["dlq", "show", VICTIM]).await;
    assert_eq!(shown.as_array().map(Vec::len), Some(waiting.len()));
    let letter = &shown[0];
    assert_eq!((&letter["position"], &letter["event"]["eventType"]), (&bad.into(), &"WalletCredited".into()));
    let balance = |of: &str| letter["balance"][of].as_str().expect("an amount").to_owned();
    assert_eq!(balance("held"), balance("before"));
    assert_ne!(balance("before"), balance("after"));
    assert_eq!(letter["key"]["text"], VICTIM);
    let value: serde_json::Value =
        serde_json::from_str(letter["value"]["text"].as_str().expect("text")).expect("the relay's JSON");
    assert_eq!((&value["aggregateId"], &value["id"]), (&VICTIM.into(), &letter["event"]["id"]));
    let headers = letter["headers"].as_array().expect("headers");
    let at = bad.to_string();
    assert!(headers.iter().any(|header| header["name"] == "position" && header["value"]["text"] == at.as_str()));
    let chain = letter["errorChain"].as_array().expect("a chain");
    let cause = chain.last().and_then(|cause| cause.as_str()).expect("a cause");
    assert_eq!(cause, format!("constraint poison_{bad}, table ledger_postings, SQLSTATE 23514"), "{chain:?}");
    let text = operator.says(&["dlq", "show", "--record", &letter["recordId"].to_string()]).await;
    for word in ["would become", &format!("poison_{bad}"), "header position", "WalletCredited"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }

    // The plan does nothing; and while the cause is there, neither does a replay but count.
    let plan = operator.json(&["dlq", "replay", "--wallet", VICTIM]).await;
    assert_eq!((&plan["executed"], &plan["plan"]["records"]), (&false.into(), &count.into()));
    let planned = &plan["plan"]["queues"][0];
    let order: Vec<i64> =
        planned["events"].as_array().expect("events").iter().filter_map(|it| it["position"].as_i64()).collect();
    assert_eq!(order, waiting[..order.len()]);
    assert_eq!(planned["balanceBefore"], planned["held"]);
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, count);
    assert!(operator.says(&["dlq", "replay", "--all"]).await.contains("--execute"));
    let (failed, code) = operator.json_and_code(&["dlq", "replay", "--all", "--execute"]).await;
    assert_eq!((code, &failed["settled"][0]["records"]), (Some(1), &0.into()));
    let queue = operator.json(&["dlq", "list"]).await[0].clone();
    assert_eq!((&queue["attempts"], &queue["records"]), (&6.into(), &count.into()));

    mend(&world, LEDGER_PROJECTOR, bad).await;
    let arguments = ["dlq", "replay", "--error", "poison", "--execute", "--reason", "mended", "--by", "Zoë"];
    let done = operator.says(&arguments).await;
    assert!(done.contains(&format!("{count} records applied")), "{done}");
    assert_eq!(operator.json(&["dlq", "list"]).await, serde_json::json!([]));
    world.assert_ledger_and_read_model().await;
    operator.verified().await;

    let history = operator.json(&["dlq", "history", "--wallet", VICTIM]).await;
    let deeds = history.as_array().expect("deeds");
    assert_eq!(deeds.len(), 2, "{history:#}");
    assert_eq!((&deeds[0]["records"], &deeds[0]["remaining"]), (&count.into(), &0.into()));
    assert_eq!(
        (&deeds[0]["by"], &deeds[0]["reason"], &deeds[0]["error"]),
        (&"Zoë".into(), &"mended".into(), &().into())
    );
    assert_eq!((&deeds[0]["firstPosition"], &deeds[0]["lastPosition"]), (&bad.into(), &last.into()));
    assert_eq!((&deeds[1]["records"], &deeds[1]["remaining"]), (&0.into(), &count.into()));
    assert!(deeds[1]["error"].as_str().is_some_and(|error| error.contains("poison")));
    assert!(deeds[1]["by"].as_str().is_some_and(|by| !by.is_empty()));
    assert!(operator.says(&["dlq", "history"]).await.contains("Zoë"));

    // It goes on by itself.
    let before = world.head();
    world.credit(VICTIM).await;
    world.relay(&topic, before, world.head()).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.assert_ledger_and_read_model().await;
    ledger.stop().await;
    read_model.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_part_way_leaves_the_rest_parked_in_order() {
    let mut world = World::new(102).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(10)).await;
    let mut positions = Vec::new();
    for _ in 0..12 {
        positions.push(world.credit(VICTIM).await);
    }
    let (first, second) = (positions[2], positions[8]);
    poison(&world, LEDGER_PROJECTOR, first).await;
    poison(&world, LEDGER_PROJECTOR, second).await;
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(LedgerProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    mend(&world, LEDGER_PROJECTOR, first).await;

    let (report, code) = operator.json_and_code(&["dlq", "replay", "--all", "--execute"]).await;
    let settled = &report["settled"][0];
    assert_eq!((code, &settled["records"], &settled["remaining"]), (Some(1), &6.into(), &4.into()), "{report:#}");
    assert!(settled["error"].as_str().is_some_and(|error| error.contains(&format!("poison_{second}"))));
    let queue = operator.json(&["dlq", "list"]).await[0].clone();
    assert_eq!((&queue["firstPosition"], &queue["attempts"]), (&second.into(), &1.into()));
    assert_eq!(queue["errorClass"], "APPLY");
    let row = "SELECT max(position) FROM ledger_postings WHERE account = 'wallet/wallet-5'";
    assert_eq!(world.database.number(row).await, positions[7]);

    mend(&world, LEDGER_PROJECTOR, second).await;
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, 0);
    assert_eq!(world.database.number(row).await, positions[11]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal_a_yes_does_what_the_plan_says_and_anything_else_does_nothing() {
    let mut world = World::new(107).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(5)).await;
    let bad = publish_poison(&mut world, &topic, &[LEDGER_PROJECTOR], "wallet-3").await;
    let running = world.start(LedgerProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    running.stop().await;
    mend(&world, LEDGER_PROJECTOR, bad).await;
    let seen = operator.types(&["dlq", "replay", "--all"], "no").await;
    assert!(seen.contains("Type yes") && seen.contains("Nothing was done"), "{seen}");
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, 1);
    let seen = operator.types(&["dlq", "discard", "--all"], "yes").await;
    assert!(!seen.contains("Type yes") && seen.contains("Nothing was done"), "a discard is not so easy: {seen}");
    let seen = operator.types(&["dlq", "replay", "--all"], "yes").await;
    assert!(seen.contains("1 records applied"), "{seen}");
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replays_at_once_apply_each_event_once() {
    let mut world = World::new(103).await;
    let topic = Topic::new();
    world.open(names(10)).await;
    let bad = publish_poison(&mut world, &topic, &BUILT_IN, VICTIM).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(READ_MODEL_PROJECTOR, bad).await;
    world.operate(600).await;
    world.credit_at_length(VICTIM, 1_500).await;
    world.relay(&topic, bad, world.head()).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    mend(&world, LEDGER_PROJECTOR, bad).await;
    mend(&world, READ_MODEL_PROJECTOR, bad).await;
    let waiting = parked(&world, LEDGER_PROJECTOR).await + parked(&world, READ_MODEL_PROJECTOR).await;

    let operator = Operator::of(&world, &topic);
    let arguments = ["dlq", "replay", "--all", "--execute"];
    let (one, other) = tokio::join!(operator.json_and_code(&arguments), operator.json_and_code(&arguments));
    let mut applied = 0;
    for (report, code) in [one, other] {
        assert_eq!(code, Some(0), "{report:#}");
        // Whoever comes too late has nothing to settle.
        let settled = report["settled"].as_array().expect("an array");
        applied += settled.iter().filter_map(|settled| settled["records"].as_i64()).sum::<i64>();
    }
    assert_eq!(applied, waiting);
    let accounted = "SELECT sum(records)::bigint FROM dead_letter_actions";
    assert_eq!(world.database.number(accounted).await, waiting);
    world.assert_ledger_and_read_model().await;
    ledger.stop().await;
    read_model.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_come_during_a_replay_keep_their_order() {
    let mut world = World::new(104).await;
    let topic = Topic::new();
    world.open(names(10)).await;
    world.operate(200).await;
    let bad = world.credit(VICTIM).await;
    world.credit_at_length(VICTIM, 1_200).await;
    let is_mended = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_mended);
    let recorder = Recorder::new("recorder").refusing(move |record| {
        let refused = record.position == bad && !asked.load(Ordering::Relaxed);
        refused.then(|| ApplyError::Permanent("not yet".to_owned()))
    });
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(recorder.clone(), &topic);
    world.through("recorder", world.head()).await;
    is_mended.store(true, Ordering::Relaxed);

    let database = world.database.database.clone();
    let replaying = tokio::spawn(async move {
        let selection = Selection { group: Some("recorder".to_owned()), ..Selection::default() };
        let plan =
            dlq::plan(&database, ActionKind::Replay, &selection, Reach::Whole, &["recorder"]).await.expect("a plan");
        let action = Action::new(ActionKind::Replay, "test", None);
        dlq::replay(recorder, &database, &plan.queues, &action, |_| ()).await.expect("a replay")
    });
    // Until it has ended and some time beyond: before, amid and after its steps.
    let mut after_the_end = 0;
    while after_the_end < 5 {
        after_the_end += usize::from(replaying.is_finished());
        let before = world.head();
        for _ in 0..20 {
            world.credit(VICTIM).await;
        }
        world.relay(&topic, before, world.head()).await;
    }
    let settled = replaying.await.expect("no panic");
    assert!(settled[0].records >= 1_201 && settled[0].error.is_none() && settled[0].remaining == 0, "{settled:?}");
    world.through("recorder", world.head()).await;
    assert_eq!(parked(&world, "recorder").await, 0);
    world.assert_each_once("recorder").await;
    let deeds = dlq::history(&world.database.database, Some("recorder"), None, Page { limit: 10, offset: 0 }).await;
    assert_eq!(deeds.expect("the account")[0].records, settled[0].records);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_killed_midway_has_done_whole_steps_and_the_next_goes_on() {
    let mut world = World::new(105).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(10)).await;
    let bad = world.credit(VICTIM).await;
    world.credit_at_length(VICTIM, 1_400).await;
    poison(&world, LEDGER_PROJECTOR, bad).await;
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    mend(&world, LEDGER_PROJECTOR, bad).await;

    let mut command = operator.command(&["dlq", "replay", "--all", "--execute"]);
    command.env("WALLEX_CRASH_AT", "in-replay:2");
    Part::spawn(command).until_killed(Duration::from_secs(120)).await;
    // One step was durable, with its line in the account; the second was not.
    let applied = 1_401 - parked(&world, LEDGER_PROJECTOR).await;
    assert!(applied > 0 && applied < 1_401, "{applied}");
    let deed = operator.json(&["dlq", "history"]).await[0].clone();
    assert_eq!((&deed["records"], &deed["remaining"]), (&applied.into(), &(1_401 - applied).into()), "{deed:#}");

    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    world.assert_ledger_and_read_model().await;
    operator.verified().await;
    ledger.stop().await;
    read_model.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_program_cannot_replay_is_refused_with_its_reason() {
    let mut world = World::new(106).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(5)).await;
    let bad = world.credit("wallet-3").await;
    world.relay(&topic, 0, world.head()).await;
    let recorder = Recorder::new("recorder")
        .refusing(move |record| (record.position == bad).then(|| ApplyError::Permanent("no".to_owned())));
    let running = world.start(recorder, &topic);
    world.through("recorder", world.head()).await;
    running.stop().await;
    let plan = operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    assert_eq!(plan["executed"], false);
    let obstacle = plan["plan"]["queues"][0]["obstacle"].as_str().expect("a reason").to_owned();
    assert!(obstacle.contains("recorder"), "{obstacle}");
    let meant = operator.run(&["dlq", "replay"]).await;
    assert_eq!(meant.status.code(), Some(2));
    assert!(stderr(&meant).contains("--all"), "{}", stderr(&meant));
}
