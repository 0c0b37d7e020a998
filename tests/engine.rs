//! The engine and the pipeline on the shipped model, with the real runtime.

#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use sentistream::{
    classify::{artifact::Artifact, cache::RepeatCache, decide::Decider, engine::Engine},
    config::{Config, Device},
    front::Front,
    pipeline::{Pipeline, Settled, Window},
    record::{Logits, Offset, Position, RawRecord, Timestamp, TopicPartition},
    tokenize::{Encoding, Tokenizer},
};

fn config() -> Config {
    let mut config = Config::defaults();
    config.model.dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment-en");
    config.model.device = Device::Cpu;
    config.model.sessions = 2;
    config
}

fn artifact(config: &Config) -> Artifact {
    Artifact::load(&config.model.dir).unwrap()
}

/// Texts of many lengths, none twice.
fn texts(n: usize) -> Vec<String> {
    let words = [
        "good",
        "bad",
        "the",
        "phone",
        "never",
        "again",
        "love",
        "awful",
        "coffee",
        "unbelievably",
        "ok",
        "!",
    ];
    (0..n)
        .map(|i| {
            let length = 1 + (i * 7) % 41;
            let words = (0..length).map(|j| words[(i * 5 + j * j + i / 3) % words.len()]);
            format!("{} {i}", words.collect::<Vec<_>>().join(" "))
        })
        .collect()
}

fn encodings(artifact: &Artifact, texts: &[String]) -> Vec<Encoding> {
    let tokenizer = Tokenizer::from_file(&artifact.dir.join("tokenizer.json"), artifact.max_tokens).unwrap();
    texts.iter().map(|t| tokenizer.encode(&artifact.preparation.apply(t)).unwrap()).collect()
}

fn all(engine: &Engine, encodings: &[Encoding]) -> Vec<Logits> {
    engine.classify_all(encodings).unwrap().into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_post_has_the_same_bits_alone_and_in_every_micro_batch() {
    let mut config = config();
    let artifact = artifact(&config);
    let encodings = encodings(&artifact, &texts(160));
    let engine = Engine::start(&config.model, &config.batch, &artifact).unwrap();
    assert_eq!((engine.provider(), engine.sessions()), ("cpu", 2));
    let together = all(&engine, &encodings);
    assert!(together.iter().all(|l| l.len() == artifact.labels.len()));
    for (i, e) in encodings.iter().enumerate() {
        assert_eq!(all(&engine, std::slice::from_ref(e))[0], together[i], "post {i} alone");
    }
    let reversed: Vec<Encoding> = encodings.iter().rev().cloned().collect();
    let mut backwards = all(&engine, &reversed);
    backwards.reverse();
    assert_eq!(backwards, together);
    drop(engine);

    config.batch.max_rows = 3;
    config.batch.max_tokens = 100;
    config.model.sessions = 1;
    let small = Engine::start(&config.model, &config.batch, &artifact).unwrap();
    assert_eq!(all(&small, &encodings), together, "cut into micro-batches of at most 3 rows");
}

#[test]
fn a_row_that_the_graph_refuses_is_alone_in_its_error() {
    let config = config();
    let artifact = artifact(&config);
    let mut encodings = encodings(&artifact, &texts(20));
    let engine = Engine::start(&config.model, &config.batch, &artifact).unwrap();
    let good = all(&engine, &encodings);
    // Same length as before, so that it stands among others of its width.
    *encodings[7].ids.last_mut().unwrap() = u32::MAX / 2;
    encodings.push(Encoding { ids: vec![] });
    let found = engine.classify_all(&encodings).unwrap();
    assert!(found[7].as_ref().unwrap_err().contains("inference failed"), "{:?}", found[7]);
    assert!(found[20].as_ref().unwrap_err().contains("no tokens"), "{:?}", found[20]);
    for (i, logits) in good.iter().enumerate().filter(|(i, _)| *i != 7) {
        assert_eq!(found[i].as_ref(), Ok(logits), "row {i}");
    }
}

fn pipeline(config: &Config) -> Pipeline {
    let artifact = artifact(config);
    let engine = Engine::start(&config.model, &config.batch, &artifact).unwrap();
    Pipeline::start(
        Arc::new(Front::new(config, &artifact).unwrap()),
        Arc::new(engine),
        RepeatCache::new(config.classify.cache_entries, &artifact.id),
        Decider::new(&artifact, 0.0),
        artifact.id,
        config,
    )
}

/// Every record's outcome as bytes, through windows of `rows` records.
fn settled(pipeline: &Pipeline, records: &[RawRecord], rows: usize) -> Vec<String> {
    std::thread::scope(|s| {
        s.spawn(|| {
            for (seq, records) in records.chunks(rows).enumerate() {
                pipeline.submit(Window { seq: seq as u64, records: records.to_vec() }).unwrap();
            }
            pipeline.close();
        });
        let mut out = Vec::new();
        for window in pipeline.results() {
            for item in window.items {
                out.push(match item {
                    Settled::Labelled { labelled, .. } => serde_json::to_string(&labelled).unwrap(),
                    Settled::Dead(d) => format!("dead: {}", d.reason),
                    Settled::Skipped { reason, .. } => format!("skipped: {reason}"),
                });
            }
        }
        out
    })
}

#[test]
fn a_replay_cut_elsewhere_gives_the_same_bytes() {
    let mut records: Vec<RawRecord> = texts(150)
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let value =
                serde_json::json!({"id": i.to_string(), "text": text, "created_at": "2026-01-01T00:00:00Z"});
            RawRecord {
                position: Position { partition: TopicPartition::new("posts", 0), offset: Offset(i as i64) },
                key: None,
                payload: Some(Bytes::from(value.to_string())),
                timestamp: Some(Timestamp(0)),
            }
        })
        .collect();
    records[3].payload = Some(Bytes::from_static(b"{"));
    records[9].payload = None;
    let repeated = records[5].payload.clone();
    records[140].payload.clone_from(&repeated);

    let mut config = config();
    let one = settled(&pipeline(&config), &records, 512);
    assert_eq!(one.len(), records.len());
    assert!(one[3].starts_with("dead: ") && one[9].starts_with("skipped: "), "{} {}", one[3], one[9]);
    assert!(one[0].starts_with("{\"schema\":1"), "{}", one[0]);

    config.classify.cache_entries = 0;
    config.model.sessions = 1;
    config.batch.max_rows = 5;
    assert_eq!(settled(&pipeline(&config), &records, 7), one, "small windows, no cache, one session");
}
