//! The house rules that a compiler does not hold: which room may name what.

use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory of ours") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 30, "the sources are where this test looks for them");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source");
        (path.strip_prefix(&root).expect("below src").to_owned(), text)
    };
    found.into_iter().map(read).collect()
}

/// Lines of code that name `word`: comments may.
fn naming<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//")).filter(move |line| line.contains(word))
}

fn assert_only_in(word: &str, rooms: &[&str]) {
    for (path, text) in sources() {
        if rooms.iter().any(|room| path.starts_with(room)) {
            continue;
        }
        let named: Vec<_> = naming(&text, word).collect();
        assert!(named.is_empty(), "{} names {word}, which only {rooms:?} may: {named:?}", path.display());
    }
}

#[test]
fn rdkafka_is_named_only_where_kafka_is() {
    assert_only_in("rdkafka::", &["kafka", "embedded/broker.rs"]);
}

#[test]
fn eventstore_is_named_only_where_kurrentdb_is_and_its_subscriptions_nowhere() {
    assert_only_in("eventstore::", &["kurrentdb"]);
    // The module says why.
    for trap in ["subscribe_to", "next_subscription_event", "ExpectedRevision::Any"] {
        assert_only_in(trap, &[]);
    }
}

#[test]
fn redis_is_named_only_where_leases_are() {
    assert_only_in("redis::", &["lease"]);
}

#[test]
fn sql_is_written_only_in_the_postgres_room() {
    // Others may hold what that room hands out (a pool, a connection, an error), and send no statement.
    for statement in ["sqlx::query", "SELECT ", "INSERT INTO", "UPDATE ", "DELETE FROM"] {
        assert_only_in(statement, &["postgres", "embedded/postgres"]);
    }
}

#[test]
fn errors_of_the_binary_stay_in_the_binary() {
    assert_only_in("color_eyre", &["cli", "bin"]);
}

#[test]
fn the_domain_is_pure() {
    for (path, text) in sources() {
        if !(path.starts_with("wallet") || path == Path::new("money.rs")) {
            continue;
        }
        for word in ["tokio", "sqlx", "rdkafka", "std::time", "Utc::now", "now_v7", "rand::", "async fn", "std::fs"] {
            assert!(naming(&text, word).next().is_none(), "{} names {word}", path.display());
        }
        let inward = ["crate::money", "crate::wallet"];
        for line in naming(&text, "crate::") {
            assert!(inward.iter().any(|room| line.contains(room)), "{} reaches outwards: {line}", path.display());
        }
    }
}

#[test]
fn dependencies_point_inwards() {
    // domain <- log <- {sequencer, relay, projection, dlq, lag, verify} <- {http, runtime} <- cli
    let outward: [(&str, &[&str]); 14] = [
        ("lease", &["sequencer", "lanes", "log", "postgres", "kurrentdb", "http", "runtime", "cli", "loadtest"]),
        (
            "kurrentdb",
            &["sequencer", "lanes", "ingest", "relay", "projection", "lag", "verify", "http", "runtime", "cli"],
        ),
        ("lanes", &["ingest", "relay", "projection", "lag", "verify", "http", "runtime", "cli", "loadtest"]),
        ("ingest", &["projection", "lag", "verify", "http", "runtime", "cli", "loadtest"]),
        ("log", &["relay", "projection", "dlq", "lag", "verify", "http", "runtime", "cli", "loadtest", "sequencer"]),
        ("sequencer", &["relay", "projection", "dlq", "lag", "verify", "http", "runtime", "cli", "loadtest"]),
        ("kafka", &["relay", "projection", "dlq", "lag", "verify", "http", "runtime", "cli", "loadtest", "sequencer"]),
        ("postgres", &["relay", "http", "runtime", "cli", "loadtest"]),
        ("projection", &["relay", "dlq", "lag", "verify", "http", "runtime", "cli", "loadtest"]),
        ("relay", &["dlq", "lag", "verify", "http", "runtime", "cli", "loadtest"]),
        ("dlq", &["relay", "lag", "verify", "http", "runtime", "cli", "loadtest"]),
        ("lag", &["http", "runtime", "cli", "loadtest"]),
        ("http", &["runtime", "cli", "loadtest", "verify"]),
        ("loadtest", &["http", "runtime", "cli", "verify", "postgres", "projection", "relay", "lag", "log"]),
    ];
    for (path, text) in sources() {
        for (room, forbidden) in outward.iter().filter(|(room, _)| path.starts_with(room)) {
            for other in *forbidden {
                let named: Vec<_> = naming(&text, &format!("crate::{other}")).map(str::to_owned).collect();
                assert!(named.is_empty(), "{} is in {room} and reaches out to {other}: {named:?}", path.display());
            }
        }
    }
}
