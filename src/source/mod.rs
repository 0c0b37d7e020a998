//! Where records come from.

pub mod client;
pub mod file;
pub mod labelled;
pub mod probe;
pub mod scan;
