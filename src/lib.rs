//! Sentistream: Kafka in, labelled posts and exact Parquet rollups out.
//!
//! ARCHITECTURE.md at the root has the flow, the rooms and the invariants.

pub mod brands;
pub mod classify;
pub mod cli;
pub mod config;
pub mod decode;
pub mod demo;
pub mod evaluation;
<<<<<<< HEAD
pub mod health;
=======
pub mod front;
pub mod headers;
pub mod language;
>>>>>>> front
pub mod prepare;
pub mod record;
pub mod rollup;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod tokenize;
