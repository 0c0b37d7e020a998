//! Where records come from.

pub mod client;
pub mod dead_letters;
pub mod file;
pub mod kafka;
pub mod labelled;
pub mod probe;
pub mod queue;
pub mod scan;
