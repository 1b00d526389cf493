//! What operators see of an event store that is away, and of one that is another than was copied.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::kurrentdb_server::KurrentServer;
use crate::load::{Callers, Load, get};
use crate::process::{Serve, room, run};
use crate::shell::{PATIENCE, assert_one_clear_line, get_until, until_at_rest};

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client")
}

async fn ready(serve: &Serve) -> (u16, Value) {
    let answer = client().get(format!("{}/health/ready", serve.info.url)).send().await.expect("an answer");
    (answer.status().as_u16(), answer.json().await.expect("JSON"))
}

async fn until_ready_is(serve: &Serve, status: u16) {
    let begun = Instant::now();
    loop {
        let (found, body) = ready(serve).await;
        if found == status {
            assert_eq!(body["code"] == "UNAVAILABLE", status == 503, "{body}");
            return;
        }
        assert!([200, 503].contains(&found) && begun.elapsed() < PATIENCE, "{found}: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn credit(serve: &Serve, wallet: &str) -> u16 {
    let url = format!("{}/wallets/{wallet}/credit", serve.info.url);
    client().post(url).json(&json!({ "amount": 1 })).send().await.expect("an answer").status().as_u16()
}

async fn open(serve: &Serve, wallet: &str) -> u16 {
    let body = json!({ "walletId": wallet, "ownerId": "owner" });
    let posting = client().post(format!("{}/wallets", serve.info.url)).json(&body);
    posting.send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serve_is_not_ready_while_the_event_store_is_away_or_silent_and_is_again_afterwards() {
    let (room, mut store) = (room(), KurrentServer::start());
    let serve = Serve::start_with(&room.path().join("data"), &["--event-store", &store.connection_string()]);
    until_ready_is(&serve, 200).await;
    // Also where the wallet that readiness asks for is known by then.
    for _ in 0..2 {
        store.kill();
        until_ready_is(&serve, 503).await;
        assert_eq!(get(&serve, "/health/live").await["status"], "ok", "a restart would not help");
        store.start_again();
        until_ready_is(&serve, 200).await;
    }
    store.be_silent(true);
    until_ready_is(&serve, 503).await;
    store.be_silent(false);
    until_ready_is(&serve, 200).await;
    assert!(store.log().is_empty(), "it was asked, and nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_store_than_was_copied_takes_no_command_while_running_and_is_refused_at_the_start() {
    let (room, store) = (room(), KurrentServer::start());
    let data_dir = room.path().join("data");
    let at_store = ["--event-store", &store.connection_string()];
    let serve = Serve::start_with(&data_dir, &at_store);
    let place = serve.data_dir().to_owned();
    let mut load = Load::start(11, Callers::Patient, vec![serve.info.url.clone()]).await;
    load.until_acknowledged(50).await;
    load.end().await;
    until_at_rest(&serve).await;
    let other = KurrentServer::start();
    other.fill(400, 2);
    store.exchange_with(&other);
    let is_another = |kafka: &Value| kafka["status"] == "unhealthy" && kafka["state"] == "anotherStore";
    let kafka = get_until(&serve, "/health/kafka", is_another).await;
    let reason = kafka["ingest"]["store"]["error"].as_str().expect("a reason");
    assert!(reason.contains("is not the one that this database has a copy of"), "{reason}");
    until_ready_is(&serve, 503).await;
    // Neither to a wallet that is there nor to one that would be new there.
    let answers = tokio::join!(credit(&serve, "wallet-1"), open(&serve, "new"));
    assert_eq!(answers, (503, 503));
    assert_eq!(store.log().len(), 400, "nothing was written there");
    let lag = run(&["lag", "--max", "1000", "-o", "json", "--data-dir", &place]);
    let lag: Value = serde_json::from_slice(&lag.stdout).expect("JSON");
    assert_eq!((&lag["ingest"]["state"], &lag["total"]["needsHelp"]), (&"anotherStore".into(), &true.into()));

    assert_eq!(serve.stop(Signal::SIGTERM), 143);
    let words = ["is not the one that this database has a copy of", "wallet wallet-", "empty database"];
    for verb in [&["serve", "--listen", "127.0.0.1:0"][..], &["loadtest", "--wallets", "2", "--operations", "2"]] {
        let refused = run(&[verb, &["--log", "off", "--data-dir", &place], &at_store[..]].concat());
        if verb[0] == "serve" {
            assert_one_clear_line(&refused, &words);
        } else {
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(2) && said.contains(words[0]), "{said}");
        }
    }
    // The right one again: it goes on as if nothing had been.
    store.exchange_with(&other);
    let serve = Serve::start_with(&data_dir, &at_store);
    until_ready_is(&serve, 200).await;
    until_at_rest(&serve).await;
    load.prove(&serve).await;
    store.exchange_with(&other);
    get_until(&serve, "/health/kafka", is_another).await;
    store.exchange_with(&other);
    until_ready_is(&serve, 200).await;
    assert_eq!(open(&serve, "new").await, 201);
    assert_eq!(other.log().len(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_with_events_is_moved_from_neither_home_to_the_other() {
    let (room, store) = (room(), KurrentServer::start());
    let at_store = ["--event-store", &store.connection_string()];
    let directions = [
        (&at_store[..], &[][..], ["--event-store", "copy"]),
        (&[], &at_store, ["database itself", "WALLEX_EVENT_STORE"]),
    ];
    for (number, (first, then, words)) in directions.into_iter().enumerate() {
        let data_dir = room.path().join(number.to_string());
        let serve = Serve::start_with(&data_dir, first);
        assert_eq!((open(&serve, "w").await, credit(&serve, "w").await), (201, 201));
        let (place, events) = (serve.data_dir().to_owned(), store.log().len());
        assert_eq!(serve.stop(Signal::SIGTERM), 143);
        let serving = ["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir", &place];
        assert_one_clear_line(&run(&[&serving[..], then].concat()), &words);
        let environment =
            crate::process::wallex(&serving).envs(then.get(1).map(|address| ("WALLEX_EVENT_STORE", *address))).output();
        assert_one_clear_line(&environment.expect("wallex runs"), &words);
        assert_eq!(store.log().len(), events, "nothing was written where it does not belong");
        let serve = Serve::start_with(&data_dir, first);
        assert_eq!(get(&serve, "/wallets/w").await["balance"], 1);
        // A load test of its own would write as well.
        assert_eq!(serve.stop(Signal::SIGTERM), 143);
        let load = ["loadtest", "--wallets", "2", "--operations", "2", "--data-dir", &place, "--log", "error"];
        let refused = run(&[&load[..], then].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && words.iter().all(|word| said.contains(word)), "{said}");
        assert_eq!(store.log().len(), events);
    }
}
