//! Parts as Parquet: what a part's footer says, and bytes for a part's rows.
//!
//! The same content gives the same bytes. Every number that readers add up is an integer or a decimal:
//! scores are `decimal(.,4)`, because they are rounded to four places before anything uses them.

use std::{collections::BTreeSet, sync::Arc};

use ::parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::{
        metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader, SortingColumn},
        properties::{EnabledStatistics, WriterProperties},
    },
};
use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use bytes::Bytes;

use super::parquet_rows as rows;
use crate::{
    record::NextOffset,
    rollup::{
        part::Archived,
        window::{Key, Sums},
    },
};

/// Version of both schemas and of the footer keys.
pub const SCHEMA_VERSION: u32 = 1;

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Sums by window and brand.
    Rollups,
    /// The labelled posts themselves.
    Posts,
}

impl Kind {
    /// Folder in the store, and the value of the footer key `sentistream.kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rollups => "rollups",
            Self::Posts => "posts",
        }
    }

    /// The Arrow schema of its rows.
    pub fn schema(self) -> SchemaRef {
        match self {
            Self::Rollups => rows::rollup_schema(),
            Self::Posts => rows::posts_schema(),
        }
    }
}

/// What a part's footer says of it, as key-value metadata `sentistream.…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// What the part holds.
    pub kind: Kind,
    /// The labelled topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// The part covers offsets from here …
    pub first: NextOffset,
    /// … up to but without this one.
    pub next: NextOffset,
    /// Labelled posts counted in it.
    pub records: u64,
    /// Records in the range that were no labelled posts.
    pub skipped: u64,
    /// Width of its windows, seconds.
    pub window_s: i64,
    /// Hashes of the models that labelled its posts, sorted, comma-separated.
    pub models: String,
    /// Rows in the file.
    pub rows: u64,
}

/// A file that is not a part, or a part that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Parquet or Arrow says no.
    #[error("not a readable Parquet file: {0}")]
    Parquet(String),
    /// The footer lacks a key or holds a bad value.
    #[error("footer key '{key}': {message}")]
    Footer {
        /// The key.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A column is missing or of another type.
    #[error("column '{column}': {message}")]
    Column {
        /// The column.
        column: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl From<::parquet::errors::ParquetError> for CodecError {
    fn from(e: ::parquet::errors::ParquetError) -> Self {
        Self::Parquet(e.to_string())
    }
}

impl From<arrow::error::ArrowError> for CodecError {
    fn from(e: arrow::error::ArrowError) -> Self {
        Self::Parquet(e.to_string())
    }
}

/// Head of a part that is being written: its range and what the rows do not say.
#[derive(Clone, Debug)]
pub struct Head {
    /// The labelled topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Start of the range.
    pub first: NextOffset,
    /// End of the range, exclusive.
    pub next: NextOffset,
    /// Posts counted.
    pub records: u64,
    /// Records passed over.
    pub skipped: u64,
    /// Width of the windows, seconds.
    pub window_s: i64,
}

impl From<&Footer> for Head {
    fn from(f: &Footer) -> Self {
        Self {
            topic: f.topic.clone(),
            partition: f.partition,
            first: f.first,
            next: f.next,
            records: f.records,
            skipped: f.skipped,
            window_s: f.window_s,
        }
    }
}

/// Bytes of a rollup part; `sums` in key order.
pub fn encode_rollup(head: &Head, sums: &[(Key, Sums)]) -> Result<Bytes, CodecError> {
    let models: BTreeSet<&str> = sums.iter().map(|(k, _)| &*k.model_hash).collect();
    write(Kind::Rollups, head, models, &rows::rollup_batch(sums)?)
}

/// Bytes of a posts part; `posts` in offset order.
pub fn encode_posts(head: &Head, posts: &[Archived]) -> Result<Bytes, CodecError> {
    let models: BTreeSet<&str> = posts.iter().map(|a| &*a.post.model.hash).collect();
    write(Kind::Posts, head, models, &rows::posts_batch(posts)?)
}

/// Footer and rows of a rollup part.
pub fn decode_rollup(bytes: Bytes) -> Result<(Footer, Vec<(Key, Sums)>), CodecError> {
    let (footer, batches) = read(bytes, Kind::Rollups)?;
    let mut out = Vec::new();
    for b in &batches {
        rows::read_rollup(b, &mut out)?;
    }
    Ok((footer, out))
}

/// Footer and rows of a posts part.
pub fn decode_posts(bytes: Bytes) -> Result<(Footer, Vec<Archived>), CodecError> {
    let (footer, batches) = read(bytes, Kind::Posts)?;
    let mut out = Vec::new();
    for b in &batches {
        rows::read_posts(b, &mut out)?;
    }
    Ok((footer, out))
}

fn write(kind: Kind, head: &Head, models: BTreeSet<&str>, batch: &RecordBatch) -> Result<Bytes, CodecError> {
    let kv = |key: &str, value: String| KeyValue::new(format!("sentistream.{key}"), value);
    let metadata = vec![
        kv("schema_version", SCHEMA_VERSION.to_string()),
        kv("kind", kind.as_str().to_owned()),
        kv("topic", head.topic.to_string()),
        kv("partition", head.partition.to_string()),
        kv("first", head.first.to_string()),
        kv("next", head.next.to_string()),
        kv("records", head.records.to_string()),
        kv("skipped", head.skipped.to_string()),
        kv("window_s", head.window_s.to_string()),
        kv("model", models.into_iter().collect::<Vec<_>>().join(",")),
    ];
    let sorted_by = match kind {
        Kind::Rollups => (0..6).map(ascending).collect(),
        Kind::Posts => vec![ascending(rows::posts_offset_leaf())],
    };
    let properties = WriterProperties::builder()
        .set_created_by(concat!("sentistream ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_key_value_metadata(Some(metadata))
        .set_sorting_columns(Some(sorted_by))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    Ok(writer.into_inner()?.into())
}

fn ascending(column_idx: i32) -> SortingColumn {
    SortingColumn { column_idx, descending: false, nulls_first: false }
}

fn read(bytes: Bytes, kind: Kind) -> Result<(Footer, Vec<RecordBatch>), CodecError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let footer = footer_of(builder.metadata())?;
    if footer.kind != kind {
        let message = format!("is '{}', expected '{}'", footer.kind.as_str(), kind.as_str());
        return Err(CodecError::Footer { key: "sentistream.kind", message });
    }
    let batches = builder.with_batch_size(8192).build()?.collect::<Result<Vec<_>, _>>()?;
    Ok((footer, batches))
}

/// What the last bytes of a file say: its footer, or how many bytes of the tail are needed to read it.
pub enum Tail {
    /// The footer.
    Footer(Box<Footer>),
    /// The footer is longer: fetch this many bytes from the end.
    Need(u64),
}

/// Reads the footer from the `tail` of a file, its last bytes.
pub fn read_tail(tail: &[u8]) -> Result<Tail, CodecError> {
    const MAGIC: usize = 8;
    let Some(at) = tail.len().checked_sub(MAGIC) else {
        return Err(CodecError::Parquet(format!("{} bytes, too short for a Parquet file", tail.len())));
    };
    let (metadata, end) = tail.split_at(at);
    if &end[4..] != b"PAR1" {
        return Err(CodecError::Parquet("does not end in PAR1: cut short, or not Parquet".to_owned()));
    }
    let len = u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize;
    match metadata.len().checked_sub(len) {
        None => Ok(Tail::Need((len + MAGIC) as u64)),
        Some(start) => {
            let metadata = ParquetMetaDataReader::decode_metadata(&metadata[start..])?;
            Ok(Tail::Footer(Box::new(footer_of(&metadata)?)))
        }
    }
}

fn footer_of(metadata: &ParquetMetaData) -> Result<Footer, CodecError> {
    let file = metadata.file_metadata();
    let pairs = file.key_value_metadata().map_or(&[][..], Vec::as_slice);
    let text = |key: &'static str| {
        pairs.iter().find(|kv| kv.key == key).and_then(|kv| kv.value.as_deref()).ok_or_else(|| {
            CodecError::Footer {
                key,
                message: "is missing: was this file written by sentistream?".to_owned(),
            }
        })
    };
    fn number<T: std::str::FromStr>(key: &'static str, value: &str) -> Result<T, CodecError> {
        value
            .parse()
            .map_err(|_| CodecError::Footer { key, message: format!("'{value}' is not a number in range") })
    }
    let int = |key: &'static str| text(key).and_then(|v| number::<i64>(key, v));
    let count = |key: &'static str| text(key).and_then(|v| number::<u64>(key, v));
    let version: u32 = number("sentistream.schema_version", text("sentistream.schema_version")?)?;
    if version != SCHEMA_VERSION {
        let message =
            format!("is {version}, expected {SCHEMA_VERSION}: was the part written by a newer sentistream?");
        return Err(CodecError::Footer { key: "sentistream.schema_version", message });
    }
    let kind = match text("sentistream.kind")? {
        "rollups" => Kind::Rollups,
        "posts" => Kind::Posts,
        other => {
            let message = format!("is '{other}', expected rollups or posts");
            return Err(CodecError::Footer { key: "sentistream.kind", message });
        }
    };
    let footer = Footer {
        kind,
        topic: text("sentistream.topic")?.into(),
        partition: number("sentistream.partition", text("sentistream.partition")?)?,
        first: NextOffset(int("sentistream.first")?),
        next: NextOffset(int("sentistream.next")?),
        records: count("sentistream.records")?,
        skipped: count("sentistream.skipped")?,
        window_s: int("sentistream.window_s")?,
        models: text("sentistream.model")?.to_owned(),
        rows: u64::try_from(file.num_rows()).unwrap_or(0),
    };
    if footer.first.0 < 0 || footer.next <= footer.first || footer.window_s <= 0 {
        let message = format!(
            "range [{}, {}) with windows of {} s is not possible",
            footer.first, footer.next, footer.window_s
        );
        return Err(CodecError::Footer { key: "sentistream.next", message });
    }
    Ok(footer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        record::Offset,
        rollup::{testing::post, window::Deltas},
    };

    fn head(n: i64) -> Head {
        Head {
            topic: "posts.labelled".into(),
            partition: 2,
            first: NextOffset(100),
            next: NextOffset(100 + 2 * n),
            records: n as u64,
            skipped: 0,
            window_s: 60,
        }
    }

    fn some(n: i64) -> (Vec<Archived>, Vec<(Key, Sums)>) {
        let posts: Vec<_> = (0..n).map(|i| Archived { offset: Offset(100 + 2 * i), post: post(i) }).collect();
        let mut d = Deltas::new(60);
        posts.iter().for_each(|a| d.add(&a.post));
        (posts, d.sorted())
    }

    #[test]
    fn parts_come_back_as_they_were_and_bytes_repeat() {
        let (posts, sums) = some(500);
        let p = encode_posts(&head(500), &posts).unwrap();
        let r = encode_rollup(&head(500), &sums).unwrap();
        assert_eq!(
            (&p, &r),
            (&encode_posts(&head(500), &posts).unwrap(), &encode_rollup(&head(500), &sums).unwrap())
        );
        let (pf, posts_back) = decode_posts(p.clone()).unwrap();
        let (rf, sums_back) = decode_rollup(r.clone()).unwrap();
        assert_eq!(posts_back, posts);
        assert_eq!(sums_back, sums);
        assert_eq!((pf.rows, pf.records, pf.next, pf.kind), (500, 500, NextOffset(1100), Kind::Posts));
        assert_eq!(
            (rf.rows, rf.models.as_str(), &*rf.topic),
            (sums.len() as u64, "0123456789abcdef", "posts.labelled")
        );
        assert!(decode_posts(r).unwrap_err().to_string().contains("sentistream.kind"));
    }

    #[test]
    fn the_tail_alone_gives_the_footer() {
        let (posts, _) = some(50);
        let bytes = encode_posts(&head(50), &posts).unwrap();
        let Tail::Need(n) = read_tail(&bytes[bytes.len() - 16..]).unwrap() else {
            panic!("16 bytes cannot hold a footer")
        };
        let Tail::Footer(f) = read_tail(&bytes[bytes.len() - n as usize..]).unwrap() else {
            panic!("asked for {n} bytes")
        };
        assert_eq!(*f, decode_posts(bytes.clone()).unwrap().0);
        assert!(read_tail(&bytes[..bytes.len() - 1]).is_err_and(|e| e.to_string().contains("PAR1")));
        assert!(read_tail(b"PAR1").is_err());
    }

    #[test]
    fn an_empty_part_is_a_part() {
        let mut h = head(1);
        (h.records, h.skipped) = (0, 2);
        let (f, rows) = decode_rollup(encode_rollup(&h, &[]).unwrap()).unwrap();
        assert_eq!((f.skipped, rows.len(), f.models.as_str()), (2, 0, ""));
    }

    /// What DuckDB, Spark and Trino see must not change unnoticed: a change here is a new schema version.
    #[test]
    fn the_parquet_schema_is_the_golden_one() {
        let mut text = String::new();
        for (kind, bytes) in [
            (Kind::Rollups, encode_rollup(&head(1), &[]).unwrap()),
            (Kind::Posts, encode_posts(&head(1), &[]).unwrap()),
        ] {
            let reader = ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
            let mut out = Vec::new();
            ::parquet::schema::printer::print_schema(&mut out, reader.file_metadata().schema());
            text += &format!("# {}\n{}", kind.as_str(), String::from_utf8(out).unwrap());
        }
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/parts.schema");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(golden, &text).unwrap();
        }
        let want = std::fs::read_to_string(golden).unwrap();
        assert_eq!(text, want, "UPDATE_GOLDEN=1 writes {golden} anew");
    }
}
