//! One file a command.

pub mod dead_letters;
pub mod replay;
