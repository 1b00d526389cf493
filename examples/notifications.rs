//! A consumer in a group of its own, without any of wallex's machinery: it tells people that money has come in.
//!
//!     cargo run --example notifications
//!
//! What it can rely on: it is given each record *at least* once, a wallet's records in order. A message to a person cannot be
//! part of a transaction, so one may be sent twice if this process dies between sending and committing. Whoever takes the
//! message deduplicates by `position`: an event has one position for ever, and within a partition positions only grow, so the
//! last one seen in each partition is all that must be remembered.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use wallex::kafka::{EVENTS_TOPIC, HEADER_EVENT_TYPE, HEADER_POSITION};
use wallex::money::{Amount, Currency};
use wallex::runtime::{Config, Wallex};
use wallex::wallet::{Command, OwnerId, WalletId};

/// A header's text.
fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}

/// What to say about a record, and to whom; nothing about most.
fn notification(message: &BorrowedMessage<'_>) -> Option<String> {
    if header(message, HEADER_EVENT_TYPE)? != "WalletCredited" {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(message.payload()?).ok()?;
    let payload = &value["payload"];
    let (wallet, amount, currency) =
        (value["aggregateId"].as_str()?, payload["amount"].as_str()?, payload["currency"].as_str()?);
    let from = payload["transfer"]["counterparty"].as_str().unwrap_or("outside");
    Some(format!("to {wallet}: you have received {amount} {currency} from {from}"))
}

/// Sends notifications until nothing new has come for a second.
async fn notify(consumer: &StreamConsumer) -> Result<(), Box<dyn Error>> {
    let mut last_positions: HashMap<i32, i64> = HashMap::new();
    while let Ok(message) = tokio::time::timeout(Duration::from_secs(1), consumer.recv()).await {
        let message = message?;
        let position: i64 = header(&message, HEADER_POSITION).and_then(|text| text.parse().ok()).unwrap_or(0);
        let last = last_positions.entry(message.partition()).or_default();
        if position > *last {
            *last = position;
            if let Some(text) = notification(&message) {
                println!("{text}");
            }
        }
        // After it was sent, never before.
        consumer.commit_message(&message, CommitMode::Async)?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data_dir = tempfile::tempdir()?;
    let wallex = Wallex::open(Config::embedded(data_dir.path())).await?;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &wallex.kafka().brokers)
        .set("group.id", "notifications")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .create()?;
    consumer.subscribe(&[EVENTS_TOPIC])?;

    let (ann, bob) = (WalletId::new("ann")?, WalletId::new("bob")?);
    for wallet in [&ann, &bob] {
        let owner = OwnerId::new(wallet.as_str())?;
        wallex.execute(Command::create(wallet.clone(), owner, Currency::USD, Amount::ZERO)).await?;
    }
    wallex.execute(Command::credit(ann.clone(), "100")).await?;
    let transfer = wallex.execute(Command::transfer(ann, bob, "12.50")).await?;
    wallex.projected(transfer.position, Duration::from_secs(30)).await?;

    notify(&consumer).await?;
    // Before the broker, which is part of the wallex here, is gone.
    drop(consumer);
    wallex.close().await;
    Ok(())
}
