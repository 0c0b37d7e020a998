//! Sentistream: Kafka in, labelled posts and exact Parquet rollups out.
//!
//! ARCHITECTURE.md at the root has the flow, the rooms and the invariants.

pub mod batch;
pub mod brands;
pub mod classify;
pub mod config;
pub mod decode;
pub mod evaluation;
pub mod front;
pub mod headers;
pub mod health;
pub mod language;
pub mod pipeline;
pub mod prepare;
pub mod record;
pub mod rollup;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod tokenize;
pub mod window;
