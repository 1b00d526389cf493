//! Members of one group, as processes and in this one: they are killed, stopped, added, halted for longer than their session lasts,
//! and started again under their old name.

#[path = "../kafka/mod.rs"]
mod kafka;
#[path = "../process/mod.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
#[path = "../projection/world.rs"]
#[expect(dead_code, reason = "the projections' own tests use all of it")]
mod world;

mod processes;
mod real_kafka;
