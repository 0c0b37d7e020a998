#![allow(clippy::unwrap_used)]
use super::*;
use crate::{
    classify::artifact::Artifact,
    config::{Brand, Fields},
    record::{Label, Offset, Scores, Sentiment, Timestamp, TopicPartition},
};
use bytes::Bytes;

/// A tokenizer with a handful of words: `[UNK]` is 1, `[CLS]` 2, `[SEP]` 3, then the words.
fn artifact(dir: &std::path::Path) -> Artifact {
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "i", "love", "acme", "@user", "http", "’", "##s"];
    let vocab: serde_json::Map<String, serde_json::Value> =
        words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), i.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    Artifact {
        dir: dir.to_owned(),
        manifest: None,
        id: ModelId { name: "tiny".into(), hash: "00".into() },
        labels: Sentiment::ALL.to_vec(),
        preparation: TextPreparation::social(),
        max_tokens: 8,
        temperature: 1.0,
    }
}

fn front(change: impl FnOnce(&mut Config)) -> Front {
    let mut config = Config::defaults();
    config.brands = vec![Brand {
        name: "Acme".into(),
        aliases: vec![],
        hashtags: vec![],
        handles: vec!["acme_help".into()],
        exclude: vec![],
    }];
    change(&mut config);
    let dir = tempfile::tempdir().unwrap();
    Front::new(&config, &artifact(dir.path())).unwrap()
}

fn record(payload: impl Into<Bytes>) -> RawRecord {
    RawRecord {
        position: Position { partition: TopicPartition::new("posts", 1), offset: Offset(7) },
        key: None,
        payload: Some(payload.into()),
        timestamp: Some(Timestamp(1_000_000)),
    }
}

fn candidate(front: &Front, json: serde_json::Value) -> Candidate {
    match front.process(&record(json.to_string())) {
        Outcome::Candidate(c) => *c,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_post_is_taken_as_far_as_the_model() {
    let c = candidate(
        &front(|_| ()),
        serde_json::json!({"id": 1, "text": "I love\n @acme_help http://t.co/x", "lang": "en-GB", "platform": "X"}),
    );
    assert_eq!(c.prepared, "I love @user http");
    assert_eq!(c.encoding.ids, [2, 4, 5, 7, 8, 3]);
    assert_eq!(c.brands, [Arc::from("Acme")], "brands are looked for before handles are masked");
    assert_eq!((c.lang.as_str(), c.channel.as_str()), ("en", "x"));
    assert_eq!(c.post.text, "I love\n @acme_help http://t.co/x");
    assert_eq!(c.post.created_at, Timestamp(1_000_000), "the record's own time stands in");
}

#[test]
fn language_is_detected_only_when_asked_and_missing() {
    let json = serde_json::json!({"id": 1, "text": "ich finde das neue Telefon wirklich sehr schlecht"});
    assert_eq!(candidate(&front(|_| ()), json.clone()).lang, "de");
    let c = candidate(&front(|c| c.language.detect = false), json);
    assert_eq!((c.lang.as_str(), c.channel.as_str()), (UNKNOWN_LANG, UNKNOWN_CHANNEL));
}

#[test]
fn long_texts_are_cut_for_the_model_and_kept_in_the_record() {
    let text = "é acme ".repeat(50);
    let c =
        candidate(&front(|c| c.decode.limits.max_text_chars = 3), serde_json::json!({"id": 1, "text": text}));
    assert_eq!(c.prepared, "é a");
    assert_eq!(c.post.text, text);
    assert_eq!(c.brands, [Arc::from("Acme")], "brands are looked for in all of it");
    let c = candidate(&front(|_| ()), serde_json::json!({"id": 1, "text": text}));
    assert_eq!(c.encoding.len(), 8, "the tokenizer truncates");
}

#[test]
fn skips_and_refusals_pass_through() {
    let f = front(|_| ());
    let nothing = serde_json::json!({"id": 1, "text": "&nbsp; \\u0020"}).to_string();
    assert_eq!(f.process(&record(nothing)), Outcome::Skip("empty_text"));
    let tombstone = RawRecord { payload: None, ..record("") };
    assert_eq!(f.process(&tombstone), Outcome::Skip("tombstone"));
    let Outcome::Dead { stage, reason, .. } = f.process(&record("{")) else { panic!("not dead") };
    assert_eq!((stage, reason), (Stage::Decode, "not_json"));
}

#[test]
fn bad_settings_name_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = artifact(dir.path());
    let mut config = Config::defaults();
    config.decode.fields = Fields { author: Some("user/name".into()), ..Fields::default() };
    let e = Front::new(&config, &artifact).err().unwrap().to_string();
    assert!(e.starts_with("decode.fields.author: 'user/name'"), "{e}");
    std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let e = Front::new(&Config::defaults(), &artifact).err().unwrap().to_string();
    assert!(e.contains("tokenizer.json"), "{e}");
}

#[test]
fn the_labelled_record_holds_the_post_and_the_verdict() {
    let c = candidate(
        &front(|_| ()),
        serde_json::json!({"id": "a", "text": "I love acme", "author": "bo", "reach": "12"}),
    );
    let scores = Scores::rounded([0.1, 0.2, 0.7]);
    let verdict = Verdict { label: Label::Positive, confidence: 0.7, scores };
    let model = ModelId { name: "tiny".into(), hash: "00".into() };
    let position = record("").position;
    let l = labelled(&c, &verdict, &model, &position, true);
    assert_eq!(
        (l.id.as_str(), l.label, l.reach, l.author.as_deref()),
        ("a", Label::Positive, Some(12), Some("bo"))
    );
    assert_eq!(l.text.as_deref(), Some("I love acme"));
    assert_eq!((&*l.source.topic, l.source.partition, l.source.offset), ("posts", 1, 7));
    let without = serde_json::to_string(&labelled(&c, &verdict, &model, &position, false)).unwrap();
    assert!(!without.contains("love"), "{without}");
}

fn is_shared_between_threads<T: Send + Sync>() {}

#[test]
fn the_front_is_shared_between_threads() {
    is_shared_between_threads::<Front>();
}

/// Time this thread has had on a core: a shared machine does not blur it (Linux).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Posts a CPU second on one thread, with a thousand aliases and every post's language detected:
/// `SENTISTREAM_BENCH_POSTS=posts.ndjson SENTISTREAM_BENCH_MODEL=folder cargo test --lib front_rate -- --ignored --nocapture`
#[test]
#[ignore = "a measurement; needs SENTISTREAM_BENCH_POSTS and SENTISTREAM_BENCH_MODEL"]
fn front_rate() {
    let posts = std::env::var("SENTISTREAM_BENCH_POSTS").unwrap();
    let dir = std::env::var("SENTISTREAM_BENCH_MODEL").unwrap();
    let mut config = Config::defaults();
    let alias = |i: usize| format!("{} {}", ["blue", "north", "red", "open"][i % 4], i);
    config.brands = (0..500)
        .map(|i| Brand {
            name: format!("brand{i}").into(),
            aliases: vec![alias(i)],
            hashtags: vec![],
            handles: vec![],
            exclude: vec![],
        })
        .collect();
    let temporary = tempfile::tempdir().unwrap();
    let model = Artifact { dir: dir.into(), max_tokens: 128, ..artifact(temporary.path()) };
    let front = Front::new(&config, &model).unwrap();
    let records: Vec<RawRecord> = crate::source::file::FileSource::open(std::path::Path::new(&posts), None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let rate = |name: &str, f: &dyn Fn(&RawRecord)| {
        let before = cpu_seconds();
        records.iter().for_each(f);
        println!("{name:<10} {:>9.0} posts per CPU second", records.len() as f64 / (cpu_seconds() - before));
    };
    let texts: std::collections::HashMap<_, _> = records
        .iter()
        .filter_map(|r| match front.decoder.decode(r) {
            Decoded::Post(p) => Some((r.position.offset, (front.preparation.apply(&p.text), p.text))),
            _ => None,
        })
        .collect();
    rate("decode", &|r| drop(front.decoder.decode(r)));
    rate("prepare", &|r| drop(front.preparation.apply(&texts[&r.position.offset].1)));
    rate("brands", &|r| drop(front.brands.find(&texts[&r.position.offset].1)));
    rate("language", &|r| {
        assert!(front.detector.unwrap().detect(&texts[&r.position.offset].0).is_none_or(|l| l.len() == 2))
    });
    rate("tokenize", &|r| drop(front.tokenizer.encode(&texts[&r.position.offset].0)));
    rate("front", &|r| assert!(matches!(front.process(r), Outcome::Candidate(_))));
}
