//! Headers of the records that classify writes. Pure: names and bytes, no client.
//!
//! Dead letters use the names that Kafka Connect uses, so that tools which know those read ours.

use crate::record::{DeadLetter, ModelId, Offset, Position, Stage, TopicPartition};

/// A header, in the order in which it is written.
pub type Header = (&'static str, Vec<u8>);

const SOURCE_TOPIC: &str = "sentistream.source.topic";
const SOURCE_PARTITION: &str = "sentistream.source.partition";
const SOURCE_OFFSET: &str = "sentistream.source.offset";
const MODEL: &str = "sentistream.model";
const MODEL_HASH: &str = "sentistream.model.hash";
const CONTENT_TYPE: &str = "content-type";

const DEAD_TOPIC: &str = "__connect.errors.topic";
const DEAD_PARTITION: &str = "__connect.errors.partition";
const DEAD_OFFSET: &str = "__connect.errors.offset";
const DEAD_CONNECTOR: &str = "__connect.errors.connector.name";
const DEAD_STAGE: &str = "__connect.errors.stage";
const DEAD_REASON: &str = "__connect.errors.exception.class.name";
const DEAD_MESSAGE: &str = "__connect.errors.exception.message";
/// Present on a dead letter whose value did not fit and was cut: its original length in bytes.
pub const CUT_FROM: &str = "sentistream.cut.from.bytes";

/// Headers of a labelled record: where the post was read and which model answered.
pub fn labelled(position: &Position, model: &ModelId) -> Vec<Header> {
    vec![
        (SOURCE_TOPIC, position.partition.topic.as_bytes().to_vec()),
        (SOURCE_PARTITION, text(position.partition.partition)),
        (SOURCE_OFFSET, text(position.offset)),
        (MODEL, model.name.as_bytes().to_vec()),
        (MODEL_HASH, model.hash.as_bytes().to_vec()),
        (CONTENT_TYPE, b"application/json".to_vec()),
    ]
}

/// Headers of a dead letter; `group` is the consumer group that refused it.
pub fn dead_letter(letter: &DeadLetter, group: &str) -> Vec<Header> {
    let position = &letter.record.position;
    vec![
        (DEAD_TOPIC, position.partition.topic.as_bytes().to_vec()),
        (DEAD_PARTITION, text(position.partition.partition)),
        (DEAD_OFFSET, text(position.offset)),
        (DEAD_CONNECTOR, group.as_bytes().to_vec()),
        (DEAD_STAGE, letter.stage.as_str().as_bytes().to_vec()),
        (DEAD_REASON, letter.reason.as_bytes().to_vec()),
        (DEAD_MESSAGE, letter.message.as_bytes().to_vec()),
    ]
}

/// Present on a dead letter whose key did not fit and was left out: its length in bytes. Such a letter also
/// has [`CUT_FROM`], because it is not the whole record.
pub const KEY_CUT_FROM: &str = "sentistream.cut.key.from.bytes";

/// What the headers of a dead letter say, as `dead-letters list` and `requeue` need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterInfo {
    /// Where the record was read.
    pub source: Position,
    /// Which stage refused it.
    pub stage: String,
    /// The short stable word.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// The consumer group that refused it.
    pub group: String,
    /// Original length of a value that was cut.
    pub cut_from: Option<u64>,
}

/// Headers that are not those of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A header that is needed is not there.
    #[error("header '{0}' is missing: this record was not written as a dead letter")]
    Missing(&'static str),
    /// A header with a value that it cannot have.
    #[error("header '{0}' is not {1}")]
    Bad(&'static str, &'static str),
}

/// Reads a dead letter's headers. Of a name that stands twice the last counts: a record that was requeued
/// by another tool and died again carries both.
///
/// # Errors
/// Names the header that is missing or cannot be read.
pub fn parse_dead_letter<'a>(
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Result<DeadLetterInfo, HeaderError> {
    let names = [
        DEAD_TOPIC,
        DEAD_PARTITION,
        DEAD_OFFSET,
        DEAD_STAGE,
        DEAD_REASON,
        DEAD_MESSAGE,
        DEAD_CONNECTOR,
        CUT_FROM,
    ];
    let mut values: [Option<&[u8]>; 8] = [None; 8];
    for (name, value) in headers {
        if let Some(i) = names.iter().position(|n| *n == name) {
            values[i] = value.or(values[i]);
        }
    }
    let get = |i: usize| {
        let bytes = values[i].ok_or(HeaderError::Missing(names[i]))?;
        std::str::from_utf8(bytes).map_err(|_| HeaderError::Bad(names[i], "UTF-8"))
    };
    let number = |i: usize| get(i)?.parse::<i64>().map_err(|_| HeaderError::Bad(names[i], "a whole number"));
    let partition =
        i32::try_from(number(1)?).map_err(|_| HeaderError::Bad(DEAD_PARTITION, "a partition number"))?;
    let optional = |i: usize| get(i).unwrap_or_default().to_owned();
    Ok(DeadLetterInfo {
        source: Position { partition: TopicPartition::new(get(0)?, partition), offset: Offset(number(2)?) },
        stage: optional(3),
        reason: optional(4),
        message: optional(5),
        group: optional(6),
        cut_from: get(7).ok().and_then(|n| n.parse().ok()),
    })
}

/// True for a header that [`dead_letter`] writes and a requeued record must not carry.
pub fn is_dead_letter_header(name: &str) -> bool {
    name.starts_with("__connect.errors.") || name == CUT_FROM || name == KEY_CUT_FROM
}

/// The stage of a dead letter's header.
pub fn stage(name: &str) -> Option<Stage> {
    [Stage::Decode, Stage::Tokenize, Stage::Classify].into_iter().find(|s| s.as_str() == name)
}

fn text(value: impl std::fmt::Display) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::RawRecord;

    fn position() -> Position {
        Position { partition: TopicPartition::new("posts", 3), offset: Offset(42) }
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            record: RawRecord { position: position(), key: None, payload: None, timestamp: None },
            stage: Stage::Decode,
            reason: "not_json",
            message: "expected value at line 1 column 1".into(),
        }
    }

    fn borrowed(headers: &[Header]) -> Vec<(&str, Option<&[u8]>)> {
        headers.iter().map(|(n, v)| (*n, Some(v.as_slice()))).collect()
    }

    #[test]
    fn a_labelled_record_says_where_it_came_from() {
        let model = ModelId { name: "m".into(), hash: "0123456789abcdef".into() };
        let headers = labelled(&position(), &model);
        let shown: Vec<String> =
            headers.iter().map(|(n, v)| format!("{n}={}", String::from_utf8_lossy(v))).collect();
        assert_eq!(
            shown,
            [
                "sentistream.source.topic=posts",
                "sentistream.source.partition=3",
                "sentistream.source.offset=42",
                "sentistream.model=m",
                "sentistream.model.hash=0123456789abcdef",
                "content-type=application/json",
            ]
        );
    }

    #[test]
    fn a_dead_letter_reads_back() {
        let headers = dead_letter(&letter(), "sentistream");
        assert!(headers.iter().all(|(n, _)| is_dead_letter_header(n)));
        let info = parse_dead_letter(borrowed(&headers)).unwrap();
        assert_eq!(info.source, position());
        assert_eq!((info.stage.as_str(), info.reason.as_str()), ("decode", "not_json"));
        assert_eq!(
            (info.message.as_str(), info.group.as_str()),
            ("expected value at line 1 column 1", "sentistream")
        );
        assert_eq!(stage(&info.stage), Some(Stage::Decode));
    }

    #[test]
    fn other_headers_are_named() {
        let headers = dead_letter(&letter(), "g");
        let mut without = borrowed(&headers);
        without.retain(|(n, _)| *n != DEAD_OFFSET);
        assert_eq!(parse_dead_letter(without).unwrap_err(), HeaderError::Missing(DEAD_OFFSET));
        let mut bad = borrowed(&headers);
        bad.push((DEAD_PARTITION, Some(b"x")));
        assert!(parse_dead_letter(bad).unwrap_err().to_string().contains(DEAD_PARTITION));
        let mut twice = borrowed(&headers);
        twice.push((DEAD_OFFSET, Some(b"43")));
        assert_eq!(parse_dead_letter(twice).unwrap().source.offset, Offset(43));
    }
}
