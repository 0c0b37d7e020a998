//! Golden files: real-shaped records and what they must decode to; the labelled record and its schema.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use bytes::Bytes;
use sentistream::{
    config::{Config, Decode, Fields, Preset},
    decode::{Decoded, Decoder},
    record::{
        Label, Labelled, ModelId, Offset, Position, RawRecord, Scores, SourceRef, Timestamp, TopicPartition,
    },
};
use serde_json::{Value, json};

fn settings(preset: &str, case: &Value) -> Decode {
    let mut decode = Config::defaults().decode;
    decode.preset = serde_json::from_value::<Preset>(preset.into()).unwrap();
    if let Some(fields) = case.get("fields") {
        decode.fields = serde_json::from_value::<Fields>(fields.clone()).unwrap();
    }
    if let Some(max) = case.get("max_record_bytes") {
        decode.limits.max_record_bytes = max.as_u64().unwrap() as usize;
    }
    decode
}

fn record(case: &Value) -> RawRecord {
    let payload = match case.get("raw") {
        Some(raw) => raw.as_str().unwrap().to_owned(),
        None => case["record"].to_string(),
    };
    RawRecord {
        position: Position { partition: TopicPartition::new("golden", 0), offset: Offset(0) },
        key: None,
        payload: case.get("tombstone").is_none().then(|| Bytes::from(payload)),
        timestamp: case.get("timestamp_ms").map(|ms| Timestamp::from_millis(ms.as_i64().unwrap())),
    }
}

/// The outcome in the form in which golden files state it.
fn shown(decoded: &Decoded) -> Value {
    match decoded {
        Decoded::Skip(reason) => json!({ "skip": reason }),
        Decoded::Reject { reason, .. } => json!({ "reject": reason }),
        Decoded::Post(p) => {
            let mut post = json!({"id": p.id, "text": p.text, "created_at": p.created_at});
            for (key, value) in [("author", &p.author), ("lang", &p.lang), ("channel", &p.channel)] {
                if let Some(v) = value {
                    post[key] = v.as_str().into();
                }
            }
            if let Some(reach) = p.reach {
                post["reach"] = reach.into();
            }
            json!({ "post": post })
        }
    }
}

#[test]
fn records_of_every_preset_decode_as_stated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    let mut seen = 0;
    for preset in ["generic", "x", "bluesky", "mastodon", "reddit"] {
        let before = seen;
        for file in fs::read_dir(root.join(preset)).unwrap() {
            let path = file.unwrap().path();
            let case: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let decoded = Decoder::new(&settings(preset, &case)).unwrap().decode(&record(&case));
            let mut expected = case["expected"].clone();
            let has = expected.as_object_mut().unwrap().remove("message_has");
            assert_eq!(shown(&decoded), expected, "{}: {decoded:?}", path.display());
            if let Decoded::Reject { message, .. } = &decoded {
                let has = has.as_ref().map_or("", |h| h.as_str().unwrap());
                assert!(message.contains(has), "{}: '{message}' lacks '{has}'", path.display());
                assert!(!message.contains("secret"), "{}: the text is in '{message}'", path.display());
            }
            seen += 1;
        }
        assert!(seen - before >= 12, "{preset} has only {} golden records", seen - before);
    }
}

fn labelled() -> Vec<Labelled> {
    let full = Labelled {
        schema: Labelled::SCHEMA,
        id: "619950566786113536".into(),
        created_at: "2015-07-11T19:25:07.903Z".parse().unwrap(),
        label: Label::Positive,
        confidence: 0.9231,
        scores: Scores::rounded([0.0123, 0.06461, 0.92309]),
        brands: vec!["Acme".into(), "Zed".into()],
        lang: "en".into(),
        channel: "x".into(),
        author: Some("bo".into()),
        reach: Some(1200),
        text: Some("Acme & Zed 😀".into()),
        model: ModelId { name: "sentiment-en".into(), hash: "0123456789abcdef".into() },
        source: SourceRef { topic: "posts".into(), partition: 3, offset: 42 },
    };
    let least = Labelled {
        label: Label::Uncertain,
        brands: vec![],
        lang: "und".into(),
        channel: "unknown".into(),
        author: None,
        reach: None,
        text: None,
        ..full.clone()
    };
    vec![full, least]
}

#[test]
fn labelled_records_are_the_golden_bytes_and_read_back() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/labelled.ndjson");
    let golden = fs::read_to_string(path).unwrap();
    let written: Vec<String> = labelled().iter().map(|l| serde_json::to_string(l).unwrap()).collect();
    assert_eq!(golden.lines().collect::<Vec<_>>(), written);
    for (line, record) in golden.lines().zip(labelled()) {
        assert_eq!(serde_json::from_str::<Labelled>(line).unwrap(), record);
    }
}

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/schema/labelled.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn labelled_records_follow_the_published_schema() {
    for record in labelled() {
        check(&schema(), &serde_json::to_value(&record).unwrap(), "").unwrap();
    }
}

#[test]
fn the_schema_refuses_what_is_no_labelled_record() {
    let good = serde_json::to_value(&labelled()[0]).unwrap();
    let mut spoil: Vec<(&str, Value)> = vec![
        ("/label", json!("meh")),
        ("/confidence", json!(1.5)),
        ("/scores/neutral", json!("0.1")),
        ("/created_at", json!("yesterday")),
        ("/brands", json!(["Acme", 1])),
        ("/brands", json!(["Acme", "Acme"])),
        ("/reach", json!(-1)),
        ("/schema", json!(2)),
        ("/model/hash", json!("xyz")),
        ("/source/offset", json!(1.5)),
        ("/text", json!(null)),
    ];
    for (at, value) in spoil.drain(..) {
        let mut bad = good.clone();
        *bad.pointer_mut(at).unwrap() = value;
        assert!(check(&schema(), &bad, "").is_err(), "{at} is not checked");
    }
    for key in good.as_object().unwrap().keys().filter(|k| !["author", "reach", "text"].contains(&k.as_str()))
    {
        let mut bad = good.clone();
        bad.as_object_mut().unwrap().remove(key);
        assert!(check(&schema(), &bad, "").is_err(), "{key} is not required");
    }
    let mut bad = good.clone();
    bad["processed_at"] = json!("2024-01-01T00:00:00Z");
    assert!(check(&schema(), &bad, "").is_err(), "unknown members are not refused");
}

/// The part of JSON Schema that ours uses; a keyword outside it is an error, not a pass.
fn check(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let fail = |why: String| Err(format!("{at}: {why}: {value}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        let ok = match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" | "properties" | "format" => true,
            "type" => is_type(rule.as_str().unwrap(), value),
            "const" => rule == value,
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_f64().is_none_or(|v| v >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|v| v <= rule.as_f64().unwrap()),
            "minLength" => value.as_str().is_none_or(|v| v.chars().count() as u64 >= rule.as_u64().unwrap()),
            "uniqueItems" => value.as_array().is_none_or(|a| (1..a.len()).all(|i| !a[..i].contains(&a[i]))),
            "pattern" => value.as_str().is_none_or(|v| matches_pattern(rule.as_str().unwrap(), v)),
            "required" => rule.as_array().unwrap().iter().all(|k| value.get(k.as_str().unwrap()).is_some()),
            "additionalProperties" => {
                assert_eq!(*rule, json!(false));
                value.as_object().is_none_or(|o| o.keys().all(|k| schema["properties"].get(k).is_some()))
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(rule, item, &format!("{at}/{i}"))?;
                }
                true
            }
            other => return fail(format!("this test does not know the keyword '{other}'")),
        };
        if !ok {
            return fail(format!("{keyword} {rule}"));
        }
    }
    for (key, rule) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(member) = value.get(key) {
            check(rule, member, &format!("{at}/{key}"))?;
        }
    }
    if schema.get("format") == Some(&json!("date-time"))
        && value.as_str().is_none_or(|s| s.parse::<Timestamp>().is_err())
    {
        return fail("not a date-time".into());
    }
    Ok(())
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("this test does not know the type '{other}'"),
    }
}

/// The two patterns that the schema uses.
fn matches_pattern(pattern: &str, value: &str) -> bool {
    match pattern {
        "^[0-9a-f]{16}$" => {
            value.len() == 16 && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        }
        "^[a-z]{2,3}$" => (2..=3).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_lowercase()),
        other => panic!("this test does not know the pattern '{other}'"),
    }
}

fn decoder(preset: Preset) -> Decoder {
    let mut decode = Config::defaults().decode;
    decode.preset = preset;
    Decoder::new(&decode).unwrap()
}

const PRESETS: [Preset; 5] = [Preset::Generic, Preset::X, Preset::Bluesky, Preset::Mastodon, Preset::Reddit];

fn any_record(payload: Vec<u8>) -> RawRecord {
    RawRecord { payload: Some(Bytes::from(payload)), ..record(&json!({"record": null})) }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// JSON made of the words that the presets look for, so that hostile shapes reach deep.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,12}|[<>&@#ap/]{0,9}".prop_map(Value::from),
            proptest::sample::select(vec![
                "commit",
                "create",
                "app.bsky.feed.post",
                "update",
                "t1",
                "retweeted",
                "{}",
                "2024-05-01"
            ])
            .prop_map(Value::from),
        ];
        let keys = proptest::sample::select(vec![
            "id",
            "text",
            "created_at",
            "author",
            "user",
            "data",
            "includes",
            "users",
            "author_id",
            "kind",
            "commit",
            "operation",
            "collection",
            "rkey",
            "record",
            "langs",
            "did",
            "event",
            "payload",
            "content",
            "reblog",
            "account",
            "body",
            "title",
            "selftext",
            "created_utc",
            "name",
            "note_tweet",
            "referenced_tweets",
            "tweets",
            "type",
            "public_metrics",
            "impression_count",
            "lang",
        ]);
        leaf.prop_recursive(5, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(keys.clone(), inner, 0..8).prop_map(|m| m
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<serde_json::Map<_, _>>()
                    .into()),
            ]
        })
    }

    fn sound(decoded: &Decoded) -> Result<(), TestCaseError> {
        if let Decoded::Post(p) = decoded {
            prop_assert!(!p.id.is_empty() && !p.text.trim().is_empty());
            prop_assert!((0..=253_402_300_799_999_999).contains(&p.created_at.0));
            prop_assert!(p.reach.is_none_or(|r| r >= 0));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_something(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for preset in PRESETS {
                sound(&decoder(preset).decode(&any_record(bytes.clone())))?;
            }
        }

        #[test]
        fn any_json_decodes_to_something(value in any_json()) {
            for preset in PRESETS {
                sound(&decoder(preset).decode(&any_record(value.to_string().into_bytes())))?;
            }
        }

        #[test]
        fn a_post_cut_anywhere_or_spoiled_anywhere_decodes_to_something(cut in 0usize..200, at in 0usize..200, byte in any::<u8>()) {
            let mut bytes = r#"{"id":1,"text":"a \ud83d\ude00 b \\u2019 é","created_at":"2024-05-01T12:00:00Z","lang":"en","reach":3}"#.as_bytes().to_vec();
            if let Some(b) = bytes.get_mut(at) {
                *b = byte;
            }
            sound(&decoder(Preset::Generic).decode(&any_record(bytes.clone())))?;
            bytes.truncate(cut);
            sound(&decoder(Preset::Generic).decode(&any_record(bytes)))?;
        }
    }
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    let decoded = decoder(Preset::Generic).decode(&any_record(b"{\"id\":1,\"text\":\"\xFF\"}".to_vec()));
    assert!(matches!(decoded, Decoded::Reject { reason: "not_utf8", .. }), "{decoded:?}");
}

#[test]
fn bad_pointers_are_refused_by_name() {
    for (fields, says) in [
        (json!({"id": "data/id"}), "decode.fields.id: 'data/id'"),
        (json!({"lang": "/a~2"}), "decode.fields.lang: '/a~2'"),
        (json!({"text": ""}), "decode.fields.text: is empty"),
    ] {
        let e = Decoder::new(&settings("generic", &json!({ "fields": fields }))).unwrap_err().to_string();
        assert!(e.starts_with(says), "{e}");
    }
}
