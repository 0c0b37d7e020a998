//! Measures how inference should use the cores; ignored in ordinary runs.
//!
//!     cargo test --release --test engine_speed -- --ignored --nocapture

#![allow(clippy::unwrap_used)]

use std::{path::Path, thread, time::Instant};

use sentistream::{
    batch::{Limits, padded, plan},
    classify::{
        artifact::Artifact,
        session::{Provider, Session, Shape},
    },
    demo::generator::{Generator, Kind},
    record::Timestamp,
    tokenize::{Encoding, Tokenizer},
};

const ROUNDS: usize = 7;

/// Micro-batches of made-up posts, as the pipeline would cut them.
fn batches(artifact: &Artifact) -> (Vec<Vec<Encoding>>, usize) {
    let tokenizer = Tokenizer::from_file(&artifact.dir.join("tokenizer.json"), artifact.max_tokens).unwrap();
    let start = Timestamp(1_767_225_600_000_000);
    let records = Generator::new(3, start, 1.0).until(Timestamp(start.0 + 3_600_000_000));
    let encodings: Vec<Encoding> = records
        .iter()
        .filter(|r| r.kind == Kind::Post)
        .filter_map(|r| serde_json::from_slice::<serde_json::Value>(&r.payload).ok())
        .filter_map(|v| v["text"].as_str().map(|t| artifact.preparation.apply(t)))
        .map(|t| tokenizer.encode(&t).unwrap())
        .take(512)
        .collect();
    let lengths: Vec<usize> = encodings.iter().map(Encoding::len).collect();
    let limits = Limits { max_tokens: 512, max_rows: 256 };
    let planned = plan(&lengths, &limits, artifact.max_tokens);
    (planned.iter().map(|b| b.iter().map(|i| encodings[*i].clone()).collect()).collect(), encodings.len())
}

fn run(session: &mut Session, batches: &[Vec<Encoding>]) {
    for b in batches {
        session.run(&b.iter().collect::<Vec<_>>()).unwrap();
    }
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn a_session_a_core_against_one_session_with_all_cores() {
    let artifact =
        Artifact::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/sentiment-en"))).unwrap();
    let (batches, posts) = batches(&artifact);
    let widest = batches.iter().flatten().map(|e| padded(e.len(), artifact.max_tokens)).max();
    let cores = thread::available_parallelism().unwrap().get();
    let (_, graph) = artifact.graph(None, false).unwrap();
    let shape = Shape { labels: artifact.labels.len(), longest: artifact.max_tokens, pad_id: 0 };
    let open = |threads| Session::open(&graph, Provider::Cpu { threads }, shape, Path::new("")).unwrap();
    let mut one = open(cores);
    let mut many: Vec<Session> = (0..cores).map(|_| open(1)).collect();
    let (mut together, mut apart) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        run(&mut one, &batches);
        together.push(posts as f64 / start.elapsed().as_secs_f64());
        let start = Instant::now();
        thread::scope(|s| {
            for (i, session) in many.iter_mut().enumerate() {
                let mine: Vec<Vec<Encoding>> = batches.iter().skip(i).step_by(cores).cloned().collect();
                s.spawn(move || run(session, &mine));
            }
        });
        apart.push(posts as f64 / start.elapsed().as_secs_f64());
    }
    let (together, apart) = (median(together), median(apart));
    println!(
        "{posts} posts, widest {widest:?} tokens, {cores} cores, median of {ROUNDS}: one session with {cores} threads {together:.0} posts/s, \
         {cores} sessions with one thread {apart:.0} posts/s, ratio {:.2}",
        apart / together
    );
    assert!(together > 0.0 && apart > 0.0);
}
