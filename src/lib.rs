//! Sentistream: Kafka in, labelled posts and exact Parquet rollups out.
//!
//! ARCHITECTURE.md at the root has the flow, the rooms and the invariants.

pub mod app;
pub mod assignment;
pub mod batch;
pub mod brands;
pub mod classify;
pub mod cli;
pub mod config;
pub mod decode;
pub mod demo;
pub mod evaluation;
pub mod front;
pub mod headers;
pub mod health;
pub mod language;
pub mod pipeline;
pub mod prepare;
pub mod record;
pub mod rollup;
pub mod settle;
pub mod shutdown;
pub mod sink;
pub mod source;
pub mod stage;
pub mod telemetry;
pub mod tokenize;
pub mod window;
pub mod windower;
