//! Nobody else is at work: what a rebuild makes, shows, keeps and refuses.

use wallex::postgres::{Database, sqlx};

use crate::support::TestServer;
use crate::world::World;
use crate::{fill, project, project_json, settled, stderr, stdout, table_number};

/// Everything about a table that a swap must not change, as text.
async fn shape(world: &World, table: &str) -> Vec<String> {
    let statement = "
        SELECT 'index ' || pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1::regclass
        UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint
                   WHERE conrelid = $1::regclass
        UNION ALL SELECT format('column %s %s %s %s', attnum, attname, atttypid::regtype, attcollation) FROM pg_attribute
                   WHERE attrelid = $1::regclass AND attnum > 0
        UNION ALL SELECT format('options %s, rights %s, owner %s', reloptions, relacl, relowner) FROM pg_class
                   WHERE oid = $1::regclass
        ORDER BY 1";
    sqlx::query_scalar(statement).bind(table).fetch_all(world.database.database.pool()).await.expect("a shape")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_what_the_log_says_is_swapped_and_the_old_one_kept_until_it_is_dropped() {
    let world = settled(41).await;
    world.database.run("CREATE ROLE auditor").await;
    for (projection, table) in [("ledger", "ledger_postings"), ("read-model", "read_model_wallets")] {
        world.database.run(&format!("GRANT SELECT ON {table} TO auditor")).await;
        world.database.run(&format!("GRANT UPDATE (currency) ON {table} TO auditor WITH GRANT OPTION")).await;
        let (live, before) = (table_number(&world, table).await, shape(&world, table).await);
        let rows = world.database.number(&format!("SELECT count(*) FROM {table}")).await;

        let (code, made) = project_json(&world, &[projection, "--rebuild"]);
        assert_eq!((code, &made["swapped"], &made["differing"]), (Some(0), &true.into(), &0.into()), "{made}");
        assert_eq!((&made["events"], &made["rows"]), (&world.head().into(), &rows.into()), "{made}");
        assert_eq!(made["kept"], format!("wallex_previous.{table}"));
        assert_ne!(table_number(&world, table).await, live);
        assert_eq!(table_number(&world, &format!("wallex_previous.{table}")).await, live);
        assert_eq!(shape(&world, table).await, before);

        // There is room for one that is kept, and it is nobody else's to drop.
        let again = project(&world, &[projection, "--rebuild"]);
        assert_eq!(again.status.code(), Some(2));
        assert!(stderr(&again).contains("--drop-previous --execute"), "{}", stderr(&again));
        let plan = project(&world, &[projection, "--drop-previous"]);
        assert!(stdout(&plan).contains(&format!("wallex_previous.{table}")) && stdout(&plan).contains("--execute"));
        let (code, dropped) = project_json(&world, &[projection, "--drop-previous", "--execute"]);
        assert_eq!((code, &dropped["dropped"]), (Some(0), &true.into()));
        let (_, nothing) = project_json(&world, &[projection, "--drop-previous", "--execute"]);
        assert_eq!((&nothing["kept"], &nothing["dropped"]), (&serde_json::Value::Null, &false.into()));
        let again = project(&world, &[projection, "--rebuild"]);
        assert!(again.status.success(), "{}", stderr(&again));
        assert!(stdout(&again).contains("No row differs"), "{}", stdout(&again));
    }
    world.assert_ledger_and_read_model().await;
    world.database.run("DROP OWNED BY auditor").await;
    world.database.run("DROP ROLE auditor").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_would_change_are_shown_and_only_execute_changes_them() {
    let world = settled(42).await;
    let posting = "SELECT max(position) FROM ledger_postings WHERE leg = 0 AND account = 'wallet/wallet-1'";
    let posting = world.database.number(posting).await;
    let balance = format!("SELECT balance_after FROM ledger_postings WHERE position = {posting} AND leg = 0");
    let right = world.database.number(&balance).await;
    world
        .database
        .run(&format!("UPDATE ledger_postings SET balance_after = 123456 WHERE position = {posting} AND leg = 0"))
        .await;
    let lost = "SELECT min(position) FROM ledger_postings WHERE leg = 0 AND account = 'wallet/wallet-2'";
    let lost = world.database.number(lost).await;
    world.database.run(&format!("DELETE FROM ledger_postings WHERE position = {lost}")).await;
    let live = table_number(&world, "ledger_postings").await;

    let shown = project(&world, &["ledger", "--rebuild"]);
    let text = stdout(&shown);
    assert_eq!(shown.status.code(), Some(1), "{text}{}", stderr(&shown));
    let cents = format!("{}.{:02} USD", right / 100, right % 100);
    for word in
        ["3 rows differ", "wallet/wallet-1", "balance_after", "1234.56 USD", &cents, "wallet/wallet-2", "--execute"]
    {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    assert_eq!(table_number(&world, "ledger_postings").await, live, "nothing was changed");
    assert_eq!(
        world
            .database
            .number("SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('wallex_rebuild')")
            .await,
        0
    );

    let (code, made) = project_json(&world, &["ledger", "--rebuild", "--execute"]);
    assert_eq!((code, &made["differing"], &made["swapped"]), (Some(0), &3.into(), &true.into()), "{made}");
    let first = &made["differences"][0];
    assert_eq!(
        (&first["wallet"], &first["row"]),
        (&"external/USD".into(), &format!("position {lost}, leg 1").into()),
        "{made}"
    );
    assert_eq!(
        world
            .database
            .number(&format!(
                "SELECT balance_after FROM wallex_previous.ledger_postings WHERE position = {posting} AND leg = 0"
            ))
            .await,
        123_456
    );

    world.database.run("UPDATE read_model_wallets SET balance = balance + 1 WHERE wallet_id = 'wallet-5'").await;
    world.database.run("INSERT INTO read_model_wallets SELECT 'nobody', owner_id, currency, 7, status, version, position, created_at, updated_at FROM read_model_wallets WHERE wallet_id = 'wallet-6'").await;
    let (code, made) = project_json(&world, &["read-model", "--rebuild"]);
    assert_eq!((code, &made["differing"], &made["swapped"]), (Some(1), &2.into(), &false.into()), "{made}");
    let (code, _) = project_json(&world, &["read-model", "--rebuild", "--execute"]);
    assert_eq!(code, Some(0));
    world.assert_ledger_and_read_model().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_left_out_as_the_live_table_leaves_it_out() {
    let mut world = World::new(43).await;
    let topic = crate::Topic::new();
    world.open((0..20).map(|number| format!("wallet-{number}"))).await;
    world.operate(200).await;
    let poison = world.credit("wallet-3").await;
    world.operate(200).await;
    world.database.run(&format!("UPDATE events SET event_type = 'WalletFrozen' WHERE position = {poison}")).await;
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(wallex::projection::LedgerProjection::new(), &topic);
    world.through(wallex::projection::LEDGER_PROJECTOR, world.head()).await;
    ledger.stop().await;
    let parked = world.database.number("SELECT count(*) FROM parked_records").await;
    assert!(parked > 1);
    let (code, made) = project_json(&world, &["ledger", "--rebuild"]);
    assert_eq!((code, &made["parked"], &made["differing"]), (Some(0), &parked.into(), &0.into()), "{made}");
    assert_eq!(made["events"], world.head() - parked);
    assert_eq!(world.database.number("SELECT count(*) FROM parked_records").await, parked);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_applied_any_more_is_named_and_nothing_changes() {
    let world = settled(44).await;
    let live = table_number(&world, "read_model_wallets").await;
    let broken = "SELECT max(e.position) FROM events e JOIN streams s USING (stream_id) WHERE s.name = 'wallet-4'";
    let broken = world.database.number(broken).await;
    world.database.run(&format!("UPDATE events SET event_version = 99 WHERE position = {broken}")).await;
    let refused = project(&world, &["read-model", "--rebuild"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains(&format!("position {broken}, of wallet wallet-4")), "{}", stderr(&refused));
    // Its revision no longer follows: that is the projection's own refusal.
    world
        .database
        .run(&format!("UPDATE events SET event_version = 1, revision = revision + 7 WHERE position = {broken}"))
        .await;
    let refused = project(&world, &["read-model", "--rebuild"]);
    assert!(stderr(&refused).contains(&format!("position {broken}, of wallet wallet-4")), "{}", stderr(&refused));
    assert_eq!(table_number(&world, "read_model_wallets").await, live);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_in_another_schema_stay_there() {
    let mut database = TestServer::shared().await.database().await;
    database.run("ALTER SCHEMA public RENAME TO app").await;
    let name = database.url.rsplit('/').next().and_then(|rest| rest.split('?').next()).expect("a name").to_owned();
    database.run(&format!("ALTER DATABASE {name} SET search_path = app")).await;
    database.database = Database::connect(&database.url, 5).await.expect("a connection");
    let mut world = World::on(database, 45).await;
    fill(&mut world).await;
    let (code, made) = project_json(&world, &["ledger", "--rebuild"]);
    assert_eq!((code, &made["swapped"]), (Some(0), &true.into()), "{made}");
    assert!(table_number(&world, "app.ledger_postings").await > 0);
    world.assert_ledger_and_read_model().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hangs_on_the_table_itself_is_named_instead_of_being_left_behind() {
    let world = settled(46).await;
    world
        .database
        .run("CREATE VIEW busy_accounts AS SELECT account, count(*) FROM ledger_postings GROUP BY account")
        .await;
    let refused = project(&world, &["ledger", "--rebuild"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("view busy_accounts"), "{}", stderr(&refused));
    for wrong in [&["--rebuild"][..], &["ledger", "--execute"], &["ledger", "--rebuild", "--drop-previous"]] {
        assert_eq!(project(&world, wrong).status.code(), Some(2), "{wrong:?}");
    }
}
