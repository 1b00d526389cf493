//! Records that are not the relay's: kept, listed, shown, discarded; and in nobody's way.

use wallex::kafka::HEADER_POSITION;
use wallex::projection::LEDGER_PROJECTOR;
use wallex::projection::{LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection};

use crate::operator::{Operator, found};
use crate::wallets::parked;
use crate::world::{Raw, Topic, World, wallets_of};

#[tokio::test(flavor = "multi_thread")]
async fn foreign_records_are_listed_shown_in_hex_and_discarded_one_by_one_or_all() {
    let mut world = World::new(301).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(wallets_of(4, 10)).await;
    world.operate(50).await;
    let right = Raw::of(&world.events(world.head() - 1, world.head()).await[0]);
    let position = |position: &str| (HEADER_POSITION.to_owned(), position.as_bytes().to_vec());
    let foreign = [
        // No key; a tombstone; bytes that are no text; a position that the log does not have.
        Raw { value: Some(b"{}".to_vec()), ..Raw::default() },
        Raw { key: Some(b"wallet-1".to_vec()), ..Raw::default() },
        Raw {
            key: Some(vec![0xc3, 0x28]),
            value: Some(vec![0, 255, 254]),
            headers: vec![("x\0y".to_owned(), vec![0, 159])],
        },
        Raw {
            headers: right
                .headers
                .iter()
                .filter(|(name, _)| name != HEADER_POSITION)
                .cloned()
                .chain([position("987654321")])
                .collect(),
            ..right.clone()
        },
    ];
    for raw in &foreign {
        topic.send(4, raw);
    }
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    for group in [LEDGER_PROJECTOR, READ_MODEL_PROJECTOR] {
        world.through(group, world.head()).await;
        assert_eq!(parked(&world, group).await, foreign.len() as i64);
    }
    world.assert_ledger_and_read_model().await;

    let list = operator.json(&["dlq", "list"]).await;
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list:#}");
    let queue = &list[0];
    assert_eq!((&queue["walletId"], &queue["records"], &queue["behind"]), (&().into(), &4.into(), &0.into()));
    assert_eq!(queue["errorClass"], "FOREIGN");
    let typed = operator.json(&["dlq", "list", "--event-type", "WalletCredited"]).await;
    assert!(typed.as_array().expect("an array").iter().all(|queue| queue["records"] == 1), "{typed:#}");
    assert!(operator.says(&["dlq", "list"]).await.contains("(of no wallet)"));

    let shown = operator.json(&["dlq", "show", "--no-wallet", "--group", LEDGER_PROJECTOR]).await;
    let letters = shown.as_array().expect("letters");
    assert_eq!(letters.len(), 4);
    let hex = |of: &serde_json::Value| of["hex"].as_str().map(str::to_owned);
    let bytes = letters.iter().find(|letter| hex(&letter["value"]).as_deref() == Some("00fffe")).expect("the bytes");
    assert_eq!((hex(&bytes["key"]).as_deref(), &bytes["value"]["text"]), (Some("c328"), &().into()));
    assert_eq!(hex(&bytes["headers"][0]["value"]).as_deref(), Some("009f"));
    let tombstone = letters.iter().find(|letter| letter["key"]["text"] == "wallet-1").expect("the tombstone");
    assert_eq!((&tombstone["value"], &tombstone["headers"]), (&().into(), &serde_json::json!([])));
    let text = operator.says(&["dlq", "show", "--record", &bytes["recordId"].to_string()]).await;
    assert!(text.contains("00fffe") && text.contains("of no wallet"), "{text}");
    assert!(!text.contains('\0'));

    let replay = operator.json(&["dlq", "replay", "--all", "--execute"]).await;
    assert_eq!(replay["executed"], false);
    assert!(replay["plan"]["queues"][0]["obstacle"].as_str().is_some_and(|reason| reason.contains("discard")));
    let one = ["dlq", "discard", "--record", &bytes["recordId"].to_string(), "--execute", "--reason", "looked at"];
    let done = operator.json(&one).await;
    assert_eq!((&done["settled"][0]["records"], &done["settled"][0]["remaining"]), (&1.into(), &3.into()), "{done:#}");
    let all = ["dlq", "discard", "--error", "foreign", "--execute", "--reason", "a stray producer"];
    operator.json(&all).await;
    assert_eq!(operator.json(&["dlq", "list"]).await, serde_json::json!([]));
    // The topic has them still.
    let checks = operator.verified().await;
    assert!(found(&checks, "discarded").contains("4 records of no wallet"), "{checks:#}");
    assert_eq!(world.database.number("SELECT count(*) FROM discarded_records WHERE record_value IS NULL").await, 2);

    // One that nobody has looked at is a difference.
    topic.send(4, &Raw { value: Some(b"new".to_vec()), ..Raw::default() });
    topic.flush();
    world.until("it is parked", || async { parked(&world, LEDGER_PROJECTOR).await == 1 }).await;
    let (proof, code) = operator.json_and_code(&["verify", "--wait", "0"]).await;
    assert_eq!(code, Some(1));
    assert!(found(&proof["checks"], "topic").contains("without a position"), "{proof:#}");
    ledger.stop().await;
    read_model.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_whose_name_is_no_text_ends_nothing() {
    let mut world = World::new(302).await;
    let topic = Topic::new();
    let operator = Operator::of(&world, &topic);
    world.open(wallets_of(4, 5)).await;
    #[expect(unsafe_code, reason = "the client takes names as text only; it hands the bytes on as they are")]
    let name = unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe]) };
    topic.send(4, &Raw { value: Some(b"strange".to_vec()), headers: vec![(name, vec![1])], ..Raw::default() });
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    let shown = operator.json(&["dlq", "show", "--no-wallet", "--group", LEDGER_PROJECTOR]).await;
    assert_eq!((&shown[0]["value"]["text"], &shown[0]["headers"]), (&"strange".into(), &serde_json::json!([])));
    let (proof, code) = operator.json_and_code(&["verify", "--wait", "0"]).await;
    assert_eq!(code, Some(1));
    assert!(found(&proof["checks"], "topic").contains("without a position"), "{proof:#}");
    operator.json(&["dlq", "discard", "--all", "--execute", "--reason", "looked at"]).await;
    operator.verified().await;
    ledger.stop().await;
    read_model.stop().await;
}
