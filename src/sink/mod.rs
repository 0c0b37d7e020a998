//! Where results go.

pub mod kafka;
pub mod message;
pub mod parquet;
pub mod parquet_rows;
pub mod posts_file;
pub mod producer;
pub mod requeue;
