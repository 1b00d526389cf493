//! wallex: an event-sourced wallet that proves where every cent went.

pub mod cli;
pub mod embedded;
pub mod http;
pub mod kafka;
pub mod lag;
pub mod loadtest;
pub mod log;
pub mod money;
pub mod postgres;
pub mod projection;
pub mod relay;
pub mod runtime;
pub mod sequencer;
pub mod verify;
pub mod wallet;
