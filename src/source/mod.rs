//! Where records come from.

pub mod client;
pub mod labelled;
pub mod scan;
