//! Tables made anew from the log beside the live ones, and swapped, with runners and readers at work.

#[path = "../process/mod.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
#[path = "../projection/world.rs"]
#[expect(dead_code, reason = "the projections' own tests use all of it")]
mod world;

mod alone;
mod interrupted;
mod under_traffic;

use std::process::Output;

use serde_json::Value;
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection};

use crate::process::run;
use crate::world::{Topic, World};

/// A world with a history that both projections have come through, and nobody at work.
async fn settled(seed: u64) -> World {
    let mut world = World::new(seed).await;
    fill(&mut world).await;
    world
}

async fn fill(world: &mut World) {
    let topic = Topic::new();
    world.open((0..40).map(|number| format!("wallet-{number}"))).await;
    world.operate(1_000).await;
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    ledger.stop().await;
    read_model.stop().await;
}

/// `wallex project …` on this world's database.
fn project(world: &World, arguments: &[&str]) -> Output {
    let empty = tempfile::tempdir().expect("a directory");
    let place = empty.path().to_str().expect("UTF-8");
    let on = ["--database-url", &world.database.url, "--data-dir", place, "--log", "error"];
    run(&[&["project"], arguments, &on].concat())
}

/// The same, with its JSON.
fn project_json(world: &World, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = project(world, &[arguments, &["-o", "json"]].concat());
    let json = serde_json::from_slice(&output.stdout);
    (output.status.code(), json.unwrap_or_else(|error| panic!("{error}: {}", stderr(&output))))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// The object number of a table: another one after a swap.
async fn table_number(world: &World, table: &str) -> i64 {
    world.database.number(&format!("SELECT '{table}'::regclass::oid::bigint")).await
}
