//! Where records come from.

pub mod client;
pub mod kafka;
pub mod queue;
