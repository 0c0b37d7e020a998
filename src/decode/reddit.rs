//! Reddit things: comments (`t1`) and links (`t3`), wrapped as `{"kind", "data"}` or bare.
//!
//! A link's text is its title and its self-text. The id is the full name (`t1_…`, `t3_…`), which is
//! unique over both kinds. Reach is the view count where Reddit gives one, else the score: at least that
//! many saw it. The channel is `reddit`; `decode.fields.channel = "/data/subreddit"` tells subreddits apart.

use serde_json::Value;

use super::{
    Refusal,
    fields::{Found, Maybe, Places, at, count, first, made, member, text_of},
};

pub(super) const PLACES: Places = Places {
    id: "/data/name or /data/id",
    text: "/data/body, /data/title or /data/selftext",
    created_at: "/data/created_utc",
};

pub(super) fn find(value: &Value) -> Result<Found<'_>, Refusal> {
    let (kind, data) = match member(value, "data").filter(|d| d.is_object()) {
        Some(data) => (text_of(value, "kind"), data),
        None => (None, value),
    };
    match kind {
        Some("t1" | "t3") | None => {}
        Some("Listing") => {
            let message = "a Listing holds many posts: send each of its children as a record".to_owned();
            return Err(Refusal::Reject("bad_field", message));
        }
        Some(_) => return Err(Refusal::Skip("not_post")),
    }
    let body = text_of(data, "body").or_else(|| text_of(data, "selftext"));
    if matches!(body.map(str::trim), Some("[deleted]" | "[removed]")) {
        return Err(Refusal::Skip("delete"));
    }
    Ok(Found {
        id: id(kind, data),
        text: text(data),
        created_at: first(data, &["created_utc", "created"]),
        author: at(data, &["author"]).filter(|a| a.as_str() != Some("[deleted]")),
        channel: made("reddit"),
        reach: [at(data, &["view_count"]), at(data, &["score"])]
            .into_iter()
            .flatten()
            .find(|v| count(v).is_some()),
        ..Found::default()
    })
}

fn id<'a>(kind: Option<&str>, data: &'a Value) -> Maybe<'a> {
    let name = at(data, &["name"]);
    if name.is_some() {
        return name;
    }
    let kind = kind.unwrap_or(if member(data, "body").is_some() { "t1" } else { "t3" });
    match text_of(data, "id") {
        Some(id) if !id.is_empty() => made(format!("{kind}_{id}")),
        _ => at(data, &["id"]),
    }
}

fn text(data: &Value) -> Maybe<'_> {
    if let Some(body) = at(data, &["body"]) {
        return Some(body);
    }
    let title = text_of(data, "title");
    let selftext = text_of(data, "selftext").filter(|s| !s.trim().is_empty());
    match (title, selftext) {
        (Some(t), Some(s)) => made(format!("{t}\n\n{s}")),
        (Some(one), None) | (None, Some(one)) => made(one),
        (None, None) => None,
    }
}
