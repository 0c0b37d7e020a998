//! The classify stage against a real broker: everything but the model is the code that ships.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use rdkafka::{Message, message::OwnedMessage};
use sentistream::{
    config::DeliveryMode::{AtLeastOnce, ExactlyOnce},
    record::Labelled,
    stage::StageError,
};
use support::{
    assert_each_once,
    broker::Broker,
    census, committed, header, produce, read,
    stage::{Double, Setup, setup, start},
    until,
};

const LIMIT: Duration = Duration::from_secs(60);

fn posts(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| match i % 50 {
        7 => format!("dead {i}"),
        9 => format!("skip {i}"),
        _ => format!("post {i}"),
    })
}

fn is_skip(m: &OwnedMessage) -> bool {
    m.payload().is_some_and(|p| p.starts_with(b"skip"))
}

fn total(broker: &Broker, s: &Setup) -> i64 {
    committed(broker, &s.config.kafka.group, &s.config.kafka.posts_topic, s.partitions).values().sum()
}

#[test]
fn every_post_comes_out_once_and_shutdown_commits_everything() {
    let name = "every_post_comes_out_once_and_shutdown_commits_everything";
    let Some(broker) = Broker::start(name) else { return };
    let s = setup(&broker, "once", 3, ExactlyOnce);
    produce(&broker, &s.config.kafka.posts_topic, 3, posts(3000));
    let stage = start(&s.config, Double::new(Duration::ZERO));
    until("all posts are classified", LIMIT, || stage.double.taken.load(Ordering::Acquire) == 3000);
    assert!(stage.health.reasons().is_empty(), "{:?}", stage.health.reasons());
    stage.stop().unwrap();
    assert_eq!(total(&broker, &s), 3000, "the drain committed what was in flight");
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);

    let labelled = read(&broker, &[&s.config.kafka.labelled_topic], 2880, LIMIT);
    assert_eq!(labelled.len(), 2880);
    for m in &labelled {
        let post: Labelled = serde_json::from_slice(m.payload().unwrap()).unwrap();
        let i: usize = post.id.strip_prefix("post ").unwrap().parse().unwrap();
        assert_eq!(m.key(), Some(format!("k{i}").as_bytes()));
        assert_eq!((post.source.partition, post.source.offset), support::source_of(m));
        assert_eq!(header(m, "sentistream.model").as_deref(), Some("double"));
        assert_eq!(header(m, "content-type").as_deref(), Some("application/json"));
    }
    let dead = read(&broker, &[&s.config.kafka.dead_letter_topic], 60, LIMIT);
    assert_eq!(dead.len(), 60);
    for m in &dead {
        let i: usize = std::str::from_utf8(m.payload().unwrap()).unwrap()[5..].parse().unwrap();
        assert_eq!(m.key(), Some(format!("k{i}").as_bytes()));
        assert_eq!(header(m, "__connect.errors.topic").as_deref(), Some(&*s.config.kafka.posts_topic));
        assert_eq!(header(m, "__connect.errors.stage").as_deref(), Some("decode"));
    }
}

/// This test's own program again, running only [`killed_child`].
fn child(s: &Setup) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["killed_child", "--exact", "--ignored", "--nocapture"])
        .env("CHILD_CONFIG", format!("{}\n{}", s.config.kafka.brokers, s.config.kafka.group))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the process that a_killed_process_leaves_no_gap_and_no_double starts and kills"]
fn killed_child() {
    let Ok(text) = std::env::var("CHILD_CONFIG") else { return };
    let (brokers, base) = text.split_once('\n').unwrap();
    let mut config = sentistream::config::Config::defaults();
    config.kafka.brokers = brokers.into();
    config.kafka.group = base.into();
    config.kafka.posts_topic = format!("{base}.posts");
    config.kafka.labelled_topic = format!("{base}.labelled");
    config.kafka.dead_letter_topic = format!("{base}.dead");
    config.kafka.instance_id = "one".into();
    config.kafka.session_timeout_ms = 10_000;
    config.delivery.commit_interval_ms = 20;
    config.batch.window_rows = 64;
    start(&config, Double::new(Duration::from_millis(5))).join().unwrap();
}

#[test]
fn a_killed_process_leaves_no_gap_and_no_double() {
    let Some(broker) = Broker::start("a_killed_process_leaves_no_gap_and_no_double") else { return };
    let s = setup(&broker, "killed", 2, ExactlyOnce);
    produce(&broker, &s.config.kafka.posts_topic, 2, posts(4000));
    for share in [500, 1500, 2500] {
        let mut process = child(&s);
        until("some posts are committed", LIMIT, || total(&broker, &s) >= share);
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert!(total(&broker, &s) < 4000, "the last kill came too late to show anything");
    let mut process = child(&s);
    until("all posts are committed", LIMIT, || total(&broker, &s) == 4000);
    process.kill().unwrap();
    process.wait().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);
}

#[test]
fn a_drain_that_takes_too_long_is_given_up_and_nothing_is_lost() {
    let Some(broker) = Broker::start("a_drain_that_takes_too_long_is_given_up_and_nothing_is_lost") else {
        return;
    };
    let mut s = setup(&broker, "slow-drain", 1, ExactlyOnce);
    s.config.shutdown.drain_s = 1;
    produce(&broker, &s.config.kafka.posts_topic, 1, posts(1000));
    let double = Double::new(Duration::ZERO);
    double.hold.store(true, Ordering::Release);
    let stage = start(&s.config, double.clone());
    until("partitions are assigned", LIMIT, || stage.health.reasons().is_empty());
    stage.trigger.set();
    until("the drain is over", LIMIT, || {
        // The classifier hangs for as long as the drain waits for it.
        let reasons = stage.health.reasons().join(" ");
        reasons.contains("shutting down")
    });
    let begun = Instant::now();
    until("the drain was given up", LIMIT, || begun.elapsed() > Duration::from_millis(1300));
    double.hold.store(false, Ordering::Release);
    stage.join().unwrap();
    assert_eq!(total(&broker, &s), 0, "nothing of a drain that was given up is committed");
    let again = start(&s.config, Double::new(Duration::ZERO));
    until("all posts are committed", LIMIT, || total(&broker, &s) == 1000);
    again.stop().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);
}

#[test]
fn a_second_instance_of_the_same_name_fences_the_first() {
    let Some(broker) = Broker::start("a_second_instance_of_the_same_name_fences_the_first") else { return };
    let s = setup(&broker, "fenced", 1, ExactlyOnce);
    produce(&broker, &s.config.kafka.posts_topic, 1, posts(200));
    let first = start(&s.config, Double::new(Duration::ZERO));
    until("the first works", LIMIT, || total(&broker, &s) == 200);
    let second = start(&s.config, Double::new(Duration::ZERO));
    until("the second has taken over or the first has noticed", LIMIT, || {
        produce(&broker, &s.config.kafka.posts_topic, 1, posts(50));
        first.is_finished()
    });
    let e = first.join().unwrap_err();
    assert!(matches!(e, StageError::Delivery(_) | StageError::Source(_)), "{e}");
    let all = support::watermark_sum(&broker, &s.config.kafka.posts_topic) as i64;
    until("the second finishes the work", LIMIT, || total(&broker, &s) == all);
    second.stop().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);
}

#[test]
fn a_slow_classifier_pauses_reading_and_loses_nothing() {
    let Some(broker) = Broker::start("a_slow_classifier_pauses_reading_and_loses_nothing") else { return };
    let mut s = setup(&broker, "slow", 2, ExactlyOnce);
    s.config.batch.queue_records = 100;
    s.config.batch.window_rows = 50;
    // Shorter than the jam: polling has to go on through it, or the group throws the member out.
    s.config.kafka.session_timeout_ms = 6_000;
    s.config.kafka.max_poll_interval_ms = 6_000;
    produce(&broker, &s.config.kafka.posts_topic, 2, posts(2000));
    let double = Double::new(Duration::ZERO);
    double.hold.store(true, Ordering::Release);
    let stage = start(&s.config, double.clone());
    until("partitions are assigned", LIMIT, || stage.health.reasons().is_empty());
    let jam = Instant::now();
    until("the jam outlasts max.poll.interval.ms", LIMIT, || jam.elapsed() > Duration::from_secs(8));
    assert!(stage.health.reasons().is_empty(), "{:?}", stage.health.reasons());
    double.hold.store(false, Ordering::Release);
    until("all posts are committed", LIMIT, || total(&broker, &s) == 2000);
    stage.stop().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);
}

#[test]
fn at_least_once_delivers_everything_and_commits_behind_it() {
    let Some(broker) = Broker::start("at_least_once_delivers_everything_and_commits_behind_it") else {
        return;
    };
    let s = setup(&broker, "alo", 2, AtLeastOnce);
    produce(&broker, &s.config.kafka.posts_topic, 2, posts(2000));
    let first = start(&s.config, Double::new(Duration::from_millis(2)));
    until("some posts are committed", LIMIT, || total(&broker, &s) > 500);
    let done = total(&broker, &s);
    let seen = census(&read(&broker, &s.outputs(), 1960, Duration::from_secs(2)));
    let before: i64 =
        committed(&broker, &s.config.kafka.group, &s.config.kafka.posts_topic, 2).values().sum();
    assert!(before >= done && seen.len() as i64 >= done * 49 / 50, "offsets ran ahead of the outputs");
    until("all posts are committed", LIMIT, || total(&broker, &s) == 2000);
    first.stop().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);
}

#[test]
fn two_instances_share_and_hand_over_partitions() {
    let name = "two_instances_share_and_hand_over_partitions";
    let Some(broker) = Broker::start(name) else { return };
    if !broker.full {
        return skip_here(name);
    }
    let s = setup(&broker, "two", 4, ExactlyOnce);
    let (mut one, mut two) = (s.config.clone(), s.config.clone());
    one.kafka.instance_id = String::new();
    two.kafka.instance_id = String::new();
    produce(&broker, &s.config.kafka.posts_topic, 4, posts(4000));
    let first = start(&one, Double::new(Duration::from_millis(10)));
    until("the first works", LIMIT, || total(&broker, &s) > 200);
    let second = start(&two, Double::new(Duration::from_millis(10)));
    until("the second works", LIMIT, || {
        produce(&broker, &s.config.kafka.posts_topic, 4, posts(100));
        second.double.taken.load(Ordering::Acquire) > 0
    });
    first.stop().unwrap();
    produce(&broker, &s.config.kafka.posts_topic, 4, posts(1000));
    let all = support::watermark_sum(&broker, &s.config.kafka.posts_topic) as i64;
    until("everything is committed", LIMIT, || total(&broker, &s) == all);
    second.stop().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), is_skip);
}

/// Skipped by design on the stand-in, so not a failure under CI either.
/// What only a real Kafka can show is skipped by name, also where a broker is demanded.
fn skip_here(name: &str) {
    eprintln!(
        "\n*** SKIPPED {name}: the stand-in broker bumps the generation at every join; set SENTISTREAM_TEST_BROKERS to a real Kafka\n"
    );
}
