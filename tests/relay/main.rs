//! The relay on a real PostgreSQL and librdkafka's broker: what is in the log is in the topic, once, in order, whatever
//! happens to relays, sessions and brokers.

#[path = "../process/mod.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
mod world;

mod another_topic;
mod halted;
mod publishing;
mod standing;
mod withheld;
