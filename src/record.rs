//! The nouns that cross room borders: positions in a log, posts, labelled posts.
//!
//! Offsets are newtypes because Kafka has two of them that look alike: the offset *of* a record and
//! the *next* offset to read, which is what a group commits. [`Offset::next`] is the only `+ 1` in
//! the code base.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One partition of one topic (or one file, for which the topic is the file's name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic, or file name.
    pub topic: Arc<str>,
    /// Partition number; 0 for a file.
    pub partition: i32,
}

impl TopicPartition {
    /// A partition of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// The offset of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl Offset {
    /// The position after this record: what is committed once the record is settled.
    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

/// The offset that is read next, everything before it being settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NextOffset(pub i64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NextOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a record was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Its partition.
    pub partition: TopicPartition,
    /// Its offset; for a file the line number, counted from 0.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.partition, self.offset)
    }
}

/// A record as it came, not looked into yet.
#[derive(Clone, Debug)]
pub struct RawRecord {
    /// Where it was read.
    pub position: Position,
    /// Kafka key, kept for the output.
    pub key: Option<Bytes>,
    /// Kafka value; `None` is a tombstone.
    pub payload: Option<Bytes>,
    /// The record's own time stamp, the fall-back for a post without `created_at`.
    pub timestamp: Option<Timestamp>,
}

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// From milliseconds since the epoch; saturates.
    pub fn from_millis(ms: i64) -> Self {
        Self(ms.saturating_mul(1000))
    }

    /// The start of the tumbling window of `width_us` microseconds that holds this instant.
    pub fn window_start(self, width_us: i64) -> Self {
        Self(self.0 - self.0.rem_euclid(width_us))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC; three or six decimals, or none, whichever is exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_micros(self.0) {
            Some(t) => f.write_str(&t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
            None => write!(f, "{}us", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = chrono::ParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        chrono::DateTime::parse_from_rfc3339(s).map(|t| Self(t.timestamp_micros()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// A post as the decoder understood it. Its text is what the feed said, not yet prepared.
#[derive(Clone, Debug, PartialEq)]
pub struct Post {
    /// The feed's own id.
    pub id: String,
    /// The text, as it stood in the feed.
    pub text: String,
    /// Event time.
    pub created_at: Timestamp,
    /// Author handle or id.
    pub author: Option<String>,
    /// BCP 47 tag, lower case, primary subtag only (`en`, `ja`), as the feed gave it.
    pub lang: Option<String>,
    /// Where it was posted (`x`, `bluesky`, …).
    pub channel: Option<String>,
    /// How many people it may have reached (followers, views), not negative.
    pub reach: Option<i64>,
}

/// What a model can say of a post. The order is that of the score columns everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sentiment {
    /// Unfavourable.
    Negative,
    /// Neither, or both.
    Neutral,
    /// Favourable.
    Positive,
}

impl Sentiment {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Negative, Self::Neutral, Self::Positive];

    /// `negative`, `neutral` or `positive`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Neutral => "neutral",
            Self::Positive => "positive",
        }
    }
}

impl FromStr for Sentiment {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.trim().to_ascii_lowercase().as_str() {
            "negative" | "neg" => Ok(Self::Negative),
            "neutral" | "neu" => Ok(Self::Neutral),
            "positive" | "pos" => Ok(Self::Positive),
            _ => Err(format!("'{s}' is not a sentiment: expected negative, neutral or positive")),
        }
    }
}

/// The label of a labelled post: a sentiment, or `uncertain` where the configured band says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Unfavourable.
    Negative,
    /// Neither, or both.
    Neutral,
    /// Favourable.
    Positive,
    /// The model's confidence was below `classify.uncertain_below`.
    Uncertain,
}

impl Label {
    /// The label as it is written in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Neutral => "neutral",
            Self::Positive => "positive",
            Self::Uncertain => "uncertain",
        }
    }
}

impl From<Sentiment> for Label {
    fn from(s: Sentiment) -> Self {
        match s {
            Sentiment::Negative => Self::Negative,
            Sentiment::Neutral => Self::Neutral,
            Sentiment::Positive => Self::Positive,
        }
    }
}

/// Probabilities by sentiment, each rounded to [`Scores::DECIMALS`] decimals before anything uses it,
/// so that a sum over records and a sum over rollups are the same number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Probability of negative.
    pub negative: f64,
    /// Probability of neutral.
    pub neutral: f64,
    /// Probability of positive.
    pub positive: f64,
}

impl Scores {
    /// Decimals kept. Scores of one post computed in different micro-batches agree far below this.
    pub const DECIMALS: i32 = 4;
    /// `10^DECIMALS`: one unit of [`Scores::net_units`].
    pub const UNITS: i64 = 10_000;

    /// Rounds each probability; indices follow [`Sentiment::ALL`].
    pub fn rounded(p: [f64; 3]) -> Self {
        let r = |x: f64| (x * Self::UNITS as f64).round() / Self::UNITS as f64;
        Self { negative: r(p[0]), neutral: r(p[1]), positive: r(p[2]) }
    }

    /// `p_positive - p_negative` in units of `10^-4`: an integer, so sums are exact in any order.
    pub fn net_units(&self) -> i64 {
        let u = |x: f64| (x * Self::UNITS as f64).round() as i64;
        u(self.positive) - u(self.negative)
    }
}

/// What the model said of one post, the uncertain band applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The label.
    pub label: Label,
    /// Calibrated probability of the most likely sentiment, rounded like the scores.
    pub confidence: f64,
    /// Calibrated probabilities, rounded.
    pub scores: Scores,
}

/// Which model answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelId {
    /// Name from the artifact, or the folder's name.
    pub name: Arc<str>,
    /// First 16 hex digits of the artifact's hash (graph, tokenizer and configuration together).
    pub hash: Arc<str>,
}

/// Source position as it stands in a labelled record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRef {
    /// Topic, or file name.
    pub topic: Arc<str>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

impl From<&Position> for SourceRef {
    fn from(p: &Position) -> Self {
        Self { topic: p.partition.topic.clone(), partition: p.partition.partition, offset: p.offset.0 }
    }
}

/// A labelled post: the value of a record on the labelled topic (`deploy/schema/labelled.schema.json`).
///
/// Nothing in it comes from the clock, so that a replay of the same log gives the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Labelled {
    /// Version of this form; [`Labelled::SCHEMA`].
    pub schema: u32,
    /// The post's id.
    pub id: String,
    /// Event time.
    pub created_at: Timestamp,
    /// The verdict.
    pub label: Label,
    /// Calibrated probability of the most likely sentiment, rounded like the scores.
    pub confidence: f64,
    /// Calibrated probabilities.
    pub scores: Scores,
    /// Names of the brands that the text mentions, sorted; empty when none.
    pub brands: Vec<Arc<str>>,
    /// Language: the post's own, else detected; `und` when neither can tell.
    pub lang: String,
    /// Channel; `unknown` when the post names none.
    pub channel: String,
    /// Author, when the post names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Reach, when the post gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<i64>,
    /// The text as posted, unless `output.text = false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Which model answered.
    pub model: ModelId,
    /// Where the post was read.
    pub source: SourceRef,
}

impl Labelled {
    /// The version written today.
    pub const SCHEMA: u32 = 1;
}

/// A record that cannot be labelled, on its way to the dead-letter topic. The original key and value
/// go with it unchanged.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The record as it came.
    pub record: RawRecord,
    /// Which stage refused it.
    pub stage: Stage,
    /// A short stable word for metrics and filters (`not_json`, `missing_field`, …).
    pub reason: &'static str,
    /// One line for people: what was expected and what was found. Never the post's text.
    pub message: String,
}

/// A stage of the pipeline, as metrics and dead letters name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Bytes to post.
    Decode,
    /// Text to encoding.
    Tokenize,
    /// Encoding to logits.
    Classify,
}

impl Stage {
    /// `decode`, `tokenize` or `classify`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Tokenize => "tokenize",
            Self::Classify => "classify",
        }
    }
}

/// Logits of one post, one per label of the model, in the model's own label order.
pub type Logits = Vec<f32>;

/// Ordered map, for stable output.
pub type Map<K, V> = BTreeMap<K, V>;
