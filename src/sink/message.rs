//! A settled record as the message that is produced: topic, key, value, headers. Pure.
//!
//! The message's time stamp is that of the input record, so that a replay gives the same message. The post's
//! own `created_at` is not used: brokers refuse times in the future and delete what is older than the
//! retention, and a post may claim any date.

use bytes::Bytes;

use crate::record::{DeadLetter, Labelled, RawRecord, Stage, Timestamp};

/// Header names of labelled records.
pub mod labelled {
    /// Topic of the post.
    pub const TOPIC: &str = "sentistream.source.topic";
    /// Partition of the post, decimal.
    pub const PARTITION: &str = "sentistream.source.partition";
    /// Offset of the post, decimal.
    pub const OFFSET: &str = "sentistream.source.offset";
    /// The model's name.
    pub const MODEL: &str = "sentistream.model";
    /// The model's hash.
    pub const MODEL_HASH: &str = "sentistream.model.hash";
    /// Always `application/json`.
    pub const CONTENT_TYPE: &str = "content-type";
}

/// Header names of dead letters: those of Kafka Connect.
pub mod dead {
    /// Topic of the record.
    pub const TOPIC: &str = "__connect.errors.topic";
    /// Partition of the record, decimal.
    pub const PARTITION: &str = "__connect.errors.partition";
    /// Offset of the record, decimal.
    pub const OFFSET: &str = "__connect.errors.offset";
    /// Which stage refused it.
    pub const STAGE: &str = "__connect.errors.stage";
    /// The reason, a short stable word.
    pub const REASON: &str = "__connect.errors.exception.class.name";
    /// One line for people.
    pub const MESSAGE: &str = "__connect.errors.exception.message";
    /// Present when the value did not fit and was cut: its original length in bytes.
    pub const CUT_FROM: &str = "sentistream.cut.from.bytes";
}

/// What is produced.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Whether it goes to the dead-letter topic.
    pub dead: bool,
    /// The input's key.
    pub key: Option<Bytes>,
    /// JSON of [`Labelled`], or the input's value unchanged.
    pub value: Option<Bytes>,
    /// In order.
    pub headers: Vec<(&'static str, String)>,
    /// The input's time stamp.
    pub timestamp: Option<Timestamp>,
}

impl Outgoing {
    /// Bytes that count towards `message.max.bytes`, with room for framing.
    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(k, v)| k.len() + v.len() + 16).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers + 512
    }

    /// The labelled record; a dead letter of it where it would be larger than `max_bytes`.
    pub fn labelled(record: &RawRecord, post: &Labelled, max_bytes: usize) -> Self {
        let refuse = |message: String| {
            let letter =
                DeadLetter { record: record.clone(), stage: Stage::Classify, reason: "too_large", message };
            Self::dead(&letter, max_bytes)
        };
        let value = match serde_json::to_vec(post) {
            Ok(v) => v.into(),
            Err(e) => return refuse(format!("the labelled record is not JSON: {e}")),
        };
        let headers = vec![
            (labelled::TOPIC, post.source.topic.to_string()),
            (labelled::PARTITION, post.source.partition.to_string()),
            (labelled::OFFSET, post.source.offset.to_string()),
            (labelled::MODEL, post.model.name.to_string()),
            (labelled::MODEL_HASH, post.model.hash.to_string()),
            (labelled::CONTENT_TYPE, "application/json".to_owned()),
        ];
        let out = Self {
            dead: false,
            key: record.key.clone(),
            value: Some(value),
            headers,
            timestamp: record.timestamp,
        };
        match out.size() {
            n if n > max_bytes => {
                refuse(format!("the labelled record has {n} bytes, at most {max_bytes} can be sent"))
            }
            _ => out,
        }
    }

    /// The dead letter, its value cut where it would be larger than `max_bytes`.
    pub fn dead(letter: &DeadLetter, max_bytes: usize) -> Self {
        let position = &letter.record.position;
        let headers = vec![
            (dead::TOPIC, position.partition.topic.to_string()),
            (dead::PARTITION, position.partition.partition.to_string()),
            (dead::OFFSET, position.offset.to_string()),
            (dead::STAGE, letter.stage.as_str().to_owned()),
            (dead::REASON, letter.reason.to_owned()),
            (dead::MESSAGE, letter.message.clone()),
        ];
        let RawRecord { key, payload, timestamp, .. } = letter.record.clone();
        let mut out = Self { dead: true, key, value: payload, headers, timestamp };
        if let Some(value) = out.value.take_if(|v| v.len() + 4096 > max_bytes) {
            let kept = max_bytes.saturating_sub(4096).min(value.len());
            out.headers.push((dead::CUT_FROM, value.len().to_string()));
            out.value = Some(value.slice(..kept));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::{Label, ModelId, Offset, Position, Scores, SourceRef, TopicPartition};

    fn record(len: usize) -> RawRecord {
        RawRecord {
            position: Position { partition: TopicPartition::new("posts", 2), offset: Offset(41) },
            key: Some(Bytes::from_static(b"k")),
            payload: Some(vec![b'x'; len].into()),
            timestamp: Some(Timestamp::from_millis(1_700_000_000_000)),
        }
    }

    fn post(text: String) -> Labelled {
        Labelled {
            schema: Labelled::SCHEMA,
            id: "1".into(),
            created_at: Timestamp(0),
            label: Label::Neutral,
            confidence: 0.5,
            scores: Scores { negative: 0.25, neutral: 0.5, positive: 0.25 },
            brands: vec![],
            lang: "en".into(),
            channel: "x".into(),
            author: None,
            reach: None,
            text: Some(text),
            model: ModelId { name: "m".into(), hash: "h".into() },
            source: SourceRef::from(&record(0).position),
        }
    }

    #[test]
    fn a_labelled_record_says_where_it_comes_from() {
        let out = Outgoing::labelled(&record(3), &post("hi".into()), 10_000);
        assert!(!out.dead);
        assert_eq!(out.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(out.timestamp, record(3).timestamp);
        assert!(out.headers.contains(&(labelled::OFFSET, "41".into())));
        assert_eq!(serde_json::from_slice::<Labelled>(&out.value.unwrap()).unwrap(), post("hi".into()));
    }

    #[test]
    fn what_does_not_fit_becomes_a_dead_letter_that_fits() {
        let out = Outgoing::labelled(&record(9000), &post("a".repeat(20_000)), 8_000);
        assert!(out.dead && out.size() <= 8_000, "{}", out.size());
        assert!(out.headers.contains(&(dead::REASON, "too_large".into())));
        assert!(out.headers.contains(&(dead::CUT_FROM, "9000".into())));
        assert_eq!(out.value.unwrap().len(), 8_000 - 4096);
    }

    #[test]
    fn a_dead_letter_keeps_key_value_and_position() {
        let letter = DeadLetter {
            record: record(5),
            stage: Stage::Decode,
            reason: "not_json",
            message: "expected '{'".into(),
        };
        let out = Outgoing::dead(&letter, 10_000);
        assert_eq!(out.value.as_deref(), Some(&b"xxxxx"[..]));
        let of = |name| out.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()).unwrap();
        assert_eq!((of(dead::TOPIC), of(dead::PARTITION), of(dead::OFFSET)), ("posts", "2", "41"));
        assert_eq!(
            (of(dead::STAGE), of(dead::REASON), of(dead::MESSAGE)),
            ("decode", "not_json", "expected '{'")
        );
    }
}
