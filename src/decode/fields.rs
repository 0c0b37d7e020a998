//! The fields of a post: where each comes from, and the loose typing that real feeds need.

use std::borrow::Cow;

use serde_json::Value;

use crate::config::{self, SettingError};

/// A field that `decode.fields` can redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Text,
    CreatedAt,
    Author,
    Lang,
    Channel,
    Reach,
}

impl Field {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Text => "text",
            Self::CreatedAt => "created_at",
            Self::Author => "author",
            Self::Lang => "lang",
            Self::Channel => "channel",
            Self::Reach => "reach",
        }
    }
}

/// A value that a preset found, borrowed from the record or made from it.
pub(super) type Maybe<'a> = Option<Cow<'a, Value>>;

/// What a preset found in a record.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    pub(super) id: Maybe<'a>,
    pub(super) text: Maybe<'a>,
    pub(super) created_at: Maybe<'a>,
    /// When the feed itself saw the post: used where `created_at` is missing or no time.
    pub(super) received_at: Maybe<'a>,
    pub(super) author: Maybe<'a>,
    pub(super) lang: Maybe<'a>,
    pub(super) channel: Maybe<'a>,
    pub(super) reach: Maybe<'a>,
}

/// Where a preset looks for the fields that can be missed, for error messages.
pub(super) struct Places {
    pub(super) id: &'static str,
    pub(super) text: &'static str,
    pub(super) created_at: &'static str,
}

/// A string that a preset made.
pub(super) fn made<'a>(s: impl Into<String>) -> Maybe<'a> {
    Some(Cow::Owned(Value::String(s.into())))
}

/// A member of an object, null counting as absent.
pub(super) fn member<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|v| !v.is_null())
}

/// The first of `keys` that is there and not null.
pub(super) fn first<'a>(value: &'a Value, keys: &[&str]) -> Maybe<'a> {
    keys.iter().find_map(|k| member(value, k)).map(Cow::Borrowed)
}

/// The value at `path`, null counting as absent.
pub(super) fn at<'a>(value: &'a Value, path: &[&str]) -> Maybe<'a> {
    path.iter().try_fold(value, |v, key| member(v, key)).map(Cow::Borrowed)
}

/// A string member.
pub(super) fn text_of<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    member(value, key)?.as_str()
}

/// Neither null nor a blank string: a CSV column without a value is a missing field.
pub(super) fn present(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(s) => !s.trim().is_empty(),
        _ => true,
    }
}

/// Type and size of a value, without its content.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(_) => "a number".into(),
        Value::String(s) => format!("a string of {} characters", s.chars().count()),
        Value::Array(a) => format!("an array of {}", a.len()),
        Value::Object(_) => "an object".into(),
    }
}

/// An id as text. A JSON number beyond 64 bits has lost digits in parsing and names no post any more.
pub(super) fn id_text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) => Ok(s.trim().to_owned()),
        Value::Number(n) if n.is_i64() || n.is_u64() => Ok(n.to_string()),
        Value::Number(n) => match n.as_f64() {
            Some(x) if x.fract() == 0.0 && x.abs() < 9e15 => Ok(format!("{x:.0}")),
            _ => Err("is a number that does not fit 64 bits, expected a string or an integer".into()),
        },
        other => Err(format!("is {}, expected a string or an integer", kind(other))),
    }
}

/// A count that is not negative; numbers and numbers in strings.
pub(super) fn count(value: &Value) -> Option<i64> {
    let n = match value {
        Value::Number(n) => n.as_i64().or_else(|| whole(n.as_f64()?)),
        Value::String(s) => s.trim().parse::<i64>().ok().or_else(|| whole(s.trim().parse().ok()?)),
        _ => None,
    }?;
    (n >= 0).then_some(n)
}

fn whole(x: f64) -> Option<i64> {
    (x.is_finite() && (0.0..9e15).contains(&x)).then_some(x.trunc() as i64)
}

/// Where each field is read.
#[derive(Debug)]
pub(super) struct Sources([Source; 7]);

#[derive(Debug)]
enum Source {
    /// Where the preset finds it.
    Preset,
    /// Nowhere.
    Dropped,
    /// At a JSON pointer from the root of the record.
    Pointer(String),
}

impl Sources {
    pub(super) fn new(fields: &config::Fields) -> Result<Self, SettingError> {
        let text = Source::new(Field::Text, fields.text.as_deref())?;
        if matches!(text, Source::Dropped) {
            return Err(bad(
                Field::Text,
                "is empty, which drops the field, but a post needs its text".into(),
            ));
        }
        Ok(Self([
            Source::new(Field::Id, fields.id.as_deref())?,
            text,
            Source::new(Field::CreatedAt, fields.created_at.as_deref())?,
            Source::new(Field::Author, fields.author.as_deref())?,
            Source::new(Field::Lang, fields.lang.as_deref())?,
            Source::new(Field::Channel, fields.channel.as_deref())?,
            Source::new(Field::Reach, fields.reach.as_deref())?,
        ]))
    }

    pub(super) fn pick<'a>(&self, field: Field, found: &Found<'a>, root: &'a Value) -> Maybe<'a> {
        match &self.0[field as usize] {
            Source::Dropped => None,
            Source::Pointer(p) => root.pointer(p).map(Cow::Borrowed),
            Source::Preset => match field {
                Field::Id => found.id.clone(),
                Field::Text => found.text.clone(),
                Field::CreatedAt => found.created_at.clone(),
                Field::Author => found.author.clone(),
                Field::Lang => found.lang.clone(),
                Field::Channel => found.channel.clone(),
                Field::Reach => found.reach.clone(),
            },
        }
    }

    pub(super) fn dropped(&self, field: Field) -> bool {
        matches!(self.0[field as usize], Source::Dropped)
    }

    pub(super) fn is_preset(&self, field: Field) -> bool {
        matches!(self.0[field as usize], Source::Preset)
    }

    pub(super) fn pointer(&self, field: Field) -> Option<&str> {
        match &self.0[field as usize] {
            Source::Pointer(p) => Some(p),
            _ => None,
        }
    }
}

impl Source {
    fn new(field: Field, setting: Option<&str>) -> Result<Self, SettingError> {
        let Some(pointer) = setting else { return Ok(Self::Preset) };
        if pointer.is_empty() {
            return Ok(Self::Dropped);
        }
        if !pointer.starts_with('/') {
            return Err(bad(
                field,
                format!("'{pointer}' is not a JSON pointer: it must begin with '/', as '/data/id'"),
            ));
        }
        let mut rest = pointer;
        while let Some(i) = rest.find('~') {
            rest = &rest[i + 1..];
            if !rest.starts_with(['0', '1']) {
                return Err(bad(
                    field,
                    format!("'{pointer}' is not a JSON pointer: '~' is written '~0' and '/' in a name '~1'"),
                ));
            }
        }
        Ok(Self::Pointer(pointer.to_owned()))
    }
}

fn bad(field: Field, message: String) -> SettingError {
    SettingError { key: format!("decode.fields.{}", field.name()), message }
}
