//! wallex: an event-sourced wallet that proves where every cent went.
pub mod cli;
pub mod kafka;
pub mod loadtest;
pub mod log;
pub mod money;
pub mod postgres;
pub mod sequencer;
pub mod wallet;
