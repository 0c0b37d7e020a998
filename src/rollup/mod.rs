//! Stage 2: labelled posts → exact sums in immutable parts, each counted once.

pub mod decode;
pub mod part;
pub mod store;
pub mod window;

#[cfg(test)]
pub(crate) mod testing;
