//! Encoding → sentiment: the model artifact, the inference engine, the decision, the cache.

pub mod artifact;
pub mod cache;
pub mod decide;
pub mod engine;
pub mod runtime;
pub mod session;
