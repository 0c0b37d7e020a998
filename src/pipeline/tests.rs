#![allow(clippy::unwrap_used)]
//! The pipeline with a front stage and an engine that do as they are told: late, out of order, failing.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::record::{Label, Offset, Position, Post, Sentiment, Timestamp, TopicPartition};

/// How long a test waits for what must come.
const LIMIT: Duration = Duration::from_secs(20);

/// A post's text is its payload; `skip`, `dead` and `panic` do as they say.
struct Texts;

impl Process for Texts {
    fn tokenizing(&self) -> Duration {
        Duration::ZERO
    }

    fn process(&self, record: &RawRecord) -> Outcome {
        let text = String::from_utf8(record.payload.clone().unwrap().to_vec()).unwrap();
        match text.as_str() {
            "skip" => Outcome::Skip("delete"),
            "dead" => Outcome::Dead { stage: Stage::Decode, reason: "not_json", message: "no".into() },
            "panic" => panic!("hostile"),
            _ => Outcome::Candidate(Box::new(Candidate {
                post: Post {
                    id: record.position.offset.to_string(),
                    text: text.clone(),
                    created_at: Timestamp(0),
                    author: None,
                    lang: None,
                    channel: None,
                    reach: None,
                },
                brands: vec![],
                lang: "en".into(),
                channel: "x".into(),
                encoding: Encoding { ids: text.bytes().map(u32::from).collect() },
                prepared: text,
            })),
        }
    }
}

/// Holds micro-batches back and answers them in an order of its own: a row is positive when its first
/// byte is odd. A row of `!` is refused.
struct Shuffling {
    queue: Sender<MicroBatch>,
    rows: Arc<AtomicUsize>,
}

impl Shuffling {
    fn start(hold: usize, fail_after: usize) -> Self {
        let (queue, work) = bounded::<MicroBatch>(2);
        let rows = Arc::new(AtomicUsize::new(0));
        let counted = rows.clone();
        std::thread::spawn(move || {
            let mut held: Vec<MicroBatch> = Vec::new();
            loop {
                // Nothing new for a moment: the pipeline waits for what is held.
                let next = work.recv_timeout(Duration::from_millis(2));
                let done = matches!(next, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
                held.extend(next.ok());
                while held.len() > hold || (!held.is_empty() && work.is_empty()) {
                    let batch = held.pop().unwrap();
                    let before = counted.fetch_add(batch.rows.len(), Ordering::Relaxed);
                    let rows = if before + batch.rows.len() > fail_after {
                        Err(EngineError::Stopped("device lost".into()))
                    } else {
                        Ok(batch.rows.iter().map(|r| (r.index, Self::logits(&r.encoding))).collect())
                    };
                    let _ = batch.reply.send(BatchResult { tag: batch.tag, rows });
                }
                if done {
                    return;
                }
            }
        });
        Self { queue, rows }
    }

    fn logits(e: &Encoding) -> Result<Logits, String> {
        match e.ids[0] {
            33 => Err("refused".into()),
            id => Ok(if id % 2 == 1 { vec![0.0, 0.0, 9.0] } else { vec![9.0, 0.0, 0.0] }),
        }
    }
}

impl Inference for Shuffling {
    fn submit(&self, batch: MicroBatch) -> Result<(), EngineError> {
        self.queue.send(batch).map_err(|_| EngineError::Stopped("gone".into()))
    }

    fn sessions(&self) -> usize {
        2
    }

    fn limits(&self) -> (Limits, usize) {
        (Limits { max_tokens: 16, max_rows: 3 }, 64)
    }

    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}

fn pipeline(engine: Shuffling, cache_entries: usize) -> Pipeline {
    let model = ModelId { name: "m".into(), hash: "h".into() };
    let label = Labeller {
        decider: Decider::of(Sentiment::ALL.to_vec(), 1.0, 0.0),
        model: model.clone(),
        keep_text: true,
    };
    Pipeline::with(
        Arc::new(Texts),
        Arc::new(engine),
        Arc::new(RepeatCache::new(cache_entries, &model)),
        label,
    )
}

fn windows(texts: &[Vec<String>]) -> Vec<Window> {
    let mut offset = 0;
    let mut record = |text: &String| {
        let position = Position { partition: TopicPartition::new("posts", 0), offset: Offset(offset) };
        offset += 1;
        RawRecord { position, key: None, payload: Some(Bytes::from(text.clone())), timestamp: None }
    };
    texts
        .iter()
        .enumerate()
        .map(|(seq, w)| Window { seq: seq as u64, records: w.iter().map(&mut record).collect() })
        .collect()
}

/// Submits from a thread of its own, as a source does.
fn run(pipeline: &Pipeline, input: Vec<Window>) -> Vec<SettledWindow> {
    std::thread::scope(|s| {
        s.spawn(|| {
            for w in input {
                if pipeline.submit(w).is_err() {
                    break;
                }
            }
            pipeline.close();
        });
        let mut out = Vec::new();
        while let Ok(w) = pipeline.results().recv_timeout(LIMIT) {
            out.push(w);
        }
        out
    })
}

fn strings(texts: &[&[&str]]) -> Vec<Vec<String>> {
    texts.iter().map(|w| w.iter().map(|t| (*t).to_owned()).collect()).collect()
}

fn text_of(record: &RawRecord) -> String {
    String::from_utf8(record.payload.clone().unwrap().to_vec()).unwrap()
}

fn check(texts: &[Vec<String>], out: &[SettledWindow]) {
    assert_eq!(out.iter().map(|w| w.seq).collect::<Vec<_>>(), (0..texts.len() as u64).collect::<Vec<_>>());
    let mut offset = 0;
    for (window, texts) in out.iter().zip(texts) {
        assert_eq!(window.items.len(), texts.len());
        for (item, text) in window.items.iter().zip(texts) {
            assert_eq!(&text_of(item.record()), text);
            assert_eq!(item.record().position.offset, Offset(offset));
            offset += 1;
            match (text.as_str(), item) {
                ("skip", Settled::Skipped { reason: "delete", .. }) => {}
                ("dead", Settled::Dead(d)) => assert_eq!(d.reason, "not_json"),
                ("panic", Settled::Dead(d)) => assert_eq!((d.stage, d.reason), (Stage::Decode, "panicked")),
                (t, Settled::Dead(d)) if t.starts_with('!') => {
                    assert_eq!((d.stage, d.message.as_str()), (Stage::Classify, "refused"));
                }
                (t, Settled::Labelled { record, labelled }) => {
                    let odd = t.as_bytes()[0] % 2 == 1;
                    assert_eq!(labelled.label, if odd { Label::Positive } else { Label::Negative });
                    assert_eq!(labelled.source.offset, record.position.offset.0);
                    assert_eq!(labelled.text.as_deref(), Some(t));
                }
                (t, item) => panic!("'{t}' became {item:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_window_comes_out_once_whole_and_in_order(
        texts in prop::collection::vec(
            prop::collection::vec(prop::sample::select(vec![
                "a", "b", "bb", "cccc", "ddddddd", "eeeeeeeeeeeeeeeeeeee", "skip", "dead", "!x",
            ]).prop_map(str::to_owned), 0..80),
            0..12,
        ),
        hold in 0usize..6,
        cache in prop::sample::select(vec![0usize, 2, 100]),
    ) {
        let pipeline = pipeline(Shuffling::start(hold, usize::MAX), cache);
        let out = run(&pipeline, windows(&texts));
        check(&texts, &out);
        prop_assert!(pipeline.error().is_none());
    }
}

#[test]
fn repeats_are_inferred_once() {
    let engine = Shuffling::start(0, usize::MAX);
    let rows = engine.rows.clone();
    let pipeline = pipeline(engine, 100);
    let texts = strings(&[&["a", "b", "a", "a"]]);
    check(&texts, &run(&pipeline, windows(&texts)));
    assert_eq!(rows.load(Ordering::Relaxed), 2, "a repeat inside the window is inferred once");
}

#[test]
fn the_cache_answers_a_later_window() {
    let engine = Shuffling::start(0, usize::MAX);
    let rows = engine.rows.clone();
    let pipeline = pipeline(engine, 100);
    let texts = strings(&[&["a", "b"], &["b", "a", "c"]]);
    let mut out = Vec::new();
    for w in windows(&texts) {
        pipeline.submit(w).unwrap();
        out.push(pipeline.results().recv_timeout(LIMIT).unwrap());
    }
    check(&texts, &out);
    assert_eq!(rows.load(Ordering::Relaxed), 3);
}

#[test]
fn a_record_that_panics_the_front_is_a_dead_letter() {
    let pipeline = pipeline(Shuffling::start(0, usize::MAX), 0);
    let texts = strings(&[&["a", "panic", "b"]]);
    check(&texts, &run(&pipeline, windows(&texts)));
    assert!(pipeline.error().is_none());
}

#[test]
fn a_stopped_engine_ends_the_results_and_is_the_error() {
    let pipeline = pipeline(Shuffling::start(0, 5), 0);
    let texts: Vec<Vec<String>> = (0..50).map(|i| vec![format!("a{i}"), format!("b{i}")]).collect();
    let out = run(&pipeline, windows(&texts));
    assert!(out.len() <= 2, "{} windows", out.len());
    check(&texts[..out.len()], &out);
    let e = pipeline.error().unwrap();
    assert!(matches!(e, PipelineError::Inference(_)) && e.to_string().contains("device lost"), "{e}");
    assert!(pipeline.submit(Window { seq: 99, records: vec![] }).is_err());
}

#[test]
fn a_slow_consumer_stops_intake() {
    let pipeline = pipeline(Shuffling::start(0, usize::MAX), 0);
    let texts: Vec<Vec<String>> = (0..40).map(|i| vec![format!("a{i}")]).collect();
    let mut taken = 0;
    for w in windows(&texts) {
        if pipeline.input().send_timeout(w, Duration::from_millis(300)).is_err() {
            break;
        }
        taken += 1;
    }
    // Four permits, one window in the queue of results, one in the hand of settling.
    assert!((4..=6).contains(&taken), "{taken} windows were taken");
}

#[test]
fn a_pipeline_that_nobody_reads_can_be_dropped() {
    let pipeline = pipeline(Shuffling::start(3, usize::MAX), 0);
    let texts: Vec<Vec<String>> = (0..4).map(|i| vec![format!("a{i}")]).collect();
    for w in windows(&texts) {
        pipeline.submit(w).unwrap();
    }
    drop(pipeline);
}
