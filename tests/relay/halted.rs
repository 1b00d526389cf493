//! Real relay processes that are halted for longer than their lease, wake up, and are killed.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use wallex::relay::RelayState;

use crate::process::Part;
use crate::support::TestDatabase;
use crate::world::{Writer, assert_follows, assert_once_and_in_order, broker, published, topic, until_state};

/// The process that is the active relay, by what it says of itself.
async fn active(database: &TestDatabase, relays: &[Part]) -> usize {
    until_state(database, RelayState::Publishing).await;
    let status = database.database.relay_status().await.expect("a status");
    let holder = status.holder.expect("a holder");
    let is_it = |relay: &Part| holder.starts_with(&format!("process {} ", relay.pid()));
    relays.iter().position(is_it).unwrap_or_else(|| panic!("{holder} is none of ours"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_relay_that_wakes_after_its_lease_sends_nothing_and_stands_by() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let mut head = writer.append_many(2_000).await;
    let arguments = ["relay", "--database-url", &database.url, "--kafka-brokers", &kafka.brokers, "--log", "error"];
    let relays: Vec<Part> = (0..3).map(|_| Part::start(&arguments)).collect();
    published(&database, head).await;
    let halted = active(&database, &relays).await;
    // It is at work when it is halted.
    head = writer.append_many(20_000).await;
    kill(relays[halted].pid(), Signal::SIGSTOP).expect("a halt");
    head = writer.append_many(1_000).await.max(head);
    // Its lease has to end first.
    let patience = Duration::from_secs(240);
    tokio::time::timeout(patience, async {
        while database.number("SELECT position FROM relay_checkpoint").await < head {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("another one takes over");
    let successor = active(&database, &relays).await;
    assert_ne!(successor, halted);
    kill(relays[halted].pid(), Signal::SIGCONT).expect("it goes on");
    for _ in 0..20 {
        head = writer.append_many(250).await;
        published(&database, head).await;
    }
    // It stands by: when the others are gone, it is the active one again.
    for (number, relay) in relays.iter().enumerate() {
        if number != halted {
            kill(relay.pid(), Signal::SIGKILL).expect("a kill");
        }
    }
    head = writer.append_many(500).await;
    published(&database, head).await;
    assert_eq!(active(&database, &relays).await, halted);
    let seen = topic(&kafka).await;
    assert_once_and_in_order(&seen, 1..=head);
    assert_follows(&database, &seen).await;
}
