//! Bytes of the labelled topic → labelled post, or why not. Pure.

use crate::record::Labelled;

/// A record on the labelled topic that this stage cannot count: not ours, or of a newer version. The
/// message says where in the JSON and never quotes the record.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Undecodable {
    /// No value at all.
    #[error("tombstone (null value): labelled records always have a value")]
    Tombstone,
    /// Not the JSON of a labelled record.
    #[error("not a labelled record: line {line} column {column}: {category} error")]
    Json {
        /// Line in the value, from 1.
        line: usize,
        /// Column in the line, from 1.
        column: usize,
        /// `syntax`, `data` (a field is missing or of another type) or `eof`.
        category: &'static str,
    },
    /// Written by another version.
    #[error("schema version {found}, expected {expected}", expected = Labelled::SCHEMA)]
    Schema {
        /// The version found.
        found: u32,
    },
    /// A score or the confidence is no probability.
    #[error("{field} is outside 0 to 1")]
    Probability {
        /// Which.
        field: &'static str,
    },
}

impl Undecodable {
    /// The record's schema version, if a newer sentistream wrote it: it is a labelled post, and passing over
    /// it would leave it out of the sums for good.
    pub fn newer(&self) -> Option<u32> {
        match self {
            Self::Schema { found } if *found > Labelled::SCHEMA => Some(*found),
            _ => None,
        }
    }
}

/// Reads the value of a labelled record and checks what types alone cannot.
pub fn decode(value: Option<&[u8]>) -> Result<Labelled, Undecodable> {
    let bytes = value.ok_or(Undecodable::Tombstone)?;
    let post: Labelled = serde_json::from_slice(bytes).map_err(|e| refused(bytes, &e))?;
    if post.schema != Labelled::SCHEMA {
        return Err(Undecodable::Schema { found: post.schema });
    }
    let s = &post.scores;
    for (field, p) in [
        ("confidence", post.confidence),
        ("scores.negative", s.negative),
        ("scores.neutral", s.neutral),
        ("scores.positive", s.positive),
    ] {
        if !(0.0..=1.0).contains(&p) {
            return Err(Undecodable::Probability { field });
        }
    }
    Ok(post)
}

/// Why the bytes are no labelled post. Another version may have other fields, so its number goes first.
fn refused(bytes: &[u8], e: &serde_json::Error) -> Undecodable {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    if let Ok(Version { schema: found }) = serde_json::from_slice(bytes)
        && found != Labelled::SCHEMA
    {
        return Undecodable::Schema { found };
    }
    Undecodable::Json {
        line: e.line(),
        column: e.column(),
        category: match e.classify() {
            serde_json::error::Category::Eof => "eof",
            serde_json::error::Category::Data => "data",
            _ => "syntax",
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rollup::testing::post;

    #[test]
    fn a_labelled_record_comes_back_whole() {
        let p = post(7);
        assert_eq!(decode(Some(&serde_json::to_vec(&p).unwrap())).unwrap(), p);
    }

    #[test]
    fn strangers_are_refused_without_quoting_them() {
        assert_eq!(decode(None), Err(Undecodable::Tombstone));
        let e = decode(Some(b"{\"id\":\"secret text\"}")).unwrap_err().to_string();
        assert!(e.contains("line 1") && !e.contains("secret"), "{e}");
        let mut p = post(7);
        p.schema = 2;
        assert_eq!(decode(Some(&serde_json::to_vec(&p).unwrap())), Err(Undecodable::Schema { found: 2 }));
        // A newer version is known as such, whatever else it changed.
        let e = decode(Some(b"{\"schema\":2,\"identity\":7}")).unwrap_err();
        assert_eq!((&e, e.newer()), (&Undecodable::Schema { found: 2 }, Some(2)));
        assert_eq!(decode(Some(b"{\"schema\":0}")).unwrap_err().newer(), None);
        let mut p = post(7);
        p.scores.neutral = 1.5;
        let e = decode(Some(&serde_json::to_vec(&p).unwrap()));
        assert_eq!(e, Err(Undecodable::Probability { field: "scores.neutral" }));
    }
}
