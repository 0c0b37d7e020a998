//! Where records come from.

pub mod client;
pub mod file;
