//! Where records come from.

pub mod client;
