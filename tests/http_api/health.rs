//! The health routes, with everything there and with things away.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use wallex::embedded::EmbeddedBroker;
use wallex::http::Limits;
use wallex::kafka::{EVENTS_TOPIC, KafkaConfig};
use wallex::log::{MemoryLog, PostgresLog};
use wallex::postgres::{Database, sqlx};
use wallex::sequencer::SequencerOptions;

use crate::support::{GatedLog, Server, fresh_database, fresh_database_url};

/// Stands between a server and PostgreSQL, and can fall silent.
struct Proxy {
    directory: tempfile::TempDir,
    silent: watch::Sender<bool>,
}

impl Proxy {
    /// In front of the socket directory that `url` names; also returns the URL that leads through it.
    fn before(url: &str) -> (Self, String) {
        let host = url.split_once("host=").expect("a socket directory").1.split('&').next().expect("a value");
        let real = PathBuf::from(host.replace("%2F", "/")).join(".s.PGSQL.5432");
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join(".s.PGSQL.5432");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (silent, heard) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Self::pass(client, real.clone(), heard.clone()));
            }
        });
        let through = url.replace(host, path_text(directory.path()));
        (Proxy { directory, silent }, through)
    }

    async fn pass(mut client: UnixStream, real: PathBuf, mut silent: watch::Receiver<bool>) {
        let mut server = UnixStream::connect(&real).await.expect("PostgreSQL answers");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
            _ = silent.wait_for(|silent| *silent) => {}
        }
        // It keeps the connection and says nothing any more: the worst way of being away.
        std::future::pending().await
    }

    fn fall_silent(&self) {
        self.silent.send_replace(true);
        assert!(self.directory.path().exists());
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

const ALL: [&str; 8] = [
    "/health/live",
    "/health/ready",
    "/ledger/health",
    "/users/health",
    "/integration/health",
    "/health/kafka",
    "/health/kafka/stats",
    "/health/progress",
];

#[tokio::test]
async fn with_everything_there_but_a_broker_all_but_the_integration_are_well() {
    let database = fresh_database().await;
    let log = PostgresLog::new(database.clone());
    let server = Server::on(log, Limits::default(), SequencerOptions::default(), database).await;
    for path in ALL {
        let answer = server.client.get(path).await;
        if path == "/integration/health" {
            assert!(answer.is_error(503, "UNAVAILABLE").contains("/health/kafka"));
        } else {
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        }
    }
    // It repeats what was found last, which the routes above have asked for.
    assert_eq!(server.client.get("/health/ready").await.text, r#"{"status":"ok","kafka":"unhealthy"}"#);
}

#[tokio::test]
async fn the_state_of_kafka_is_told_with_the_outbox_and_each_groups_lag() {
    let server = Server::start().await;
    let kafka = server.client.get("/health/kafka").await;
    assert_eq!(kafka.status, 200);
    let fields: Vec<&String> = kafka.json.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["kafka", "lag", "outbox", "producer", "state", "status"]);
    assert_eq!(kafka.json["status"], "unhealthy");
    assert_eq!(kafka.json["producer"]["connected"], false);
    assert_eq!(kafka.json["kafka"]["status"], "disconnected");
    let outbox = serde_json::json!({
        "state": "brokerAway", "relay": "absent", "reason": "no relay has run yet", "depth": 0, "oldestAgeMs": null
    });
    assert_eq!(kafka.json["outbox"], outbox);
    let groups: Vec<&str> = kafka.json["lag"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|lag| lag["group"].as_str().expect("text"))
        .collect();
    assert_eq!(groups, ["ledger-projector", "read-model-projector"]);

    let progress = server.client.get("/health/progress").await;
    assert_eq!((progress.status, progress.json["head"].as_i64()), (200, Some(0)), "{}", progress.text);
}

#[tokio::test]
async fn a_broker_that_answers_is_healthy_until_it_is_gone_or_events_do_not_reach_it() {
    let broker = EmbeddedBroker::start(&[(EVENTS_TOPIC, 10)]).expect("a broker");
    let database = fresh_database().await;
    let (log, options) = (PostgresLog::new(database.clone()), SequencerOptions::default());
    let kafka = Some(KafkaConfig::new(broker.bootstrap_servers()));
    let server = Server::with_broker(log, Limits::default(), options, database, kafka).await;

    let well = server.client.get("/health/kafka").await;
    assert_eq!(well.json["status"], "healthy", "{}", well.text);
    assert_eq!(
        (&well.json["producer"]["connected"], &well.json["kafka"]["status"]),
        (&true.into(), &"connected".into())
    );
    assert_eq!(server.client.get("/integration/health").await.status, 200);

    // No relay runs here, so what is written stays in the outbox.
    server.open("w", "1").await;
    let young = server.client.get("/health/kafka").await;
    assert_eq!(
        (&young.json["status"], &young.json["outbox"]["depth"]),
        (&"healthy".into(), &2.into()),
        "{}",
        young.text
    );
    assert_eq!((&young.json["state"], &young.json["outbox"]["state"]), (&"moving".into(), &"moving".into()));
    for statement in [
        "UPDATE events SET recorded_at = recorded_at - interval '61 seconds'",
        "UPDATE relay_checkpoint SET moved_at = moved_at - interval '61 seconds'",
    ] {
        sqlx::query(statement).execute(server.database.pool()).await.expect("time passes");
    }
    let old = server.client.get("/health/kafka").await;
    assert_eq!((old.status, &old.json["status"]), (200, &"unhealthy".into()), "{}", old.text);
    assert!(old.json["outbox"]["oldestAgeMs"].as_i64().expect("an age") >= 61_000);
    assert_eq!((&old.json["state"], &old.json["outbox"]["state"]), (&"stuck".into(), &"stuck".into()));
    // The same judgement everywhere, and commands are taken all the same.
    let ready = server.client.get("/health/ready").await;
    assert_eq!((ready.status, &ready.json["kafka"]), (200, &"unhealthy".into()), "{}", ready.text);
    let stats = server.client.get("/health/kafka/stats").await;
    assert_eq!((&stats.json["total"]["state"], &stats.json["total"]["needsHelp"]), (&"stuck".into(), &true.into()));
    server.client.get("/integration/health").await.is_error(503, "UNAVAILABLE");

    drop(broker);
    let gone = server.client.get("/health/kafka").await;
    assert_eq!((gone.status, &gone.json["kafka"]["status"]), (200, &"disconnected".into()), "{}", gone.text);
    assert_eq!(gone.json["outbox"]["depth"], 2);
}

#[tokio::test]
async fn asking_whether_commands_are_taken_makes_no_event_even_of_a_wallet_by_that_name() {
    let server = Server::start().await;
    server.open("readiness", "5").await;
    for _ in 0..3 {
        assert_eq!(server.client.get("/health/ready").await.status, 200);
    }
    assert_eq!(server.state_of("readiness").await, ("5".to_owned(), 1));
}

#[tokio::test]
async fn a_write_path_that_is_stuck_is_not_ready() {
    let log = GatedLog::closed();
    let limits = Limits { health_deadline: Duration::from_millis(200), ..Limits::default() };
    let server = Server::on(log.clone(), limits, SequencerOptions::default(), fresh_database().await).await;
    let client = server.client.clone();
    let stuck = tokio::spawn(async move { client.post("/wallets", r#"{"walletId":"w","ownerId":"o"}"#).await });
    log.an_append_waits().await;

    server.client.get("/health/ready").await.is_error(503, "UNAVAILABLE");
    assert_eq!(server.client.get("/health/live").await.status, 200);

    log.let_through();
    assert_eq!(stuck.await.expect("a task").status, 201);
    assert_eq!(server.client.get("/health/ready").await.status, 200, "it is well again");
}

#[tokio::test]
async fn a_database_that_falls_silent_is_503_in_time_on_every_route_that_needs_it() {
    let (proxy, url) = Proxy::before(&fresh_database_url().await);
    let database = Database::connect(&url, 4).await.expect("the database answers");
    let limits = Limits { read_deadline: Duration::from_millis(1_000), ..Limits::default() };
    let server = Server::on(MemoryLog::new(), limits, SequencerOptions::default(), database).await;
    assert_eq!(server.client.get("/health/ready").await.status, 200);
    proxy.fall_silent();

    let reads = ["/wallets", "/ledger/transactions", "/ledger/wallet/w", "/ledger/wallet/w/summary"];
    let mut answers = JoinSet::new();
    for path in ALL.into_iter().filter(|path| *path != "/health/live").chain(reads) {
        let client = server.client.clone();
        answers.spawn(async move {
            let asked = Instant::now();
            (path, client.get(path).await, asked.elapsed())
        });
    }
    for (path, answer, took) in answers.join_all().await {
        answer.is_error(503, "UNAVAILABLE");
        assert!(took < Duration::from_secs(3), "{path} took {took:?}");
    }
    assert_eq!(server.client.get("/health/live").await.status, 200);
    server.open("w", "5").await;
    assert_eq!(server.state_of("w").await, ("5".to_owned(), 1), "commands need the log alone");
}
