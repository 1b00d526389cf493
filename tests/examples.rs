//! The examples do what they say, each in a process of its own.

use std::process::Command;

/// Runs an example that `cargo test` has built, and answers with what it printed.
fn output_of(example: &str) -> String {
    let test = std::env::current_exe().expect("this test's own path");
    let directory = test.ancestors().nth(2).expect("cargo's profile directory, above deps").join("examples");
    let output = Command::new(directory.join(example))
        .env_remove("WALLEX_DATABASE_URL")
        .env_remove("WALLEX_KAFKA_BROKERS")
        .output()
        .unwrap_or_else(|error| panic!("{example} cannot be run ({error}): `cargo build --examples` makes it"));
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{example}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    printed
}

#[test]
fn from_nothing_to_a_proven_transfer_takes_40_lines_at_most() {
    let lines = include_str!("../examples/embed.rs").lines().count();
    assert!(lines <= 40, "examples/embed.rs has {lines} lines");
}

#[test]
fn the_embedded_wallet_proves_its_transfer() {
    let printed = output_of("embed");
    assert!(printed.starts_with("alice: 87.66 USD\nbob: 12.34 USD\n"), "{printed}");
    assert!(printed.contains("ok    double entry: 0.00 USD"), "{printed}");
    assert!(!printed.contains("WRONG"), "{printed}");
}

#[test]
fn a_projection_of_ones_own_sums_what_each_wallet_spends_a_day() {
    let printed = output_of("spending_per_day");
    let alice = printed.lines().filter(|line| line.starts_with("alice on "));
    // Two rows if midnight (UTC) came between the two payments.
    let cents: i64 = alice.filter_map(|line| line.split([':', ' ']).nth(4)?.parse::<i64>().ok()).sum();
    assert_eq!(cents, 3_234, "{printed}");
    assert!(printed.contains(": 34 cents in 1 payments, the last at revision 2"), "{printed}");
}

#[test]
fn each_movement_is_notified_once() {
    let expected = "\
#2 to the owner of alice: you received 100.00 USD; your balance is 100.00
#4 to the owner of alice: you paid 12.34 USD to bob; your balance is 87.66
#5 to the owner of bob: you received 12.34 USD from alice; your balance is 12.34
";
    assert_eq!(output_of("notifications"), expected);
}
