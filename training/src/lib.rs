//! Fine-tunes BERT-family encoders with libtorch and exports the model folder that sentistream runs.

pub mod config;
pub mod weights;
