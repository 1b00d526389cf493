//! Wallets whose events the tables refuse, as a constraint that somebody has added would have it.

use wallex::projection::{LEDGER_PROJECTOR, READ_MODEL_PROJECTOR};

use crate::world::{Topic, World};

pub fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("wallet-{number}"))
}

fn table(group: &str) -> &'static str {
    match group {
        LEDGER_PROJECTOR => "ledger_postings",
        READ_MODEL_PROJECTOR => "read_model_wallets",
        _ => panic!("no table of {group}"),
    }
}

/// Lets the group's table refuse the event at a position.
pub async fn poison(world: &World, group: &str, position: i64) {
    let table = table(group);
    let statement =
        format!("ALTER TABLE {table} ADD CONSTRAINT poison_{position} CHECK (position <> {position}) NOT VALID");
    world.database.run(&statement).await;
}

/// Credits a wallet with an event that the groups' tables refuse, and publishes everything up to it, so that no later event of the
/// wallet comes to be applied with it: the read model keeps only the last state of those that are.
pub async fn publish_poison(world: &mut World, topic: &Topic, groups: &[&str], wallet: &str) -> i64 {
    let bad = world.credit(wallet).await;
    for group in groups {
        poison(world, group, bad).await;
    }
    world.relay(topic, 0, bad).await;
    bad
}

/// Takes the cause away.
pub async fn mend(world: &World, group: &str, position: i64) {
    let table = table(group);
    world.database.run(&format!("ALTER TABLE {table} DROP CONSTRAINT poison_{position}")).await;
}

/// How many records are parked for a group.
pub async fn parked(world: &World, group: &str) -> i64 {
    world.database.number(&format!("SELECT count(*) FROM parked_records WHERE projection = '{group}'")).await
}

/// The positions of a wallet's events, in order.
pub async fn positions_of(world: &World, wallet: &str) -> Vec<i64> {
    let events = world.events(0, world.head()).await;
    events.iter().filter(|event| event.stream.as_str() == wallet).map(|event| event.position).collect()
}
