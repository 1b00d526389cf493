//! Streams that are called like a wallet's, and whose rest is no wallet id: they stay where they are, hold nobody up, and are told.

use wallex::Wallex;
use wallex::lag::{self, State, Strays};
use wallex::wallet::Command;

use crate::whole::config;
use crate::world::{PATIENCE, World, id, opening};

const DATA: &str = r#"{"ownerId":"owner"}"#;
const METADATA: &str = r#"{"occurredAt":"2024-05-06T07:08:09.123Z"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_called_like_a_wallets_and_are_none_stay_and_are_told() {
    let world = World::at_home_in_the_store().await;
    let writer = world.writer();
    writer.ok(opening("w0", 1_000)).await;
    assert_eq!(world.ingest_lag().await.strays, Strays::default());
    let long = format!("wallet-{}", "x".repeat(100_000));
    let names =
        ["wallet-no such id", "wallet-", "wallet-\0", "wallet-wállet", &long, "wallet- \n\u{7}", "wallet-/../x"];
    for name in names {
        world.store.keep(name, "WalletCreated", DATA, METADATA);
        writer.ok(Command::credit(id("w0"), "1.00")).await;
    }
    world.store.keep(names[1], "WalletCredited", "not even JSON", "");
    world.copy().await;
    world.assert_copy_is_true().await;
    let lag = world.ingest_lag().await;
    assert_eq!((lag.state, lag.events), (Some(State::Idle), Some(0)), "nobody is held up");
    assert_eq!(lag.strays, Strays { events: names.len() as i64 + 1, first: Some(names[0].to_owned()) });

    let told = world.shell(&["lag", "--event-store", &world.store.connection_string()]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains(r#"strays: 8 events in streams that are called like a wallet's"#), "{told}");
    assert!(told.contains(r#"the first of them "wallet-no such id""#), "{told}");

    // Each counts once, however often its page is read; and they are all still there.
    let (place, event) = {
        let log = world.store.log();
        (log[1].position, log[1].id)
    };
    let again = format!(
        "UPDATE ingest_checkpoint SET commit_position = {place}, prepare_position = {place}, event_id = '{event}',
                stray_events = 0, first_stray = NULL"
    );
    world.database.run(&again).await;
    world.copy().await;
    assert_eq!(world.ingest_lag().await.strays.events, 8);
    world.store.keep("wallet-%", "X", DATA, METADATA);
    world.copy().await;
    assert_eq!(world.ingest_lag().await.strays.events, 9);
    let kept = world.store.log();
    assert!(names.iter().all(|name| kept.iter().any(|event| event.stream == *name)));
}

/// The first name may be of any length and of any characters.
#[tokio::test(flavor = "multi_thread")]
async fn a_strays_name_is_kept_within_bounds() {
    for name in ["wallet-\0\0".to_owned(), format!("wallet-{}", "é".repeat(50_000))] {
        let world = World::at_home_in_the_store().await;
        world.store.keep(&name, "WalletCreated", DATA, METADATA);
        world.copy().await;
        let strays = world.ingest_lag().await.strays;
        let first = strays.first.expect("a name");
        assert!(strays.events == 1 && first.starts_with("wallet-") && first.chars().count() <= 200, "{first}");
    }
}

/// What others put into a wallet's own stream may be anything. It comes over as far as PostgreSQL can hold it, parks its wallet, and
/// holds nobody else up.
#[tokio::test(flavor = "multi_thread")]
async fn slow_rubbish_in_a_wallets_stream_parks_that_wallet_and_holds_nobody_up() {
    let world = World::new().await;
    let ours = r#"{"occurredAt":"2026-01-02T03:04:05.000006Z","eventVersion":1}"#;
    let year = |year: &str| format!(r#"{{"occurredAt":"{year}-01-01T00:00:00Z","eventVersion":1}}"#);
    let key = format!(
        r#"{{"occurredAt":"2026-01-02T03:04:05.000006Z","eventVersion":1,"correlationId":"c","causationId":"d",
             "idempotency":{{"kind":"credit","key":"\u0000","fingerprint":"{}","eventCount":1}}}}"#,
        "a7".repeat(32)
    );
    let rubbish = [
        ("Wallet\0Credited", "{}", ours.to_owned()),
        ("Wallet\"Credited", "not even JSON", String::new()),
        ("WalletCredited", "\0", "\0".to_owned()),
        ("WalletCredited", "{}", year("-200000")),
        ("WalletCredited", "{}", year("+262000")),
        ("WalletCredited", r#"{"amount":"1.00","balance":"1.00","currency":"USD"}"#, key),
    ];
    for (number, (kind, data, metadata)) in rubbish.iter().enumerate() {
        let stream = format!("wallet-w{number}");
        world.store.keep(&stream, "WalletCreated", r#"{"ownerId":"owner","currency":"USD"}"#, ours);
        world.store.keep(&stream, kind, data, metadata);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let wallex = Wallex::open(config(&world, &directory, true)).await.expect("a wallex");
    wallex.execute(opening("good", 1_000)).await.expect("an answer");
    let answer = wallex.execute(Command::credit(id("good"), "1.00")).await.expect("an answer");
    wallex.projected(answer.position, PATIENCE).await.expect("ledger and read model in time");
    let posted = "SELECT count(*) FROM ledger_postings WHERE account = 'wallet/good'";
    assert_eq!(world.database.number(posted).await, 2);
    assert_eq!(world.database.number("SELECT count(*) FROM events").await, rubbish.len() as i64 * 2 + 3);
    let shown = "SELECT count(payload::text) + count(metadata::text) FROM outbox";
    assert_eq!(world.database.number(shown).await, 2 * (rubbish.len() as i64 * 2 + 3), "operators see all of it");
    // The last one is sound but for its key, which nobody can have used.
    let parked = lag::report(wallex.database(), None).await.expect("a report").parked;
    let mut wallets: Vec<_> = parked.iter().filter_map(|parked| parked.wallet_id.as_deref()).collect();
    wallets.sort_unstable();
    wallets.dedup();
    assert_eq!(wallets, ["w0", "w1", "w2", "w3", "w4"], "{parked:?}");
    assert!(wallex.execute(Command::credit(id("w5"), "1.00")).await.is_ok());
    wallex.close().await;
}
