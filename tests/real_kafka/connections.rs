//! Login and encryption, tried for real: who may, works; who may not is told why in one line; and no secret is shown.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kafka::{CONSUMER_GROUPS, Kafka};
use crate::process::{Serve, room, wallex};

/// The variables of `scripts/kafka`, without brokers, as the table of `wallex.toml`.
fn file(kafka: &Kafka, folder: &Path) -> PathBuf {
    let mut text = format!("kafka-brokers = \"{}\"\n[kafka]\n", kafka.address());
    for (name, value) in kafka.environment() {
        let property = name.trim_start_matches("WALLEX_KAFKA_").to_lowercase().replace('_', ".");
        if property != "brokers" {
            text.push_str(&format!("{property} = \"{value}\"\n"));
        }
    }
    let path = folder.join("wallex.toml");
    std::fs::write(&path, text).expect("a file");
    path
}

/// `wallex topics` with the cluster's variables, some of them replaced.
fn topics(kafka: &Kafka, replaced: &[(&str, &str)]) -> Output {
    wallex(&["topics"]).envs(kafka.environment()).envs(replaced.iter().copied()).output().expect("wallex runs")
}

fn password(kafka: &Kafka) -> String {
    let found = kafka.environment().into_iter().find(|(name, _)| name == "WALLEX_KAFKA_SASL_PASSWORD");
    found.expect("a password").1
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It could not run: 2, and one line that has these words and no secret.
fn assert_refused(output: &Output, words: &[&str], secrets: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
    for secret in secrets {
        assert!(!said.contains(secret), "a secret is in {said}");
    }
}

/// All of it with login and encryption: the topics, the relay, the projections, the load and its proof; and whatever anybody
/// can see of it has no password in it.
fn everything_works(options: &[&str]) {
    let (room, kafka) = (room(), Kafka::start_with(options));
    let config = file(&kafka, room.path());
    let config = config.to_str().expect("UTF-8");
    let secret = password(&kafka);
    let data_dir = room.path().join("data");
    let log = room.path().join("serve.log");
    let mut command = wallex(&["serve", "--listen", "127.0.0.1:0", "--log", "debug", "--config", config]);
    command.stderr(std::fs::File::create(&log).expect("a file"));
    let serve = Serve::start_as(&data_dir, command);
    let load =
        ["loadtest", "--wallets", "20", "--operations", "200", "--config", config, "--data-dir", serve.data_dir()];
    let loaded = wallex(&load).output().expect("wallex runs");
    assert!(loaded.status.success(), "{}", stderr(&loaded));

    // The rest by the environment, as a container would have it.
    let ask = |verb: &str| {
        let mut command = wallex(&[verb, "-o", "json", "--log", "debug", "--data-dir", serve.data_dir()]);
        let output = command.envs(kafka.environment()).output().expect("wallex runs");
        assert!(output.status.success(), "{verb}: {}", stderr(&output));
        assert!(!stderr(&output).contains(&secret), "{verb} shows the password");
        String::from_utf8(output.stdout).expect("text")
    };
    let mut shown = ask("status") + &ask("verify") + &ask("topics");
    let lag = ask("lag");
    let groups: Value = serde_json::from_str(&lag).expect("JSON");
    assert_eq!(groups["broker"]["connected"], true, "{lag}");
    assert!(kafka.tool(CONSUMER_GROUPS, &["--list"]).contains("ledger-projector"));
    let processes = Command::new("ps").args(["-ww", "-eo", "args"]).output().expect("ps");
    shown += &(lag + &String::from_utf8_lossy(&processes.stdout));
    assert_eq!(serve.stop(Signal::SIGTERM), 143);
    shown += &std::fs::read_to_string(log).expect("its log");
    assert!(shown.contains("relay"), "the log is there");
    assert!(!shown.contains(&secret), "a password is shown");
}

#[test]
fn slow_everything_works_with_plain_over_tls() {
    everything_works(&["--sasl", "plain", "--tls"]);
}

#[test]
fn slow_everything_works_with_scram_256() {
    everything_works(&["--sasl", "scram-256"]);
}

#[test]
fn slow_a_wrong_login_or_certificate_is_named_in_one_line() {
    let (room, kafka) = (room(), Kafka::start_with(&["--sasl", "scram-512", "--tls"]));
    let secret = password(&kafka);
    assert_eq!(topics(&kafka, &[]).status.code(), Some(1), "the right login answers that the topics are missing");

    let wrong = topics(&kafka, &[("WALLEX_KAFKA_SASL_PASSWORD", "hunter2")]);
    assert_refused(&wrong, &["does not answer", "uthentication"], &["hunter2", &secret]);
    let mechanism = topics(&kafka, &[("WALLEX_KAFKA_SASL_MECHANISM", "PLAIN")]);
    assert_refused(&mechanism, &["does not answer", "PLAIN"], &[&secret]);
    let without_tls = topics(&kafka, &[("WALLEX_KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")]);
    assert_refused(&without_tls, &["does not answer"], &[&secret]);

    let other = room.path().join("other.pem");
    crate::certificates::authority(room.path(), "other");
    let unknown = topics(&kafka, &[("WALLEX_KAFKA_SSL_CA_LOCATION", other.to_str().expect("UTF-8"))]);
    assert_refused(&unknown, &["does not answer", "certificate verify failed"], &[&secret]);
    let (_, port) = kafka.address_of(1).rsplit_once(':').expect("a port");
    let host = topics(&kafka, &[("WALLEX_KAFKA_BROKERS", &format!("127.0.0.2:{port}"))]);
    assert_refused(&host, &["does not answer", "127.0.0.2"], &[&secret]);
}

#[test]
fn a_secret_on_the_command_line_and_a_property_of_wallexs_own_are_refused() {
    let refused = |property: &str| {
        let property = ["topics", "--kafka-brokers", "127.0.0.1:1", "--kafka-config", property];
        wallex(&property).output().expect("wallex runs")
    };
    assert_refused(&refused("sasl.password=hunter2"), &["WALLEX_KAFKA_SASL_PASSWORD", "[kafka]"], &["hunter2"]);
    assert_refused(&refused("acks=1"), &["acks cannot be set", "every copy"], &[]);
}
