//! wallex: an event-sourced wallet that proves where every cent went.

pub mod cli;
pub mod embedded;
pub mod kafka;
pub mod log;
pub mod money;
pub mod postgres;
pub mod projection;
pub mod relay;
pub mod runtime;
pub mod sequencer;
pub mod wallet;
