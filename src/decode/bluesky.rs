//! Bluesky Jetstream: commits of `app.bsky.feed.post`.
//!
//! `createdAt` is what the author's client claims, and some claim the year 1; the relay's `time_us`
//! stands in where it is missing or no time. Reposts carry no text and are skipped with likes and follows.

use serde_json::Value;

use super::{
    Refusal,
    fields::{Found, Places, at, made, member, text_of},
};

pub(super) const PLACES: Places = Places {
    id: "/did, /commit/collection and /commit/rkey",
    text: "/commit/record/text",
    created_at: "/commit/record/createdAt or /time_us",
};

pub(super) fn find(value: &Value) -> Result<Found<'_>, Refusal> {
    match text_of(value, "kind") {
        Some("commit") => {}
        Some(_) => return Err(Refusal::Skip("not_post")),
        None => {
            let message = "no /kind: this is not a Jetstream event (decode.preset)".to_owned();
            return Err(Refusal::Reject("missing_field", message));
        }
    }
    let Some(commit) = member(value, "commit") else {
        return Err(Refusal::Reject("missing_field", "no /commit in a commit event".into()));
    };
    let collection = text_of(commit, "collection").unwrap_or_default();
    if collection != "app.bsky.feed.post" {
        return Err(Refusal::Skip("not_post"));
    }
    match text_of(commit, "operation") {
        Some("delete") => return Err(Refusal::Skip("delete")),
        Some("update") => return Err(Refusal::Skip("update")),
        _ => {}
    }
    let did = text_of(value, "did");
    let id = did.zip(text_of(commit, "rkey")).map(|(did, rkey)| format!("at://{did}/{collection}/{rkey}"));
    Ok(Found {
        id: id.and_then(made),
        text: at(commit, &["record", "text"]),
        created_at: at(commit, &["record", "createdAt"]),
        received_at: at(value, &["time_us"]),
        author: did.and_then(made),
        lang: value.pointer("/commit/record/langs/0").map(std::borrow::Cow::Borrowed),
        channel: made("bluesky"),
        reach: None,
    })
}
