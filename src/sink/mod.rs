//! Where results go.

pub mod parquet;
pub mod parquet_rows;
pub mod posts_file;
