//! KurrentDB: the test server held against the tables of what a real one answers, and the store on top of it.

#[path = "../kurrentdb_server/mod.rs"]
mod kurrentdb_server;

mod server;
mod store;
