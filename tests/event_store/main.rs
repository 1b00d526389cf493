//! The real `wallex`, with its events in a KurrentDB: options, reports, a load test, and processes that are killed between the legs
//! of transfers. The last two also on a real server (`store`).

#[path = "../kurrentdb_server/mod.rs"]
mod kurrentdb_server;
#[path = "../crash/load.rs"]
mod load;
#[path = "../process/mod.rs"]
mod process;
#[path = "../redis_server/mod.rs"]
mod redis_server;

mod another;
mod elsewhere;
mod leases;
mod loadtest;
mod rounds;
mod shell;
mod store;
