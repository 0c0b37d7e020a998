//! JSON as feeds send it: a byte-order mark, lone surrogates, anything at all.

use serde_json::Value;

use super::Refusal;
use crate::prepare::utf16_escape;

/// Parses one record. Escapes of lone surrogates (`"\ud83d"`, what a feed leaves of an emoji it cut in
/// two) are no valid Unicode; they are read as U+FFFD rather than refused.
pub(super) fn parse(payload: &[u8]) -> Result<Value, Refusal> {
    let text = std::str::from_utf8(payload).map_err(|e| {
        Refusal::Reject("not_utf8", format!("invalid UTF-8 at byte {} of {}", e.valid_up_to(), payload.len()))
    })?;
    let text = text.trim_start_matches('\u{FEFF}');
    if text.trim().is_empty() {
        return Err(Refusal::Skip("blank"));
    }
    parse_text(text)
}

/// As [`parse`], for text that is in hand already.
pub(super) fn parse_text(text: &str) -> Result<Value, Refusal> {
    let error = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(e) => e,
    };
    let error = match repair_surrogates(text).map(|t| serde_json::from_str(&t)) {
        Some(Ok(value)) => return Ok(value),
        Some(Err(e)) => e,
        None => error,
    };
    // serde_json's messages name a position and what the grammar expected, never the content.
    let message = error.to_string();
    let reason = if message.starts_with("recursion limit") { "too_deep" } else { "not_json" };
    Err(Refusal::Reject(reason, message))
}

/// The text with every escape of a lone surrogate replaced; `None` if there was none.
fn repair_surrogates(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut copied = 0;
    let mut i = 0;
    let bytes = text.as_bytes();
    while let Some(at) = bytes[i..].iter().position(|b| *b == b'\\').map(|n| i + n) {
        i = match utf16_escape(bytes, at) {
            // Not \u: a two-byte escape, whose second byte must not start another one.
            None => (at + 2).min(bytes.len()),
            Some(0xD800..=0xDBFF) if matches!(utf16_escape(bytes, at + 6), Some(0xDC00..=0xDFFF)) => at + 12,
            Some(0xD800..=0xDFFF) => {
                out.push_str(&text[copied..at]);
                out.push_str("\\ufffd");
                copied = at + 6;
                copied
            }
            Some(_) => at + 6,
        };
    }
    if copied == 0 {
        return None;
    }
    out.push_str(&text[copied..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lone_surrogates_are_read_as_replacement_characters() {
        for (json, expected) in [
            (r#""\ud83d""#, "\u{FFFD}"),
            (r#""\ud83d\ud83d\ude00 \ude00""#, "\u{FFFD}😀 \u{FFFD}"),
            (r#""\\ud83d \ud83dx""#, "\\ud83d \u{FFFD}x"),
            (r#""\uD83D\u0041é\n""#, "\u{FFFD}Aé\n"),
        ] {
            assert_eq!(parse(json.as_bytes()).unwrap(), Value::String(expected.into()), "{json}");
        }
    }

    #[test]
    fn a_backslash_before_a_wide_character_is_refused_without_panic() {
        assert!(matches!(parse("\"\\é\\ud83d\"".as_bytes()), Err(Refusal::Reject("not_json", _))));
        assert!(matches!(parse(b"\"\\"), Err(Refusal::Reject("not_json", _))));
        assert!(matches!(parse(b"\"\\ud83"), Err(Refusal::Reject("not_json", _))));
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(1_000_000);
        assert!(matches!(parse(deep.as_bytes()), Err(Refusal::Reject("too_deep", _))));
        let deep = r#"{"a":"#.repeat(1000) + "\"\\ud83d\"";
        assert!(matches!(parse(deep.as_bytes()), Err(Refusal::Reject("too_deep", _))));
    }

    proptest::proptest! {
        #[test]
        fn valid_json_is_not_repaired(s in "(\\PC|\\\\|\"|\u{1F600}){0,20}") {
            let json = serde_json::to_string(&s).unwrap();
            proptest::prop_assert_eq!(repair_surrogates(&json), None);
        }
    }
}
