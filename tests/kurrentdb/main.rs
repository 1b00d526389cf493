//! KurrentDB: the test server held against the tables of what a real one answers, and what stands on top of it: the store, the
//! write path, the copy.

#[path = "../certificates/mod.rs"]
mod certificates;
#[path = "../kurrentdb_server/mod.rs"]
mod kurrentdb_server;
#[path = "../process/mod.rs"]
mod process;
#[path = "../redis_server/mod.rs"]
mod redis_server;
#[path = "../support/mod.rs"]
mod support;

mod another_store;
mod connections;
mod copy;
mod earlier;
mod lag;
mod lanes;
mod leases;
mod rounds;
mod server;
mod snapshots;
mod store;
mod strays;
mod transfers;
mod traps;
mod whole;
mod world;
