//! Putting the parts together in one process: configuration, what they stand on, supervision, and the way out.

mod config;
mod home;
mod platform;
mod supervise;
mod wallex;

pub use config::{Config, Parts};
pub use platform::{Attachment, OpenError, Platform};
pub use supervise::{Stage, Supervisor, TaskEnded};
pub use wallex::{ProjectedError, Wallex};
