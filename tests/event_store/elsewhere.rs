//! Tests on a server that is not their own: here one of another process, which others use too.

use std::process::Command;

use crate::kurrentdb_server::KurrentServer;
use crate::store::ELSEWHERE;

const AT: &str = r#"{"occurredAt":"2024-05-06T07:08:09.123Z"}"#;

#[test]
fn slow_rounds_and_load_test_run_on_a_server_that_is_named_and_leave_what_others_have_there_alone() {
    let server = KurrentServer::start();
    for (stream, kind, data) in [
        // An installation of wallex beside it, with a wallet that the tests have too, and one that goes on while they run.
        ("wallet-wallet-0", "WalletCreated", r#"{"ownerId":"theirs"}"#),
        ("wallet-wallet-0", "WalletCredited", r#"{"amount":1000000}"#),
        ("wallet-no such id", "WalletCreated", r#"{"ownerId":"theirs"}"#),
        ("orders-1", "Ordered", "not even JSON"),
    ] {
        server.keep(stream, kind, data, AT);
    }
    let theirs: Vec<_> = server.log().iter().map(|kept| kept.id).collect();
    let mut tests = Command::new(std::env::current_exe().expect("this very binary"));
    let names = [
        "rounds::slow_a_serve_killed_between_the_legs_again_and_again_loses_and_doubles_nothing",
        "loadtest::a_load_is_drained_and_proven",
    ];
    tests.args(names).arg("--exact").env(ELSEWHERE, server.connection_string()).env("CRASH_ROUNDS", "3");
    let output = tests.output().expect("the tests run");
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("2 passed"), "{told}{said}");
    let left_out =
        said.lines().filter(|line| line.contains("left out, for it is not ours: an append cut before")).count();
    assert_eq!(left_out, 2, "once for each test, though both have passed: {said}");

    let log = server.log();
    assert_eq!(log.iter().take(theirs.len()).map(|kept| kept.id).collect::<Vec<_>>(), theirs);
    let new = &log[theirs.len()..];
    assert!(new.len() > 300, "{}", new.len());
    let foreign = new.iter().find(|kept| !kept.stream.starts_with("wallextest"));
    assert!(foreign.is_none(), "{foreign:?}");
}
