//! A settled record as the message that is produced: topic, key, value, headers. Pure.
//!
//! The message's time stamp is that of the input record, so that a replay gives the same message. The post's
//! own `created_at` is not used: brokers refuse times in the future and delete what is older than the
//! retention, and a post may claim any date.

use bytes::Bytes;

use crate::{
    headers::{self, CUT_FROM, Header, KEY_CUT_FROM},
    record::{DeadLetter, Labelled, RawRecord, Stage, Timestamp},
};

/// Kept free for headers and framing beside the key and value of a dead letter.
const HEADER_ROOM: usize = 4096;

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
    pub headers: Vec<Header>,
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
    pub fn labelled(record: &RawRecord, post: &Labelled, group: &str, max_bytes: usize) -> Self {
        let refuse = |message: String| {
            let letter =
                DeadLetter { record: record.clone(), stage: Stage::Classify, reason: "too_large", message };
            Self::dead(&letter, group, max_bytes)
        };
        let value = match serde_json::to_vec(post) {
            Ok(v) => v.into(),
            Err(e) => return refuse(format!("the labelled record is not JSON: {e}")),
        };
        let headers = headers::labelled(&record.position, &post.model);
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

    /// The dead letter, its value cut where it would be larger than `max_bytes`, and without its key where that
    /// alone would be.
    pub fn dead(letter: &DeadLetter, group: &str, max_bytes: usize) -> Self {
        let headers = headers::dead_letter(letter, group);
        let RawRecord { key, payload, timestamp, .. } = letter.record.clone();
        let mut out = Self { dead: true, key, value: None, headers, timestamp };
        // Headers may be larger than the room for them: nothing bounds the message.
        let fixed = HEADER_ROOM.max(out.size() - out.key.as_ref().map_or(0, Bytes::len) + 128);
        let keyless = out.key.take_if(|k| k.len() + fixed > max_bytes);
        let room = max_bytes.saturating_sub(fixed + out.key.as_ref().map_or(0, Bytes::len));
        let len = payload.as_ref().map_or(0, Bytes::len);
        if let Some(key) = &keyless {
            out.headers.push((KEY_CUT_FROM, key.len().to_string().into_bytes()));
        }
        if keyless.is_some() || len > room {
            out.headers.push((CUT_FROM, len.to_string().into_bytes()));
        }
        out.value = payload.map(|v| v.slice(..len.min(room)));
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

    fn parsed(out: &Outgoing) -> headers::DeadLetterInfo {
        headers::parse_dead_letter(out.headers.iter().map(|(n, v)| (*n, Some(v.as_slice())))).unwrap()
    }

    #[test]
    fn a_labelled_record_says_where_it_comes_from() {
        let out = Outgoing::labelled(&record(3), &post("hi".into()), "g", 10_000);
        assert!(!out.dead);
        assert_eq!(out.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(out.timestamp, record(3).timestamp);
        assert!(out.headers.contains(&("sentistream.source.offset", b"41".to_vec())));
        assert_eq!(serde_json::from_slice::<Labelled>(&out.value.unwrap()).unwrap(), post("hi".into()));
    }

    #[test]
    fn what_does_not_fit_becomes_a_dead_letter_that_fits() {
        let out = Outgoing::labelled(&record(9000), &post("a".repeat(20_000)), "g", 8_000);
        assert!(out.dead && out.size() <= 8_000, "{}", out.size());
        let info = parsed(&out);
        assert_eq!((info.reason.as_str(), info.cut_from), ("too_large", Some(9000)));
        assert_eq!(out.value.unwrap().len(), 8_000 - 4096 - 1);
    }

    #[test]
    fn a_dead_letter_fits_whatever_its_key_and_message_are() {
        for (key, value, message) in
            [(7_000, 10, 10), (3_900, 10, 10), (3_000, 9_000, 10), (500, 9_000, 6_000), (9_000, 9_000, 3_000)]
        {
            let mut record = record(value);
            record.key = Some(vec![b'k'; key].into());
            let message = "m".repeat(message);
            let letter = DeadLetter { record, stage: Stage::Decode, reason: "not_json", message };
            let out = Outgoing::dead(&letter, "g", 8_000);
            assert!(out.size() <= 8_000, "key {key}, value {value}: {}", out.size());
            let whole = out.key.is_some() && out.value.as_ref().unwrap().len() == value;
            assert_eq!(parsed(&out).cut_from, (!whole).then_some(value as u64), "key {key}, value {value}");
            assert_eq!(out.key.is_none(), key + 4096 > 8_000);
            assert_eq!(out.headers.iter().any(|(n, _)| *n == KEY_CUT_FROM), out.key.is_none());
        }
    }

    #[test]
    fn a_dead_letter_keeps_key_value_and_position() {
        let letter = DeadLetter {
            record: record(5),
            stage: Stage::Decode,
            reason: "not_json",
            message: "expected '{'".into(),
        };
        let out = Outgoing::dead(&letter, "g", 10_000);
        assert_eq!(out.value.as_deref(), Some(&b"xxxxx"[..]));
        let info = parsed(&out);
        assert_eq!(info.source, record(5).position);
        assert_eq!((info.stage.as_str(), info.reason.as_str()), ("decode", "not_json"));
        assert_eq!((info.message.as_str(), info.group.as_str()), ("expected '{'", "g"));
    }
}
