//! Bytes → post, skip or refusal. Pure: the same record always decodes the same way.
//!
//! A record that is no post (a delete, a heart-beat, a like) is skipped; a record that should have been
//! a post and cannot be read as one is refused, with a short stable reason:
//!
//! | skip | | refusal | |
//! |---|---|---|---|
//! | `tombstone` | no value | `too_large` | over `decode.limits.max_record_bytes` |
//! | `blank` | nothing but white space | `not_utf8`, `not_json`, `too_deep` | cannot be parsed |
//! | `delete`, `update`, `control` | an event about a post or the stream | `not_object` | an array or a bare value |
//! | `not_post` | another kind of thing | `missing_field`, `bad_field` | id or text absent or of a wrong type |
//! | `empty_text` | nothing to read | `no_time`, `bad_time` | no event time, or one that is none |
//!
//! Optional fields (author, lang, channel, reach) never refuse a post: what cannot be read is left out.
//! A message names places, types and lengths, never the content.

mod bluesky;
mod fields;
mod generic;
mod html;
mod json;
mod mastodon;
mod reddit;
mod time;
mod x;

use std::borrow::Cow;

use serde_json::Value;

use crate::{
    config::{self, Preset, SettingError},
    language,
    record::{Post, RawRecord, Timestamp},
};
use fields::{Field, Found, Sources, present};

pub use time::{TimeError, parse_text as parse_time};

/// Longest id, characters.
const MAX_ID_CHARS: usize = 512;
/// Longest author or channel; a longer one is left out.
const MAX_NAME_CHARS: usize = 256;

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A post.
    Post(Post),
    /// No post; the word says what it was.
    Skip(&'static str),
    /// A record that should be a post and cannot be read as one.
    Reject {
        /// A short stable word.
        reason: &'static str,
        /// One line for people, without the post's text.
        message: String,
    },
}

/// The early ends of decoding.
#[derive(Debug)]
enum Refusal {
    Skip(&'static str),
    Reject(&'static str, String),
}

/// Reads records of one feed.
#[derive(Debug)]
pub struct Decoder {
    preset: Preset,
    sources: Sources,
    max_record_bytes: usize,
}

impl Decoder {
    /// A decoder for the configured preset and JSON pointers.
    ///
    /// # Errors
    /// A pointer that is none, or a dropped `text`; the error names `decode.fields.…`.
    pub fn new(config: &config::Decode) -> Result<Self, SettingError> {
        Ok(Self {
            preset: config.preset,
            sources: Sources::new(&config.fields)?,
            max_record_bytes: config.limits.max_record_bytes,
        })
    }

    /// Decodes one record.
    pub fn decode(&self, record: &RawRecord) -> Decoded {
        match self.post(record) {
            Ok(post) => Decoded::Post(post),
            Err(Refusal::Skip(reason)) => Decoded::Skip(reason),
            Err(Refusal::Reject(reason, message)) => Decoded::Reject { reason, message },
        }
    }

    fn post(&self, record: &RawRecord) -> Result<Post, Refusal> {
        let payload = record.payload.as_deref().ok_or(Refusal::Skip("tombstone"))?;
        if payload.len() > self.max_record_bytes {
            let (n, max) = (payload.len(), self.max_record_bytes);
            let message = format!("the record has {n} bytes, decode.limits.max_record_bytes is {max}");
            return Err(Refusal::Reject("too_large", message));
        }
        let mut value = json::parse(payload)?;
        if self.preset == Preset::Mastodon {
            mastodon::open(&mut value)?;
        }
        if !value.is_object() {
            let message = format!("expected a JSON object, found {}", fields::kind(&value));
            return Err(Refusal::Reject("not_object", message));
        }
        let found = self.find(&value)?;
        let field = |field| Slot { value: self.sources.pick(field, &found, &value), field, decoder: self };
        let text = field(Field::Text).text()?;
        if text.trim().is_empty() {
            return Err(Refusal::Skip("empty_text"));
        }
        Ok(Post {
            id: self.id(&field(Field::Id), record)?,
            created_at: self.created_at(&field(Field::CreatedAt), &found, record)?,
            author: field(Field::Author).name(),
            lang: field(Field::Lang).name().and_then(|tag| language::normalise(&tag)),
            channel: field(Field::Channel).name().map(|c| c.to_lowercase()),
            reach: field(Field::Reach).value.and_then(|v| fields::count(&v)),
            text,
        })
    }

    fn find<'a>(&self, value: &'a Value) -> Result<Found<'a>, Refusal> {
        match self.preset {
            Preset::Generic => generic::find(value),
            Preset::X => x::find(value),
            Preset::Bluesky => bluesky::find(value),
            Preset::Mastodon => mastodon::find(value),
            Preset::Reddit => reddit::find(value),
        }
    }

    /// The post's id; where `decode.fields.id` is dropped, the record's position is the id.
    fn id(&self, slot: &Slot<'_>, record: &RawRecord) -> Result<String, Refusal> {
        if self.sources.dropped(Field::Id) {
            return Ok(record.position.to_string());
        }
        let Some(value) = slot.value.as_deref().filter(|v| present(v)) else {
            return Err(slot.missing());
        };
        let id = fields::id_text(value).map_err(|why| slot.bad(&why))?;
        if id.chars().count() > MAX_ID_CHARS {
            return Err(slot.bad(&format!("is longer than {MAX_ID_CHARS} characters")));
        }
        Ok(id)
    }

    /// Event time: the field, else the preset's second choice, else the record's own time stamp.
    fn created_at(
        &self,
        slot: &Slot<'_>,
        found: &Found<'_>,
        record: &RawRecord,
    ) -> Result<Timestamp, Refusal> {
        let second = found.received_at.as_deref().filter(|_| self.sources.is_preset(Field::CreatedAt));
        let candidates = [slot.value.as_deref(), second];
        let mut bad = None;
        for value in candidates.into_iter().flatten().filter(|v| present(v)) {
            match time::parse(value) {
                Ok(t) => return Ok(t),
                Err(e) => bad = bad.or(Some((value, e))),
            }
        }
        if let Some((value, e)) = bad {
            let message = format!("created_at at {} is {}: {e}", slot.place(), fields::kind(value));
            return Err(Refusal::Reject("bad_time", message));
        }
        let own = record.timestamp.ok_or_else(|| {
            let message = format!("no created_at at {} and the record carries no time stamp", slot.place());
            Refusal::Reject("no_time", message)
        })?;
        time::in_range(own)
            .map_err(|e| Refusal::Reject("bad_time", format!("the record's own time stamp: {e}")))
    }

    fn places(&self, field: Field) -> &'static str {
        let places = match self.preset {
            Preset::Generic => &generic::PLACES,
            Preset::X => &x::PLACES,
            Preset::Bluesky => &bluesky::PLACES,
            Preset::Mastodon => &mastodon::PLACES,
            Preset::Reddit => &reddit::PLACES,
        };
        match field {
            Field::Id => places.id,
            Field::Text => places.text,
            _ => places.created_at,
        }
    }
}

/// One field of one record, with what its errors need.
struct Slot<'a> {
    value: Option<Cow<'a, Value>>,
    field: Field,
    decoder: &'a Decoder,
}

impl Slot<'_> {
    fn text(&self) -> Result<String, Refusal> {
        match self.value.as_deref() {
            None | Some(Value::Null) => Err(self.missing()),
            Some(Value::String(s)) => Ok(s.clone()),
            Some(Value::Number(n)) => Ok(n.to_string()),
            Some(other) => Err(self.bad(&format!("is {}, expected a string", fields::kind(other)))),
        }
    }

    /// An optional short string, trimmed; anything else is left out.
    fn name(&self) -> Option<String> {
        let s = match self.value.as_deref()? {
            Value::String(s) => s.trim().to_owned(),
            Value::Number(n) => n.to_string(),
            _ => return None,
        };
        let fits = !s.is_empty() && !s.contains(char::is_control) && s.chars().count() <= MAX_NAME_CHARS;
        fits.then_some(s)
    }

    fn place(&self) -> String {
        match self.decoder.sources.pointer(self.field) {
            Some(p) => p.to_owned(),
            None => self.decoder.places(self.field).to_owned(),
        }
    }

    fn missing(&self) -> Refusal {
        let message = format!("no {} at {}", self.field.name(), self.place());
        Refusal::Reject("missing_field", message)
    }

    fn bad(&self, why: &str) -> Refusal {
        Refusal::Reject("bad_field", format!("{} at {} {why}", self.field.name(), self.place()))
    }
}
