//! Records from a file or standard input: NDJSON, CSV or TSV.
//!
//! The position of a record is the file's name, partition 0, and the line on which the record begins,
//! counted from 0 (blank lines before a CSV row count as its own). A CSV row becomes a JSON object with the columns as members, all strings.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::record::{Offset, Position, RawRecord, TopicPartition};

/// A record may take this much memory; the decoder's own limit is far below.
const MAX_RECORD_BYTES: u64 = 64 << 20;
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON value a line.
    Ndjson,
    /// Comma-separated, first row names the columns.
    Csv,
    /// Tab-separated, first row names the columns.
    Tsv,
}

impl Format {
    /// The format that a file name tells; standard input (`-`) is NDJSON.
    ///
    /// # Errors
    /// [`FileError::Format`] for another extension.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        if path == Path::new("-") {
            return Ok(Self::Ndjson);
        }
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        match extension.as_str() {
            "ndjson" | "jsonl" | "json" => Ok(Self::Ndjson),
            "csv" => Ok(Self::Csv),
            "tsv" | "tab" => Ok(Self::Tsv),
            _ => Err(FileError::Format { file: path.display().to_string() }),
        }
    }
}

/// What can be wrong with a file. Each names the file, and the line (counted from 1) where there is one.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The extension tells no format.
    #[error(
        "{file}: the extension tells no format: expected .ndjson, .jsonl, .json, .csv or .tsv, or say the format"
    )]
    Format {
        /// The file.
        file: String,
    },
    /// Opening or reading failed; nothing more comes.
    #[error("{file}: cannot read: {source}")]
    Read {
        /// The file.
        file: String,
        /// The system's reason.
        source: io::Error,
    },
    /// One record is not what the format says; the next ones can be read, unless `fatal`.
    #[error("{file}:{line}: {message}")]
    Record {
        /// The file.
        file: String,
        /// Line, counted from 1.
        line: u64,
        /// What was expected and what was found.
        message: String,
        /// Nothing more comes.
        fatal: bool,
    },
}

/// Reads a file's records, in order.
pub struct FileSource {
    name: String,
    partition: TopicPartition,
    inner: Inner,
    read: Arc<AtomicU64>,
    total: Option<u64>,
    ended: bool,
}

enum Inner {
    Lines {
        reader: BufReader<Counted>,
        line: u64,
        first: bool,
    },
    Rows {
        reader: Box<csv::Reader<io::Chain<io::Cursor<Vec<u8>>, Capped>>>,
        columns: Vec<String>,
        cap: Arc<AtomicU64>,
    },
}

impl FileSource {
    /// Opens `path`, or standard input for `-`. `format` overrides what the extension says.
    ///
    /// # Errors
    /// A file that cannot be opened, an unknown extension, a CSV without a header row.
    pub fn open(path: &Path, format: Option<Format>) -> Result<Self, FileError> {
        let format = format.map_or_else(|| Format::of(path), Ok)?;
        if path == Path::new("-") {
            return Self::from_reader(Box::new(io::stdin()), "stdin", None, format);
        }
        let fail = |source| FileError::Read { file: path.display().to_string(), source };
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if meta.is_dir() {
            return Err(fail(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let total = meta.is_file().then_some(meta.len());
        Self::from_reader(Box::new(file), &path.display().to_string(), total, format)
    }

    /// As [`FileSource::open`], over any bytes; `name` stands in positions and errors.
    ///
    /// # Errors
    /// A CSV without a header row, or a read that fails.
    pub fn from_reader(
        input: Box<dyn Read + Send>,
        name: &str,
        total: Option<u64>,
        format: Format,
    ) -> Result<Self, FileError> {
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted { input, read: read.clone() };
        let inner = match format {
            Format::Ndjson => {
                Inner::Lines { reader: BufReader::with_capacity(1 << 16, counted), line: 0, first: true }
            }
            Format::Csv => rows(counted, b',', name)?,
            Format::Tsv => rows(counted, b'\t', name)?,
        };
        // Records carry the file's name and not its path, which says more of the machine than of the post.
        let short = Path::new(name).file_name().map_or_else(|| name.into(), |n| n.to_string_lossy());
        let partition = TopicPartition::new(&*short, 0);
        Ok(Self { name: name.to_owned(), partition, inner, read, total, ended: false })
    }

    /// Size of the file; `None` for standard input.
    pub fn total_bytes(&self) -> Option<u64> {
        self.total
    }

    /// The header row of a CSV or TSV.
    pub fn columns(&self) -> Option<&[String]> {
        match &self.inner {
            Inner::Rows { columns, .. } => Some(columns),
            Inner::Lines { .. } => None,
        }
    }

    /// Bytes read so far, buffers included.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn record(&self, line: u64, payload: Vec<u8>) -> RawRecord {
        let offset = Offset(i64::try_from(line).unwrap_or(i64::MAX));
        RawRecord {
            position: Position { partition: self.partition.clone(), offset },
            key: None,
            payload: Some(Bytes::from(payload)),
            timestamp: None,
        }
    }

    fn bad(&self, line: u64, message: String, fatal: bool) -> FileError {
        FileError::Record { file: self.name.clone(), line: line + 1, message, fatal }
    }

    fn next_line(&mut self) -> Option<Result<RawRecord, FileError>> {
        let Inner::Lines { reader, line, first } = &mut self.inner else { return None };
        loop {
            let mut bytes = Vec::new();
            let index = *line;
            match Read::take(&mut *reader, MAX_RECORD_BYTES + 1).read_until(b'\n', &mut bytes) {
                Err(source) => {
                    return Some(Err(FileError::Read { file: self.name.clone(), source }));
                }
                Ok(0) => return None,
                Ok(_) => *line += 1,
            }
            if index == 0 && bytes.starts_with(BOM) {
                bytes.drain(..BOM.len());
            }
            let terminated = bytes.ends_with(b"\n");
            if !terminated && bytes.len() as u64 > MAX_RECORD_BYTES {
                let rest = reader.skip_until(b'\n');
                let message = format!("the line is longer than {} MiB", MAX_RECORD_BYTES >> 20);
                return Some(Err(self.bad(index, message, rest.is_err())));
            }
            bytes.truncate(bytes.trim_ascii_end().len());
            if bytes.is_empty() {
                continue;
            }
            let was_first = std::mem::replace(first, false);
            if was_first && bytes.trim_ascii() == b"[" {
                let message =
                    "a JSON array over several lines: expected one object a line; `jq -c '.[]'` makes that";
                return Some(Err(self.bad(index, message.into(), true)));
            }
            return Some(Ok(self.record(index, bytes)));
        }
    }

    fn next_row(&mut self) -> Option<Result<RawRecord, FileError>> {
        let Inner::Rows { reader, columns, cap } = &mut self.inner else { return None };
        let mut row = csv::ByteRecord::new();
        loop {
            cap.store(MAX_RECORD_BYTES, Ordering::Relaxed);
            match reader.read_byte_record(&mut row) {
                Ok(false) => return None,
                Ok(true) => {}
                Err(e) => {
                    let line = reader.position().line().saturating_sub(1);
                    return Some(Err(self.bad(line, e.to_string(), true)));
                }
            }
            let line = row.position().map_or(0, csv::Position::line).saturating_sub(1);
            let values = fields(&row);
            if values == [b""] {
                continue;
            }
            if values.len() > columns.len() {
                let (n, named) = (values.len(), columns.len());
                let message = format!("the row has {n} values, the header row names {named} columns");
                return Some(Err(self.bad(line, message, false)));
            }
            let payload = row_json(columns, &values);
            return Some(Ok(self.record(line, payload)));
        }
    }
}

impl Iterator for FileSource {
    type Item = Result<RawRecord, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = match self.inner {
            Inner::Lines { .. } => self.next_line(),
            Inner::Rows { .. } => self.next_row(),
        };
        self.ended =
            matches!(next, None | Some(Err(FileError::Read { .. } | FileError::Record { fatal: true, .. })));
        next
    }
}

/// The row's values without the carriage return of its end. Rows are ended by the line feed alone, because
/// the csv crate counts lines wrongly where it takes `\r\n` for one mark.
fn fields(row: &csv::ByteRecord) -> Vec<&[u8]> {
    let mut values: Vec<&[u8]> = row.iter().collect();
    if let Some(last) = values.last_mut() {
        *last = last.strip_suffix(b"\r").unwrap_or(last);
    }
    values
}

/// The row as a JSON object. A row that is not UTF-8 is handed on as it is, so that the decoder refuses
/// it as what it is.
fn row_json(columns: &[String], row: &[&[u8]]) -> Vec<u8> {
    let mut object = Map::new();
    for (name, value) in columns.iter().zip(row.iter().copied()) {
        match std::str::from_utf8(value) {
            Ok(v) => object.insert(name.clone(), Value::String(v.to_owned())),
            Err(_) => return row.join(&b'\t'),
        };
    }
    Value::Object(object).to_string().into_bytes()
}

fn rows(mut counted: Counted, delimiter: u8, name: &str) -> Result<Inner, FileError> {
    let fail = |message: String| FileError::Record { file: name.into(), line: 1, message, fatal: true };
    // The csv crate would take a byte-order mark for part of the first column's name.
    let mut start = vec![0; BOM.len()];
    let mut n = 0;
    while n < start.len() {
        match counted.read(&mut start[n..]) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(FileError::Read { file: name.into(), source }),
        }
    }
    start.truncate(n);
    if start == BOM {
        start.clear();
    }
    let cap = Arc::new(AtomicU64::new(MAX_RECORD_BYTES));
    let capped = Capped { inner: counted, left: cap.clone() };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .terminator(csv::Terminator::Any(b'\n'))
        .flexible(true)
        .from_reader(io::Cursor::new(start).chain(capped));
    let header = reader.headers().map_err(|e| fail(format!("cannot read the header row: {e}")))?;
    let columns: Vec<String> = header.iter().map(|c| c.trim().to_owned()).collect();
    if columns.iter().all(String::is_empty) {
        return Err(fail("no header row: the first row must name the columns".into()));
    }
    if let Some((i, twice)) = columns.iter().enumerate().find(|(i, c)| columns[..*i].contains(c)) {
        return Err(fail(format!("column {} is named '{twice}' like one before it", i + 1)));
    }
    Ok(Inner::Rows { reader: Box::new(reader), columns, cap })
}

/// Counts what is read.
struct Counted {
    input: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buf)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// Bounds what one row may take: a quote that is never closed makes the rest of the file one value.
struct Capped {
    inner: Counted,
    left: Arc<AtomicU64>,
}

impl Read for Capped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            let message =
                format!("the row is longer than {} MiB: a quote that is not closed?", MAX_RECORD_BYTES >> 20);
            return Err(io::Error::other(message));
        }
        let n = self.inner.read(buf)?;
        self.left.store(left.saturating_sub(n as u64), Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn source(bytes: &[u8], format: Format) -> Result<FileSource, FileError> {
        FileSource::from_reader(
            Box::new(io::Cursor::new(bytes.to_vec())),
            "f.x",
            Some(bytes.len() as u64),
            format,
        )
    }

    fn all(bytes: &[u8], format: Format) -> Vec<(i64, String)> {
        let show = |r: RawRecord| {
            (r.position.offset.0, String::from_utf8_lossy(r.payload.as_deref().unwrap()).into_owned())
        };
        source(bytes, format).unwrap().map(|r| show(r.unwrap())).collect()
    }

    #[test]
    fn lines_are_read_however_they_end() {
        let rows = all(b"\xEF\xBB\xBF{\"a\":1}\r\n\n  \n{\"b\":2}\n{\"c\":3}", Format::Ndjson);
        assert_eq!(rows, [(0, "{\"a\":1}".into()), (3, "{\"b\":2}".into()), (4, "{\"c\":3}".into())]);
        assert!(all(b"", Format::Ndjson).is_empty());
        assert!(all(b"\n\n", Format::Ndjson).is_empty());
    }

    #[test]
    fn a_line_beyond_the_cap_is_an_error_and_the_next_is_read() {
        let mut bytes = vec![b'x'; MAX_RECORD_BYTES as usize + 5];
        bytes.extend_from_slice(b"\n{\"a\":1}\n");
        let mut s = source(&bytes, Format::Ndjson).unwrap();
        let e = s.next().unwrap().unwrap_err().to_string();
        assert!(e.starts_with("f.x:1: ") && e.contains("64 MiB"), "{e}");
        assert_eq!(s.next().unwrap().unwrap().position.offset.0, 1);
        assert!(s.next().is_none());
        assert_eq!(s.bytes_read(), s.total_bytes().unwrap());
    }

    #[test]
    fn an_array_over_lines_is_explained() {
        let mut s = source(b"[\n{\"a\":1},\n", Format::Ndjson).unwrap();
        assert!(s.next().unwrap().unwrap_err().to_string().contains("jq -c"));
        assert!(s.next().is_none());
    }

    #[test]
    fn rows_become_objects_named_by_the_header() {
        let rows = all(b"\xEF\xBB\xBFid,text\r\n1,\"a \"\"b\"\"\nc\"\r\n2,short\n3\n", Format::Csv);
        assert_eq!(
            rows,
            [
                (1, r#"{"id":"1","text":"a \"b\"\nc"}"#.into()),
                (3, r#"{"id":"2","text":"short"}"#.into()),
                (4, r#"{"id":"3"}"#.into()),
            ]
        );
        assert_eq!(
            all(b"id,text\r\n\r\n\n1,\"x\"\r\n", Format::Csv),
            [(2, r#"{"id":"1","text":"x"}"#.into())]
        );
        assert_eq!(all(b"id\ttext\n1\ta,b\n", Format::Tsv), [(1, r#"{"id":"1","text":"a,b"}"#.into())]);
    }

    #[test]
    fn bad_rows_name_file_and_line_and_reading_goes_on() {
        let mut s = source(b"id,text\n1,a,b\n2,c\n", Format::Csv).unwrap();
        let e = s.next().unwrap().unwrap_err().to_string();
        assert!(e.starts_with("f.x:2: ") && e.contains("3 values"), "{e}");
        assert_eq!(s.next().unwrap().unwrap().position.offset.0, 2);
        for bad in [&b""[..], b"\n", b"a,a\n1,2\n", b",\n"] {
            let e = source(bad, Format::Csv).err().unwrap().to_string();
            assert!(e.starts_with("f.x:1: "), "{e}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_with_an_error() {
        let mut bytes = b"id,text\n1,\"".to_vec();
        bytes.resize(MAX_RECORD_BYTES as usize + (1 << 20), b'x');
        let mut s = source(&bytes, Format::Csv).unwrap();
        let e = s.next().unwrap().unwrap_err().to_string();
        assert!(e.contains("quote"), "{e}");
        assert!(s.next().is_none());
    }

    #[test]
    fn a_row_that_is_not_utf8_reaches_the_decoder_as_it_is() {
        let mut s = source(b"id,text\n1,\xFF\xFE\n", Format::Csv).unwrap();
        assert_eq!(s.next().unwrap().unwrap().payload.as_deref(), Some(&b"1\t\xFF\xFE"[..]));
    }

    #[test]
    fn formats_are_told_by_extension() {
        for (name, format) in [
            ("a.NDJSON", Format::Ndjson),
            ("a.csv", Format::Csv),
            ("a.tsv", Format::Tsv),
            ("-", Format::Ndjson),
        ] {
            assert_eq!(Format::of(Path::new(name)).unwrap(), format);
        }
        let e = FileSource::open(Path::new("posts.xml"), None).err().unwrap().to_string();
        assert!(e.contains("posts.xml") && e.contains(".ndjson"), "{e}");
        let e = FileSource::open(Path::new("/nonexistent/a.csv"), None).err().unwrap().to_string();
        assert!(e.contains("/nonexistent/a.csv"), "{e}");
    }
}
