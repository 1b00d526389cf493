//! What is discarded is missing for good, known as such, and in nobody's way.

use wallex::projection::{BUILT_IN, LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection};

use crate::operator::{Operator, found, stderr};
use crate::wallets::{names, parked, poison, positions_of, publish_poison};
use crate::world::{Running, Topic, World};

const VICTIM: &str = "wallet-5";

struct Both {
    ledger: Running,
    read_model: Running,
}

impl Both {
    async fn start(world: &World, topic: &Topic) -> Both {
        let ledger = world.start(LedgerProjection::new(), topic);
        let read_model = world.start(ReadModelProjection::new(), topic);
        let both = Both { ledger, read_model };
        both.through(world).await;
        both
    }

    async fn through(&self, world: &World) {
        world.through(LEDGER_PROJECTOR, world.head()).await;
        world.through(READ_MODEL_PROJECTOR, world.head()).await;
    }

    async fn stop(self) {
        self.ledger.stop().await;
        self.read_model.stop().await;
    }
}

/// Version and balance of a wallet's row in the read model.
async fn row(world: &World, wallet: &str) -> Option<(i64, i64)> {
    let query = "SELECT version, balance FROM read_model_wallets WHERE wallet_id = $1";
    let row = wallex::postgres::sqlx::query_as(query).bind(wallet);
    row.fetch_optional(world.database.database.pool()).await.expect("a row")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failing_event_alone_is_discarded_and_those_behind_it_can_be_replayed() {
    let mut world = World::new(201).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(12)).await;
    world.operate(150).await;
    let bad = publish_poison(&mut world, &topic, &BUILT_IN, VICTIM).await;
    let both = Both::start(&world, &topic).await;
    world.operate(150).await;
    world.credit(VICTIM).await;
    world.relay(&topic, bad, world.head()).await;
    both.through(&world).await;
    let behind = parked(&world, LEDGER_PROJECTOR).await - 1;
    assert!(behind > 0);

    // Never by default, and never without a reason.
    let plan = operator.says(&["dlq", "discard", "--wallet", VICTIM]).await;
    for word in ["will lack", "1 event, from a balance of", "sums over the account", "--execute and --reason"] {
        assert!(plan.contains(word), "{word} is not in {plan}");
    }
    for arguments in [&["--wallet", VICTIM, "--execute"][..], &["--execute", "--reason", "x"]] {
        let refused = operator.run(&[&["dlq", "discard"], arguments].concat()).await;
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    }
    assert_eq!(parked(&world, LEDGER_PROJECTOR).await, behind + 1);

    let discard = ["dlq", "discard", "--wallet", VICTIM, "--execute", "--reason", "ticket 7"];
    let done = operator.json(&discard).await;
    for settled in done["settled"].as_array().expect("settled") {
        assert_eq!((&settled["records"], &settled["remaining"]), (&1.into(), &behind.into()), "{done:#}");
    }
    assert_eq!(operator.json(&["dlq", "list"]).await[0]["errorClass"], "BEHIND");
    // The cause is still there: what is left does not meet it.
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    assert_eq!(operator.json(&["dlq", "list"]).await, serde_json::json!([]));

    let checks = operator.verified().await;
    let words = found(&checks, "discarded");
    for group in BUILT_IN {
        assert!(words.contains(&format!("{group}: 1 events of 1 wallets")), "{words}");
    }
    assert!(found(&checks, "money").contains("1 discarded"), "{checks:#}");
    let missing = format!("SELECT count(*) FROM ledger_postings WHERE position = {bad}");
    assert_eq!(world.database.number(&missing).await, 0);
    let history = operator.json(&["dlq", "history"]).await;
    let discards: Vec<_> =
        history.as_array().expect("deeds").iter().filter(|deed| deed["action"] == "discard").collect();
    assert_eq!(discards.len(), 2);
    assert!(discards.iter().all(|deed| deed["reason"] == "ticket 7" && deed["firstPosition"] == bad));
    assert_eq!(discards[0]["actionId"], discards[1]["actionId"]);

    // It stays discarded when the tables are made anew.
    for table in ["ledger", "read-model"] {
        let rebuilt = operator.run(&["project", table, "--rebuild", "-o", "json"]).await;
        assert!(rebuilt.status.success(), "{}{}", String::from_utf8_lossy(&rebuilt.stdout), stderr(&rebuilt));
    }
    operator.verified().await;

    // A difference that nobody has discarded is one still.
    let other = positions_of(&world, VICTIM).await.into_iter().rfind(|at| *at > bad).expect("a later one");
    world.database.run(&format!("DELETE FROM ledger_postings WHERE position = {other}")).await;
    let (proof, code) = operator.json_and_code(&["verify", "--wait", "0"]).await;
    assert_eq!((code, &proof["ok"]), (Some(1), &false.into()));
    assert!(found(&proof["checks"], "ledger").contains(&format!("position {other}")));
    both.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_discarded_whole_lets_its_wallet_go_on_with_its_next_event() {
    let mut world = World::new(202).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(12)).await;
    let bad = publish_poison(&mut world, &topic, &BUILT_IN, VICTIM).await;
    let both = Both::start(&world, &topic).await;
    world.operate(150).await;
    world.credit(VICTIM).await;
    world.relay(&topic, bad, world.head()).await;
    both.through(&world).await;
    let stood = row(&world, VICTIM).await.expect("a row");
    let count = parked(&world, READ_MODEL_PROJECTOR).await;

    let discard = ["dlq", "discard", "--all", "--with-those-behind", "--execute", "--reason", "a test wallet"];
    let done = operator.json(&discard).await;
    assert!(
        done["settled"].as_array().is_some_and(|all| all.len() == 2 && all.iter().all(|it| it["records"] == count))
    );
    // Until the next event its row stays; and verify knows.
    assert_eq!(row(&world, VICTIM).await, Some(stood));
    operator.verified().await;

    let before = world.head();
    world.credit(VICTIM).await;
    world.operate(100).await;
    world.relay(&topic, before, world.head()).await;
    both.through(&world).await;
    assert_eq!(operator.json(&["dlq", "list"]).await, serde_json::json!([]), "nothing is parked again");
    let revision = positions_of(&world, VICTIM).await.len() as i64 - 1;
    assert_eq!(row(&world, VICTIM).await.map(|(version, _)| version), Some(revision));
    operator.verified().await;

    // What was not discarded is not passed over, however close it lies.
    world
        .database
        .run(&format!("UPDATE read_model_wallets SET version = {revision} - 1 WHERE wallet_id = '{VICTIM}'"))
        .await;
    let before = world.head();
    world.credit(VICTIM).await;
    world.relay(&topic, before, world.head()).await;
    both.through(&world).await;
    assert_eq!(parked(&world, READ_MODEL_PROJECTOR).await, 1);
    both.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_whose_creation_was_discarded_is_not_in_the_read_model_and_in_nobodys_way() {
    let mut world = World::new(203).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(6)).await;
    let creation = positions_of(&world, VICTIM).await[0];
    poison(&world, READ_MODEL_PROJECTOR, creation).await;
    world.relay(&topic, 0, creation).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    let both = Both { ledger, read_model };
    world.until("it is parked", || async { parked(&world, READ_MODEL_PROJECTOR).await == 1 }).await;
    world.operate(60).await;
    world.credit(VICTIM).await;
    world.relay(&topic, creation, world.head()).await;
    both.through(&world).await;

    let plan = operator.says(&["dlq", "discard", "--wallet", VICTIM]).await;
    assert!(plan.contains("the wallet for good"), "{plan}");
    operator.json(&["dlq", "discard", "--wallet", VICTIM, "--execute", "--reason", "a test"]).await;
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    let before = world.head();
    world.credit(VICTIM).await;
    world.operate(60).await;
    world.relay(&topic, before, world.head()).await;
    both.through(&world).await;
    assert_eq!(parked(&world, READ_MODEL_PROJECTOR).await, 0);
    assert_eq!(row(&world, VICTIM).await, None);
    operator.verified().await;
    both.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_of_which_one_leg_was_discarded_is_known_as_such() {
    let mut world = World::new(204).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(8)).await;
    world.operate(200).await;
    let events = world.events(100, world.head()).await;
    let is_leg = |event: &&wallex::log::RecordedEvent| event.decode().is_ok_and(|event| event.transfer().is_some());
    let leg = events.iter().find(is_leg).expect("a transfer").position;
    poison(&world, LEDGER_PROJECTOR, leg).await;
    world.relay(&topic, 0, world.head()).await;
    let both = Both::start(&world, &topic).await;
    operator.json(&["dlq", "discard", "--all", "--execute", "--reason", "posted elsewhere"]).await;
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    let clearing = "SELECT abs(sum(amount))::bigint FROM ledger_postings WHERE account LIKE 'clearing/%'";
    assert!(world.database.number(clearing).await > 0);
    operator.verified().await;
    both.stop().await;
}
