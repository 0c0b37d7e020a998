//! X API v2, filtered and sampled stream, as `{"data": …, "includes": …}`.
//!
//! The full text of a long post is `note_tweet.text`. A repost (`referenced_tweets` of type `retweeted`)
//! counts as a post of its own and reads the original's full text where `includes.tweets` has it, since
//! its own is cut. Reach is the larger of the author's followers and the post's impressions so far.

use std::borrow::Cow;

use serde_json::Value;

use super::{
    Refusal,
    fields::{Found, Maybe, Places, at, count, made, member, text_of},
};

pub(super) const PLACES: Places =
    Places { id: "/data/id", text: "/data/note_tweet/text or /data/text", created_at: "/data/created_at" };

pub(super) fn find(value: &Value) -> Result<Found<'_>, Refusal> {
    let Some(data) = member(value, "data") else {
        return Err(no_data(value));
    };
    if member(data, "id").is_none() && member(data, "text").is_none() && is_compliance(data) {
        return Err(Refusal::Skip("delete"));
    }
    let author_id = member(data, "author_id");
    let user = author_id.and_then(|id| included(value, "users", id));
    Ok(Found {
        id: at(data, &["id"]),
        text: original(value, data).and_then(full_text).or_else(|| full_text(data)),
        created_at: at(data, &["created_at"]),
        author: user.and_then(|u| at(u, &["username"])).or(author_id.map(Cow::Borrowed)),
        lang: at(data, &["lang"]),
        channel: made("x"),
        reach: reach(data, user),
        ..Found::default()
    })
}

/// A message without `data` is about the stream (errors, warnings, limits) or about a post that is to be
/// forgotten; anything else is refused, so that a wrong preset shows.
fn no_data(value: &Value) -> Refusal {
    let has = |keys: &[&str]| keys.iter().any(|k| member(value, k).is_some());
    if has(&["delete", "scrub_geo", "status_withheld", "user_withheld"]) {
        return Refusal::Skip("delete");
    }
    if has(&[
        "errors",
        "error",
        "disconnect",
        "warning",
        "limit",
        "connection_issue",
        "operational-disconnect",
    ]) {
        return Refusal::Skip("control");
    }
    Refusal::Reject("missing_field", "no /data: this is not an X API v2 post (decode.preset)".into())
}

/// The compliance streams wrap one object named for the event (`tweet_delete`, `user_suspend`, …).
fn is_compliance(data: &Value) -> bool {
    let event =
        |k: &str| k.starts_with("tweet_") || k.starts_with("user_") || k == "delete" || k == "scrub_geo";
    data.as_object().is_some_and(|o| o.iter().any(|(k, v)| event(k) && v.is_object()))
}

fn full_text(tweet: &Value) -> Maybe<'_> {
    at(tweet, &["note_tweet", "text"]).or_else(|| at(tweet, &["text"]))
}

/// The post that `data` repeats, where the record holds it.
fn original<'a>(value: &'a Value, data: &'a Value) -> Option<&'a Value> {
    let references = member(data, "referenced_tweets")?.as_array()?;
    let repeated = references.iter().find(|r| text_of(r, "type") == Some("retweeted"))?;
    included(value, "tweets", member(repeated, "id")?)
}

fn included<'a>(value: &'a Value, list: &str, id: &Value) -> Option<&'a Value> {
    member(member(value, "includes")?, list)?.as_array()?.iter().find(|o| o.get("id") == Some(id))
}

fn reach<'a>(data: &'a Value, user: Option<&'a Value>) -> Maybe<'a> {
    let followers = user.and_then(|u| at(u, &["public_metrics", "followers_count"]));
    let views = at(data, &["public_metrics", "impression_count"]);
    [followers, views].into_iter().flatten().max_by_key(|v| count(v))
}
