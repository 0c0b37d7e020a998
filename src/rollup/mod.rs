//! Stage 2: labelled posts → exact sums in immutable parts, each counted once.

pub mod chain;
pub mod decode;
pub mod events;
pub mod part;
pub mod roller;
pub mod stage;
pub mod store;
pub mod verify;
pub mod window;

#[cfg(test)]
pub(crate) mod testing;
