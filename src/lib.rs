//! Sentistream: Kafka in, labelled posts and exact Parquet rollups out.
//!
//! ARCHITECTURE.md at the root has the flow, the rooms and the invariants.

pub mod assignment;
pub mod classify;
pub mod cli;
pub mod config;
pub mod evaluation;
pub mod health;
pub mod prepare;
pub mod record;
pub mod settle;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod stage;
pub mod tokenize;
pub mod window;
pub mod windower;
