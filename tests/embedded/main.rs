//! The embedded default, on the real thing: this machine's PostgreSQL and librdkafka's broker.

mod broker;
mod data_dir;
mod postgres;
mod room;
