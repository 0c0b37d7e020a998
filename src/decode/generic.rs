//! Flat JSON with common names: whatever a connector, an export or a CSV row brings. Twitter's old API
//! v1.1 objects are read too.

use serde_json::Value;

use super::{
    Refusal,
    fields::{Found, Maybe, Places, at, first, member, text_of},
};

pub(super) const PLACES: Places = Places {
    id: "/id, /id_str, /post_id or /tweet_id",
    text: "/text, /full_text, /content, /body or /message",
    created_at: "/created_at, /createdAt, /timestamp, /time or /date",
};

pub(super) fn find(value: &Value) -> Result<Found<'_>, Refusal> {
    let text = first(value, &["full_text", "text", "content", "body", "message"]);
    if text.is_none() && is_delete(value) {
        return Err(Refusal::Skip("delete"));
    }
    Ok(Found {
        id: first(value, &["id", "id_str", "post_id", "tweet_id"]),
        text,
        created_at: first(value, &["created_at", "createdAt", "timestamp", "time", "date"]),
        author: author(value),
        lang: first(value, &["lang", "language"]),
        channel: first(value, &["channel", "platform", "network"]),
        reach: first(value, &["reach", "followers", "followers_count", "views", "impressions"])
            .or_else(|| at(value, &["user", "followers_count"])),
        ..Found::default()
    })
}

/// A name, or an object that holds one.
fn author(value: &Value) -> Maybe<'_> {
    let names = ["username", "screen_name", "handle", "name", "id"];
    ["author", "user"]
        .iter()
        .filter_map(|key| member(value, key))
        .find_map(|v| if v.is_object() { first(v, &names) } else { Some(std::borrow::Cow::Borrowed(v)) })
        .or_else(|| first(value, &["username", "screen_name", "author_id", "user_id"]))
}

fn is_delete(value: &Value) -> bool {
    let says = |key| matches!(text_of(value, key), Some("delete" | "deleted"));
    member(value, "delete").is_some()
        || value.get("deleted") == Some(&Value::Bool(true))
        || ["type", "event", "action", "operation"].into_iter().any(says)
}
