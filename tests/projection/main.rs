//! Runners on a real PostgreSQL and librdkafka's broker: every event once in effect, in order, whatever happens to them, to
//! the topic and to the database.

#[path = "../support/mod.rs"]
mod support;
mod world;

mod gaps;
mod members;
mod outages;
mod parking;
mod retry;
