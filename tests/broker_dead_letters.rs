//! `dead-letters` and `replay` against a real broker, through the commands themselves.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{io::Write, path::PathBuf, time::Duration};

use clap::Parser;
use rdkafka::Message;
use sentistream::{
    cli::{Outcome, dead_letters, replay},
    config::DeliveryMode::ExactlyOnce,
    source::dead_letters::{Letter, scan},
};
use support::{
    broker::Broker,
    produce, read,
    stage::{Double, Setup, setup, start},
    until, watermark_sum,
};

const LIMIT: Duration = Duration::from_secs(60);

#[derive(Parser)]
enum Cli {
    DeadLetters(dead_letters::Args),
    Replay(replay::Args),
}

fn command(args: &[&str]) -> Outcome {
    match Cli::try_parse_from([&["sentistream"], args].concat()).unwrap() {
        Cli::DeadLetters(a) => dead_letters::run(&a).unwrap(),
        Cli::Replay(a) => replay::run(&a).unwrap(),
    }
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

fn config_file(dir: &tempfile::TempDir, s: &Setup) -> String {
    let k = &s.config.kafka;
    let text = format!(
        "[kafka]\nbrokers='{}'\ngroup='{}'\nposts_topic='{}'\nlabelled_topic='{}'\ndead_letter_topic='{}'\n",
        k.brokers, k.group, k.posts_topic, k.labelled_topic, k.dead_letter_topic
    );
    file(dir, "s.toml", &text).display().to_string()
}

#[test]
fn dead_letters_are_listed_and_go_back_once_with_their_own_bytes() {
    let Some(broker) = Broker::start("dead_letters_are_listed_and_go_back_once_with_their_own_bytes") else {
        return;
    };
    let s = setup(&broker, "requeue", 2, ExactlyOnce);
    let dir = tempfile::tempdir().unwrap();
    let config = config_file(&dir, &s);
    let posts = &s.config.kafka.posts_topic;
    produce(
        &broker,
        posts,
        2,
        (0..100).map(|i| if i % 10 == 0 { format!("dead {i}") } else { format!("post {i}") }),
    );
    let stage = start(&s.config, Double::new(Duration::ZERO));
    until("all posts are classified", LIMIT, || {
        stage.double.taken.load(std::sync::atomic::Ordering::Acquire) == 100
    });
    stage.stop().unwrap();

    let mut letters: Vec<Letter> = Vec::new();
    let strange = scan(&s.config.kafka, |l| {
        letters.push(l);
        true
    });
    assert_eq!((strange.unwrap(), letters.len()), (0, 10));
    assert!(letters.iter().all(|l| l.stage == "decode" && l.reason == "not_json"));
    assert!(letters.iter().all(|l| *l.source.partition.topic == **posts && l.cut_from.is_none()));
    assert_eq!(
        command(&["dead-letters", "list", "--json", "--limit", "3", "--config", &config]),
        Outcome::Done
    );

    let before = watermark_sum(&broker, posts);
    let requeue = |more: &[&str]| {
        command(&[&["dead-letters", "requeue", "--config", &config][..], more].concat());
        read(&broker, &[posts], usize::MAX, Duration::from_secs(3))
    };
    assert_eq!(requeue(&["--dry-run"]).len(), before);
    assert_eq!(requeue(&["--reason", "other"]).len(), before);
    assert_eq!(requeue(&["--reason", "not_json"]).len(), before + 10);
    let all = requeue(&[]);
    assert_eq!(all.len(), before + 10, "what was requeued is remembered");
    let mut again: Vec<(String, String)> = all
        .iter()
        .map(|m| {
            (
                String::from_utf8_lossy(m.key().unwrap()).into(),
                String::from_utf8_lossy(m.payload().unwrap()).into(),
            )
        })
        .filter(|(_, v): &(String, String)| v.starts_with("dead"))
        .collect();
    again.sort();
    let mut expected: Vec<(String, String)> =
        (0..100).step_by(10).flat_map(|i| vec![(format!("k{i}"), format!("dead {i}")); 2]).collect();
    expected.sort();
    assert_eq!(again, expected, "each once more, with its own key and bytes");
}

#[test]
fn a_file_is_replayed_with_the_ids_as_keys() {
    let Some(broker) = Broker::start("a_file_is_replayed_with_the_ids_as_keys") else { return };
    let s = setup(&broker, "replay", 2, ExactlyOnce);
    let dir = tempfile::tempdir().unwrap();
    let config = config_file(&dir, &s);
    let line =
        |i: u32| format!("{{\"id\":\"{i}\",\"created_at\":\"2017-07-14T02:40:{i:02}Z\",\"text\":\"t\"}}\n");
    let text: String = (0..50).map(line).collect();
    let path = file(&dir, "posts.ndjson", &text).display().to_string();
    let topic = &s.config.kafka.posts_topic;
    let args = ["replay", &path, "--topic", topic, "--config", &config];
    assert_eq!(command(&[&args[..], &["--speed", "100", "--event-time"]].concat()), Outcome::Done);
    let mut got: Vec<_> = read(&broker, &[topic], 50, LIMIT);
    assert_eq!(got.len(), 50);
    got.sort_by_key(|m| std::str::from_utf8(m.key().unwrap()).unwrap().parse::<u32>().unwrap());
    for (i, m) in got.iter().enumerate() {
        assert_eq!(m.payload().unwrap(), line(i as u32).trim_end().as_bytes());
        assert_eq!(m.timestamp().to_millis(), Some(1_500_000_000_000 + 1000 * i as i64));
    }
}
