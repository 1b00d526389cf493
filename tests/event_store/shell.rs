//! What is told to `wallex` about the event store, and what it tells.

use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kurrentdb_server::KurrentServer;
use crate::load::{Callers, Load, get};
use crate::process::{Serve, room, run, wallex};

pub const PATIENCE: Duration = Duration::from_secs(60);

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// It could not run: exit code 2, nothing on stdout, and one line that holds all of `words`.
pub fn assert_one_clear_line(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
    assert!(!said.contains("secret-word"), "{said}");
}

#[test]
fn an_address_that_is_none_is_refused_in_one_line_that_tells_no_secret() {
    let room = room();
    let place = room.path().join("data").to_str().expect("UTF-8").to_owned();
    let file = room.path().join("wallex.toml").to_str().expect("UTF-8").to_owned();
    std::fs::write(&file, "event-store = \"esdb://u:secret-word@h?tls=perhaps\"").expect("a file");
    let (like, host) = ("esdb://user:password@host:2113", "esdb://u:secret-word@host:port");
    assert_one_clear_line(&run(&["serve", "--data-dir", &place, "--event-store", host]), &[like]);
    assert_one_clear_line(&run(&["lag", "--data-dir", &place, "--event-store", "mysql://u:secret-word@h"]), &[like]);
    assert_one_clear_line(&run(&["--config", &file, "serve", "--data-dir", &place]), &[like]);
    let environment = |verb: &[&str]| {
        let mut command = wallex(&[verb, &["--data-dir", &place]].concat());
        command.env("WALLEX_EVENT_STORE", host).output().expect("wallex runs")
    };
    assert_one_clear_line(&environment(&["relay"]), &[like]);
    let authority = "esdb://u:secret-word@h?tlsCAFile=/nowhere/ca.pem";
    assert_one_clear_line(&run(&["serve", "--data-dir", &place, "--event-store", authority]), &["/nowhere/ca.pem"]);
    // The client would panic over these.
    for (name, text, reason) in [
        ("no", "not a certificate", "holds no certificate"),
        ("cut", "-----BEGIN CERTIFICATE-----\nMIIC", "tlsCAFile"),
        ("odd", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "tlsCAFile"),
    ] {
        let path = room.path().join(name);
        std::fs::write(&path, text).expect("a file");
        let authority = format!("esdb://u:secret-word@h?tlsCAFile={}", path.display());
        let said = run(&["serve", "--data-dir", &place, "--event-store", &authority]);
        assert_one_clear_line(&said, &[path.to_str().expect("UTF-8"), reason]);
    }
    let mut without = wallex(&["serve", "--data-dir", &place, "--event-store", "esdb://u:secret-word@h?tls=false"]);
    let without = without.env("SSL_CERT_FILE", "/nowhere/certificates.pem").output().expect("wallex runs");
    assert_one_clear_line(&without, &["/nowhere/certificates.pem", "tlsCAFile"]);
    let help = environment(&["serve", "--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("WALLEX_EVENT_STORE") && !help.contains("secret-word"), "{help}");
    assert!(!std::path::Path::new(&place).exists(), "nothing was begun");
}

/// A `serve` that says where its events are; what it said until it was ready.
fn start(data_dir: &std::path::Path, arguments: &[&str], log: &std::path::Path) -> (Serve, String) {
    let mut command = wallex(&["serve", "--listen", "127.0.0.1:0", "--log", "error"]);
    command.args(arguments).stderr(std::fs::File::create(log).expect("a file")).stdout(Stdio::null());
    let serve = Serve::start_as(data_dir, command);
    let said = || std::fs::read_to_string(log).expect("text");
    let begun = Instant::now();
    // The note by which it is found is written before it speaks.
    while !said().contains("serving http") {
        assert!(begun.elapsed() < PATIENCE, "{}", said());
        std::thread::sleep(Duration::from_millis(10));
    }
    (serve, said())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serve_says_where_its_events_are_and_how_far_their_copy_is() {
    let (room, mut store) = (room(), KurrentServer::start());
    let address = format!("esdb://wallex:secret-word@{}?tls=false", store.address());
    let shown = format!("esdb://wallex:***@{}?tls=false", store.address());
    let (serve, said) = start(&room.path().join("data"), &["--event-store", &address], &room.path().join("said"));
    assert!(said.contains(&format!("events: in KurrentDB at {shown}; the database has a copy")), "{said}");
    let ask = |arguments: &[&str]| run(&[arguments, &["--data-dir", serve.data_dir(), "-o", "json"]].concat());
    assert_eq!(json(&ask(&["status"]))["eventStore"], shown.as_str());
    let told = run(&["status", "--data-dir", serve.data_dir()]);
    assert!(String::from_utf8_lossy(&told.stdout).contains(&format!("in KurrentDB at {shown}")));

    let mut load = Load::start(7, Callers::Patient, vec![serve.info.url.clone()]).await;
    load.until_acknowledged(50).await;
    load.end().await;
    until_at_rest(&serve).await;
    let progress = get_until(&serve, "/health/progress", |progress| {
        let at = &progress["eventStore"];
        at["head"].as_i64().is_some_and(|head| head > 0) && at["head"] == at["copied"]
    });
    let at = &progress.await["eventStore"];
    let is_well = |kafka: &Value| kafka["status"] == "healthy" && kafka["ingest"]["state"] == "idle";
    get_until(&serve, "/health/kafka", is_well).await;
    // Whoever asks beside it need not name the store.
    let lag = ask(&["lag", "--max", "0"]);
    assert!(lag.status.success(), "{}{}", json(&lag), stderr(&lag));
    assert_eq!(json(&lag)["ingest"]["events"], 0);
    let table = run(&["lag", "--data-dir", serve.data_dir()]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("ingest"));
    assert_eq!(json(&ask(&["transfers", "--pending"])), serde_json::json!([]));
    load.prove(&serve).await;

    store.kill();
    let is_away = |kafka: &Value| kafka["status"] == "unhealthy" && kafka["state"] == "storeAway";
    get_until(&serve, "/health/kafka", is_away).await;
    let progress = get(&serve, "/health/progress").await;
    assert!(progress["eventStore"]["head"].is_null() && progress["eventStore"]["copied"] == at["copied"]);
    let lag = ask(&["lag", "--max", "1000"]);
    assert_eq!((lag.status.code(), &json(&lag)["ingest"]["store"]["connected"]), (Some(1), &false.into()));
    assert!(!said.contains("secret-word") && !stderr(&lag).contains("secret-word"));
    store.start_again();
    until_at_rest(&serve).await;
}

/// Asks until the answer is as it has to be: on a busy machine the store may well be taken for away.
pub async fn get_until(serve: &Serve, path: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let answer = get(serve, path).await;
        if is_right(&answer) {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{path}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the copy has everything and no money is on its way.
pub async fn until_at_rest(serve: &Serve) {
    let begun = Instant::now();
    loop {
        // The shell's, which has more patience with a busy machine than the route.
        let lag = run(&["lag", "-o", "json", "--log", "error", "--data-dir", serve.data_dir()]);
        let ingest = &json(&lag)["ingest"];
        if ingest["events"] == 0 && ingest["inTransit"]["transfers"] == 0 {
            return;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "it does not come to rest: {ingest}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn events_have_one_home_from_the_first_start_on_though_nothing_was_written() {
    let (room, store) = (room(), KurrentServer::start());
    for (name, first, then, words) in [
        ("a", &["--event-store", &store.connection_string()][..], &[][..], ["--event-store", "copy"]),
        ("b", &[], &["--event-store", &store.connection_string()], ["database itself", "WALLEX_EVENT_STORE"]),
    ] {
        let data_dir = room.path().join(name);
        let serve = Serve::start_with(&data_dir, first);
        let place = serve.data_dir().to_owned();
        assert_eq!(serve.stop(Signal::SIGTERM), 143);
        let refused =
            run(&[&["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir", &place], then].concat());
        assert_one_clear_line(&refused, &words);
        // It goes on as it was.
        assert_eq!(Serve::start_with(&data_dir, first).stop(Signal::SIGTERM), 143);
    }
    assert!(store.log().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_in_a_process_of_its_own_goes_on_copying_when_the_web_process_is_gone() {
    let (room, store) = (room(), KurrentServer::start());
    let whole =
        Serve::start_with(&room.path().join("whole"), &["--only", "http", "--event-store", &store.connection_string()]);
    let elsewhere = room.path().join("web");
    let place = ["--database-url", &whole.info.database_url, "--kafka-brokers", &whole.info.kafka_brokers];
    let at_store = ["--event-store", &store.connection_string()];
    // Not told of the store, it would write to the database; a relay that is told of one copies.
    let place_of_its_own = elsewhere.to_str().expect("UTF-8");
    let refused =
        run(&[&["serve", "--only", "http", "--listen", "127.0.0.1:0", "--data-dir", place_of_its_own], &place[..]]
            .concat());
    assert_one_clear_line(&refused, &["--event-store"]);
    let relay = [&["relay", "--data-dir", place_of_its_own, "--log", "error"], &place[..], &at_store].concat();
    let _relay = crate::process::Part::start(&relay);
    let mut load = Load::start(3, Callers::Patient, vec![whole.info.url.clone()]).await;
    load.until_acknowledged(30).await;
    load.end().await;
    until_at_rest(&whole).await;
    let stats = get(&whole, "/health/kafka/stats").await;
    assert!(stats["outbox"]["head"].as_i64().is_some_and(|head| head > 30), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_denies_access_is_told_in_one_line_and_waited_for_by_who_was_let_in_before() {
    const RIGHT: &str = "Basic YWRtaW46c2VjcmV0LXdvcmQ="; // admin:secret-word
    const OTHER: &str = "Basic YWRtaW46YW5vdGhlci13b3Jk"; // admin:another-word
    let (room, store) = (room(), KurrentServer::start());
    store.let_in_only(OTHER);
    let address = format!("esdb://admin:secret-word@{}?tls=false", store.address());
    let place = room.path().join("data").to_str().expect("UTF-8").to_owned();
    let start = ["serve", "--listen", "127.0.0.1:0", "--log", "error", "--data-dir", &place];
    let refused = run(&[&start, &["--event-store", &address][..]].concat());
    assert_one_clear_line(&refused, &["denies access", "--event-store", "admin:***@"]);
    // Nothing was settled by it: the events may still be anywhere.
    store.let_in_only(RIGHT);
    let serve = Serve::start_with(room.path().join("data").as_path(), &["--event-store", &address]);
    let client = reqwest::Client::new();
    let create = async |name: &str| {
        let body = serde_json::json!({"walletId": name, "ownerId": "o"});
        let answer = client.post(format!("{}/wallets", serve.info.url)).json(&body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("JSON"))
    };
    assert_eq!(create("before").await.0, 201);
    until_at_rest(&serve).await;
    // The password is changed there; whoever is in the midst of a call may end it.
    store.let_in_only(OTHER);
    store.cut_connections();
    let (status, answer) = create("meanwhile").await;
    assert_eq!((status, &answer["code"]), (503, &"UNAVAILABLE".into()), "{answer}");
    let is_away = |kafka: &Value| kafka["state"] == "storeAway" && kafka.to_string().contains("denies access");
    get_until(&serve, "/health/kafka", is_away).await;
    store.let_in_only(RIGHT);
    assert_eq!(create("after").await.0, 201);
    until_at_rest(&serve).await;
    get_until(&serve, "/health/kafka", |kafka| kafka["status"] == "healthy").await;
}
