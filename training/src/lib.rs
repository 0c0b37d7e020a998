//! Fine-tunes BERT-family encoders with libtorch and exports the model folder that sentistream runs.

pub mod args;
pub mod batches;
pub mod config;
pub mod data;
pub mod device;
pub mod environment;
pub mod export;
pub mod finetune;
pub mod model;
pub mod native;
pub mod optim;
pub mod progress;
pub mod report;
pub mod state;
pub mod trainer;
pub mod weights;
