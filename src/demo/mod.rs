//! `demo`: the whole path in one process, on posts that the demo makes up.

pub mod generator;
mod phrases;
