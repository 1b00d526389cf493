//! wallex: an event-sourced wallet that proves where every cent went.
pub mod money;
pub mod wallet;
