//! Encoding → sentiment: the model artifact, the inference engine, the decision, the cache.

pub mod artifact;
