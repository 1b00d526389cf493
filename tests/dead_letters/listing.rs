//! Lists in pages, and documents of a stable schema.

use std::collections::BTreeSet;

use serde_json::Value;
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection};

use crate::operator::{Operator, stderr};
use crate::wallets::{names, poison};
use crate::world::{Topic, World};

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn assert_keys(value: &Value, expected: &str) {
    assert_eq!(keys(value), expected.split(' ').collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_and_documents_have_their_schema() {
    let mut world = World::new(601).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(names(12)).await;
    world.operate(50).await;
    for name in names(12) {
        let bad = world.credit(&name).await;
        poison(&world, LEDGER_PROJECTOR, bad).await;
        world.credit(&name).await;
    }
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    ledger.stop().await;

    let mut listed = Vec::new();
    for offset in ["0", "5", "10", "15"] {
        let page = operator.json(&["dlq", "list", "--limit", "5", "--offset", offset]).await;
        listed.extend(page.as_array().expect("a page").iter().map(|queue| queue["walletId"].to_string()));
    }
    assert_eq!((listed.len(), listed.iter().collect::<BTreeSet<_>>().len()), (12, 12), "{listed:?}");
    let more = operator.run(&["dlq", "list", "--limit", "5"]).await;
    assert!(stderr(&more).contains("--offset 5"));
    let second = operator.json(&["dlq", "show", "wallet-3", "--limit", "1", "--offset", "1"]).await;
    assert_eq!((second.as_array().map(Vec::len), &second[0]["errorClass"]), (Some(1), &"BEHIND".into()));

    let list = operator.json(&["dlq", "list"]).await;
    let queue = "attempts behind error errorClass eventType firstPosition group lastFailedAt lastPosition partition recordId \
                 records since walletId";
    assert_keys(&list[0], queue);
    let shown = operator.json(&["dlq", "show", "wallet-3"]).await;
    let letter = "attempts balance error errorChain errorClass event firstFailedAt group headers key lastFailedAt offset \
                  partition position recordId timestamp topic value walletId";
    assert_keys(&shown[0], letter);
    assert_keys(&shown[0]["event"], "eventType eventVersion id payload recordedAt revision unreadable");
    assert_keys(&shown[0]["balance"], "after before currency held");
    assert_keys(&shown[0]["value"], "hex text");
    assert_keys(&shown[0]["headers"][0], "name value");

    // A plan of several queues, in the order in which they failed, does what it says and no more.
    let plan = operator.json(&["dlq", "discard", "--all"]).await;
    assert_keys(&plan, "executed plan settled");
    assert_keys(&plan["plan"], "action more queues records");
    let planned = "balanceAfter balanceBefore currency events firstPosition group held lacks lastPosition obstacle partition \
                   records stays walletId";
    assert_keys(&plan["plan"]["queues"][0], planned);
    assert_keys(&plan["plan"]["queues"][0]["events"][0], "balanceAfter eventType position revision");
    let order = |plan: &Value| -> Vec<Value> {
        plan["queues"].as_array().expect("queues").iter().map(|queue| queue["walletId"].clone()).collect()
    };
    let listed: Vec<Value> = list.as_array().expect("queues").iter().map(|queue| queue["walletId"].clone()).collect();
    assert_eq!(order(&plan["plan"]), listed);
    assert_eq!((&plan["plan"]["records"], &plan["settled"]), (&12.into(), &serde_json::json!([])));
    let done = operator.json(&["dlq", "discard", "--all", "--execute", "--reason", "a test"]).await;
    assert_keys(&done["settled"][0], "error firstPosition group lastPosition records remaining walletId");
    assert_eq!(done["settled"].as_array().map(Vec::len), Some(12));
    let table = operator.says(&["dlq", "replay", "--all"]).await;
    assert!(table.contains("wallet-11") && table.contains("12 records"), "{table}");
    operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    let mut accounted = Vec::new();
    for offset in ["0", "10", "20"] {
        let page = operator.json(&["dlq", "history", "--limit", "10", "--offset", offset]).await;
        accounted.extend(page.as_array().expect("a page").clone());
    }
    assert_eq!(accounted.len(), 24);
    let deed =
        "action actionId begunAt by endedAt error firstPosition group lastPosition reason records remaining walletId";
    assert_keys(&accounted[0], deed);
    assert_eq!(accounted.iter().map(|deed| deed["actionId"].to_string()).collect::<BTreeSet<_>>().len(), 2);
    // The newest first.
    assert_eq!((&accounted[0]["action"], &accounted[23]["action"]), (&"replay".into(), &"discard".into()));
}
