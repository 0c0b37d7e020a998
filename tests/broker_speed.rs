//! How fast the stage is around a classifier that costs nothing: `cargo test --test broker_speed -- --ignored
//! --nocapture`. Numbers, no verdict; what must hold is checked elsewhere.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use rdkafka::Message;
use sentistream::config::DeliveryMode::{AtLeastOnce, ExactlyOnce};
use support::{
    broker::Broker,
    committed, produce, reader,
    stage::{Double, setup, start},
    until,
};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
#[ignore = "measures"]
fn throughput() {
    let Some(broker) = Broker::start("throughput") else { return };
    for mode in [ExactlyOnce, AtLeastOnce] {
        let s = setup(&broker, "speed", 4, mode);
        let n = 100_000;
        let body = "x".repeat(180);
        produce(&broker, &s.config.kafka.posts_topic, 4, (0..n).map(|i| format!("post {i} {body}")));
        let stage = start(&s.config, Double::new(Duration::ZERO));
        let total = || {
            committed(&broker, &s.config.kafka.group, &s.config.kafka.posts_topic, 4).values().sum::<i64>()
        };
        until("it has begun", LIMIT, || total() > 0);
        let (begun, first) = (Instant::now(), total());
        until("all posts are committed", LIMIT, || total() == n);
        let rate = (n - first) as f64 / begun.elapsed().as_secs_f64();
        println!("{mode:?}: {rate:.0} posts/s");
        stage.stop().unwrap();
    }
}

#[test]
#[ignore = "measures"]
fn latency_at_light_load() {
    let Some(broker) = Broker::start("latency_at_light_load") else { return };
    for commit_interval_ms in [100, 20] {
        let mut s = setup(&broker, "latency", 1, ExactlyOnce);
        s.config.delivery.commit_interval_ms = commit_interval_ms;
        let stage = start(&s.config, Double::new(Duration::ZERO));
        until("partitions are assigned", LIMIT, || stage.health.reasons().is_empty());
        let consumer = reader(&broker, &[&s.config.kafka.labelled_topic]);
        let mut took: Vec<Duration> = Vec::new();
        for i in 0..100 {
            produce(&broker, &s.config.kafka.posts_topic, 1, [format!("post {i}")]);
            let sent = Instant::now();
            until("it is visible", LIMIT, || {
                consumer.poll(Duration::from_millis(20)).is_some_and(|m| m.unwrap().payload().is_some())
            });
            took.push(sent.elapsed());
        }
        took.sort();
        println!(
            "commit_interval_ms {commit_interval_ms}: append to visible, median {:?}, p95 {:?}",
            took[50], took[95]
        );
        stage.stop().unwrap();
    }
}
