//! The command line: exit codes, one clear line where something is wrong, and JSON with a stable schema.

mod process;

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use process::{Serve, room, run, wallex};
use serde_json::Value;
use wallex::embedded::DataDir;

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// It could not run: exit code 2, nothing on stdout, and one line that holds all of `words`.
fn assert_one_clear_line(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.matches("os error").count() <= 1, "said twice: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[test]
fn what_cannot_run_says_so_in_one_line_and_exits_with_2() {
    let room = room();
    let path = |name: &str| room.path().join(name).to_str().expect("UTF-8").to_owned();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").to_string();
    assert_one_clear_line(&run(&["serve", "--data-dir", &path("a"), "--listen", &port]), &[&port, "--listen"]);

    std::fs::write(path("file"), "").expect("a file");
    let below_a_file = format!("{}/data", path("file"));
    assert_one_clear_line(
        &run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", &below_a_file]),
        &[&path("file"), "--data-dir"],
    );

    let serve = |url: &str| run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", &path("b"), "--database-url", url]);
    assert_one_clear_line(&serve("not a url"), &["postgres://user:password@host:5432/database"]);
    assert_one_clear_line(&serve("mysql://u:secret-word@h/d"), &["postgres://user:password@host:5432/database"]);
    let nobody = format!("postgres://u:secret-word@{port}/d");
    drop(taken);
    let refused = serve(&nobody);
    assert_one_clear_line(&refused, &["cannot connect", "u:***@", "refused", "--database-url"]);
    assert!(!stderr(&refused).contains("secret-word"));

    assert_one_clear_line(&run(&["verify", "--data-dir", &path("empty")]), &["wallex serve", "--database-url"]);
    assert_one_clear_line(&run(&["relay", "--kafka-config", "nonsense"]), &["NAME=VALUE"]);
    std::fs::write(path("wallex.toml"), "lisen = \"x\"").expect("a file");
    assert_one_clear_line(&run(&["--config", &path("wallex.toml"), "status"]), &["lisen", "no option"]);
}

#[test]
fn wrong_usage_names_what_would_be_right() {
    for (arguments, word) in [
        (&["serv"][..], "serve"),
        (&["lag", "--maximum", "3"], "--max"),
        (&["loadtest", "--wallets", "1"], "2"),
        (&["loadtest", "--distribution", "odd"], "uniform"),
        (&["serve", "--only", "web"], "http"),
        (&["serve", "--listen", "somewhere:3000"], "127.0.0.1:3000"),
        (&["project", "ledgers"], "ledger"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(word), "{arguments:?}: {}", stderr(&output));
    }
    for verb in ["serve", "relay", "project", "lag", "status", "verify", "loadtest", "migrate", "topics"] {
        let help = run(&[verb, "--help"]);
        assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains(&format!("wallex {verb}")));
    }
}

#[test]
fn commands_find_the_running_serve_and_answer_in_json() {
    let room = room();
    let serve = Serve::start(&room.path().join("data"));
    let ask = |arguments: &[&str]| run(&[arguments, &["--data-dir", serve.data_dir(), "-o", "json"]].concat());

    let status = ask(&["status"]);
    assert!(status.status.success());
    let expected = "dataDir databaseUrl embeddedKafka embeddedPostgres eventStore eventStorePrefix kafkaBrokers pid ready running startedAt url version";
    assert_eq!(keys(&json(&status)), expected.split(' ').collect());

    let in_use = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", serve.data_dir()]);
    assert_one_clear_line(&in_use, &["in use", &serve.info.pid.to_string()]);

    let load = ask(&["loadtest", "--wallets", "20", "--operations", "300", "--workers", "4", "--seed", "7"]);
    assert!(load.status.success(), "{}", stderr(&load));
    assert_eq!(json(&load)["proof"]["ok"], true);
    assert_eq!(json(&load)["seed"], 7);

    let lag = ask(&["lag", "--max", "0"]);
    assert!(lag.status.success());
    let lag = json(&lag);
    assert_eq!(keys(&lag), BTreeSet::from(["broker", "groups", "outbox", "parked", "topics", "total"]));
    assert_eq!((&lag["parked"], &lag["outbox"]["depth"]), (&serde_json::json!([]), &serde_json::json!(0)));
    let groups = lag["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 2);
    assert!(
        groups
            .iter()
            .all(|group| group["lag"] == 0 && group["partitions"].as_array().is_some_and(|all| all.len() == 10))
    );

    let topics = ask(&["topics", "--apply"]);
    assert!(topics.status.success(), "{}", stderr(&topics));
    assert_eq!(keys(&json(&topics)), BTreeSet::from(["brokers", "ok", "topics"]));

    let verify = ask(&["verify"]);
    assert!(verify.status.success());
    assert_eq!(keys(&json(&verify)), BTreeSet::from(["checks", "ok", "position"]));

    // Again and again, until Ctrl-C.
    let mut watching = wallex(&["lag", "--watch", "1", "-o", "json", "--data-dir", serve.data_dir()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("wallex");
    let told = watching.stdout.take().expect("a pipe");
    let mut reports = serde_json::Deserializer::from_reader(told).into_iter::<Value>();
    for _ in 0..2 {
        let report = reports.next().expect("another report").expect("JSON");
        assert_eq!(keys(&report), keys(&lag));
    }
    let process = nix::unistd::Pid::from_raw(watching.id() as i32);
    nix::sys::signal::kill(process, Signal::SIGINT).expect("a signal");
    assert_eq!(watching.wait().expect("its end").code(), Some(130));

    // A reader that has seen enough is no error.
    let mut closed = wallex(&["lag", "--data-dir", serve.data_dir()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("wallex");
    drop(closed.stdout.take());
    let closed = closed.wait_with_output().expect("its end");
    assert!(closed.status.success() && closed.stderr.is_empty(), "{}", stderr(&closed));
}

#[test]
fn without_a_serve_commands_say_so_or_look_into_the_database_themselves() {
    let room = room();
    let data_dir = room.path().join("data");
    let serve = Serve::start(&data_dir);
    let place = serve.data_dir().to_owned();
    serve.kill();
    // What the killed one has left is known for what it is, and cleared away.
    let status = run(&["status", "--data-dir", &place]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stdout).contains("wallex serve"));
    assert!(!data_dir.join("serve.json").exists());
    let verify = run(&["verify", "--data-dir", &place, "--log", "error"]);
    assert!(verify.status.success(), "{}", stderr(&verify));
    let lag = run(&["lag", "--data-dir", &place, "-o", "json", "--log", "error"]);
    assert_eq!(json(&lag)["broker"]["connected"], false);
    // Nothing is known to wait, but who cannot see the topic does not say that nothing does.
    let lag = run(&["lag", "--max", "1000000", "--data-dir", &place, "--log", "error"]);
    assert_eq!(lag.status.code(), Some(1), "{}", stderr(&lag));
    assert!(String::from_utf8_lossy(&lag.stdout).contains("broker away"));
    assert!(run(&["migrate", "--data-dir", &place, "--log", "error"]).status.success());
}

#[tokio::test]
async fn a_database_of_a_newer_wallex_is_left_alone() {
    use wallex::postgres::{Database, sqlx};
    let room = room();
    let serve = Serve::start(&room.path().join("data"));
    let database = Database::connect(&serve.info.database_url, 1).await.expect("a connection");
    let statement =
        "INSERT INTO _sqlx_migrations SELECT 9999, description, installed_on, success, checksum, execution_time
                       FROM _sqlx_migrations ORDER BY version LIMIT 1";
    sqlx::query(statement).execute(database.pool()).await.expect("a row");
    let url = serve.info.database_url.clone();
    let other = room.path().join("other").to_str().expect("UTF-8").to_owned();
    let refused = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", &other, "--database-url", &url]);
    assert_one_clear_line(&refused, &["9999", "newer wallex"]);
    assert_one_clear_line(&run(&["verify", "--data-dir", serve.data_dir()]), &["9999", "newer wallex"]);
}

#[test]
fn parts_run_in_processes_of_their_own() {
    let room = room();
    let web = Serve::start_with(&room.path().join("data"), &["--only", "http"]);
    // Nobody publishes yet: what is written waits, and `lag` says so.
    let opened = Command::new("python3").args(["-c", OPEN_A_WALLET, &web.info.url]).output().expect("python3 runs");
    assert!(opened.status.success(), "{}", stderr(&opened));
    let lag = |max: &str| run(&["lag", "--max", max, "--data-dir", web.data_dir(), "-o", "json", "--log", "error"]);
    assert_eq!(json(&lag("0"))["outbox"]["depth"], 1);
    assert_eq!((lag("0").status.code(), lag("1").status.code()), (Some(1), Some(0)));
    let mut parts: Vec<_> = [&["relay"][..], &["project", "ledger"], &["project", "read-model"]]
        .iter()
        .map(|part| {
            let arguments = [*part, &["--data-dir", web.data_dir(), "--log", "error"]].concat();
            wallex(&arguments).stderr(Stdio::null()).spawn().expect("wallex runs")
        })
        .collect();
    let load = ["loadtest", "--wallets", "10", "--operations", "100", "--workers", "2", "--data-dir", web.data_dir()];
    let load = run(&load);
    assert!(load.status.success(), "{}{}", String::from_utf8_lossy(&load.stdout), stderr(&load));
    for part in &mut parts {
        let process = nix::unistd::Pid::from_raw(part.id() as i32);
        nix::sys::signal::kill(process, Signal::SIGTERM).expect("a signal");
        assert_eq!(part.wait().expect("its end").code(), Some(143));
    }
    assert!(DataDir::find_running(std::path::Path::new(web.data_dir())).expect("an answer").is_some());
}

const OPEN_A_WALLET: &str = "\
import sys, urllib.request as r
r.urlopen(r.Request(sys.argv[1] + '/wallets', b'{\"walletId\":\"first\",\"ownerId\":\"o\"}', {'Content-Type': 'application/json'}))";

fn contract_client(arguments: &[&str]) -> Output {
    let root = env!("CARGO_MANIFEST_DIR");
    Command::new("python3")
        .arg(format!("{root}/tests/contract/client.py"))
        .args(arguments)
        .output()
        .expect("python3 runs")
}

#[test]
fn a_client_written_from_the_contract_alone_is_content() {
    let room = room();
    let serve = Serve::start(&room.path().join("data"));
    for extra in [&[][..], &["--idempotent"]] {
        let load = ["--url", &serve.info.url, "--wallets", "100", "--operations", "2000", "--workers", "20"];
        let output = contract_client(&[&load, extra].concat());
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    }
}

#[test]
fn slow_a_client_written_from_the_contract_alone_is_content_with_the_whole_load() {
    let room = room();
    let serve = Serve::start(&room.path().join("data"));
    let output =
        contract_client(&["--url", &serve.info.url, "--wallets", "1000", "--operations", "20000", "--workers", "20"]);
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
}

#[test]
fn slow_the_contract_client_tells_right_servers_from_wrong_ones() {
    let selftest = format!("{}/tests/contract/selftest.py", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("python3").arg(selftest).output().expect("python3 runs");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
}

/// An operator who sees a warning on a system that is well looks away from the next one.
#[test]
fn a_system_that_is_well_warns_of_nothing() {
    let room = room();
    let data_dir = room.path().join("data");
    let data_dir = data_dir.to_str().expect("a path in UTF-8");
    let load = ["loadtest", "--wallets", "5", "--operations", "50", "--workers", "2", "--data-dir", data_dir];
    let load = run(&load);
    assert!(load.status.success(), "{}{}", String::from_utf8_lossy(&load.stdout), stderr(&load));
    assert!(stderr(&load).contains("INFO") && !stderr(&load).contains("WARN"), "{}", stderr(&load));
}
