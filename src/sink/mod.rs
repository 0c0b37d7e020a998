//! Where records go.

pub mod kafka;
pub mod message;
pub mod producer;
pub mod requeue;
