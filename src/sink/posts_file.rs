//! One Parquet file of labelled posts outside any chain of parts: what `label` writes. The columns are
//! those of a posts part, so the same queries read both; `labelled_offset` counts the file's rows.

use std::io::Write;

use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::{
    parquet::CodecError,
    parquet_rows::{posts_batch, posts_schema},
};
use crate::{
    record::{Labelled, Offset},
    rollup::part::Archived,
};

/// Posts that are encoded together.
const CHUNK: usize = 8192;

/// A file being written.
pub struct PostsFile<W: Write + Send> {
    writer: ArrowWriter<W>,
    waiting: Vec<Archived>,
    rows: i64,
}

impl<W: Write + Send> PostsFile<W> {
    /// Begins a file.
    pub fn new(sink: W) -> Result<Self, CodecError> {
        let properties = WriterProperties::builder()
            .set_created_by(concat!("sentistream ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .build();
        let writer = ArrowWriter::try_new(sink, posts_schema(), Some(properties))?;
        Ok(Self { writer, waiting: Vec::with_capacity(CHUNK), rows: 0 })
    }

    /// Adds one post.
    pub fn write(&mut self, post: Labelled) -> Result<(), CodecError> {
        self.waiting.push(Archived { offset: Offset(self.rows), post });
        self.rows += 1;
        if self.waiting.len() >= CHUNK {
            self.encode()?;
        }
        Ok(())
    }

    /// Writes what is left and the footer.
    pub fn finish(mut self) -> Result<(), CodecError> {
        self.encode()?;
        self.writer.close()?;
        Ok(())
    }

    fn encode(&mut self) -> Result<(), CodecError> {
        if !self.waiting.is_empty() {
            self.writer.write(&posts_batch(&self.waiting)?)?;
            self.waiting.clear();
        }
        Ok(())
    }
}
