//! Mastodon streaming API: `{"event": "update", "payload": "<a status as JSON text>"}`, or a bare status.
//!
//! The payload is parsed in place, so `decode.fields` pointers go through it (`/payload/account/acct`).
//! A boost (`reblog`) counts as a post of its own, as reposts do on X, and reads the boosted text. The
//! content's HTML becomes text; edits (`status.update`) are skipped, or a post would count twice.

use serde_json::Value;

use super::{
    Refusal,
    fields::{Found, Places, at, made, member, text_of},
    html, json,
};

pub(super) const PLACES: Places =
    Places { id: "the status's /id", text: "the status's /content", created_at: "the status's /created_at" };

/// Parses a payload that is JSON in a string. Other events than posts end here: their payload is no JSON
/// (`delete` has a bare id).
pub(super) fn open(value: &mut Value) -> Result<(), Refusal> {
    match text_of(value, "event") {
        Some("update") => {}
        Some("delete") => return Err(Refusal::Skip("delete")),
        Some("status.update") => return Err(Refusal::Skip("update")),
        Some(_) => return Err(Refusal::Skip("not_post")),
        None => return Ok(()),
    }
    let Some(payload) = value.get_mut("payload") else { return Ok(()) };
    if let Value::String(text) = payload {
        let inner = json::parse_text(text).map_err(|r| match r {
            Refusal::Reject(reason, message) => Refusal::Reject(reason, format!("in /payload: {message}")),
            skip => skip,
        })?;
        *payload = inner;
    }
    Ok(())
}

pub(super) fn find(value: &Value) -> Result<Found<'_>, Refusal> {
    let status = match text_of(value, "event") {
        Some(_) => member(value, "payload"),
        None => Some(value),
    };
    let Some(status) = status.filter(|s| s.is_object()) else {
        return Err(Refusal::Reject("missing_field", "no status in /payload of an update event".into()));
    };
    let content = member(status, "reblog").unwrap_or(status);
    Ok(Found {
        id: at(status, &["id"]),
        text: text_of(content, "content").map(html::to_text).and_then(made),
        created_at: at(status, &["created_at"]),
        author: at(status, &["account", "acct"]).or_else(|| at(status, &["account", "username"])),
        lang: at(content, &["language"]),
        channel: made("mastodon"),
        reach: at(status, &["account", "followers_count"]),
        ..Found::default()
    })
}
