//! What the broker tests share. Nothing here knows the code under test, except to start it.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub mod broker;
pub mod stage;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, OwnedMessage},
    producer::{BaseProducer, BaseRecord, Producer},
};

use broker::Broker;

/// Waits for a condition, not for time.
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "after {limit:?} still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Logs of the code under test: `RUST_LOG=sentistream=debug cargo test … -- --nocapture`.
pub fn logs() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    // Another test of this program may have done it.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}

/// Says that a test did not run, where people see it; under CI and `make test` that is a failure.
pub fn skip(test: &str, why: &str) {
    eprintln!("\n*** SKIPPED {test}: {why}\n");
    let required = std::env::var("CI").as_deref() == Ok("true")
        || std::env::var_os("SENTISTREAM_REQUIRE_BROKER").is_some();
    assert!(!required, "{test} was skipped where it must run: {why}");
}

/// A name that no other test or run has.
pub fn unique(name: &str) -> String {
    format!("{name}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}

/// Produces `values` to partitions in turn; key `k<i>`. Returns when all are acknowledged.
pub fn produce(broker: &Broker, topic: &str, partitions: i32, values: impl IntoIterator<Item = String>) {
    let producer: BaseProducer = broker.client().set("enable.idempotence", "true").create().unwrap();
    for (i, value) in values.into_iter().enumerate() {
        let key = format!("k{i}");
        let mut record = BaseRecord::to(topic).key(&key).payload(&value).partition(i as i32 % partitions);
        while let Err((e, back)) = producer.send(record) {
            assert!(e.to_string().contains("Queue full"), "{e}");
            producer.poll(Duration::from_millis(5));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// A reader of everything that is visible under `read_committed`.
pub fn reader(broker: &Broker, topics: &[&str]) -> BaseConsumer {
    let consumer: BaseConsumer = broker
        .client()
        .set("group.id", unique("reader"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    for topic in topics {
        let meta = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
        for p in meta.topics()[0].partitions() {
            list.add_partition_offset(topic, p.id(), rdkafka::Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&list).unwrap();
    consumer
}

/// Reads until `n` records came, and then for a moment more, so that one too many is seen.
pub fn read(broker: &Broker, topics: &[&str], n: usize, limit: Duration) -> Vec<OwnedMessage> {
    let consumer = reader(broker, topics);
    let (mut out, mut end) = (Vec::new(), Instant::now() + limit);
    let mut complete = false;
    while Instant::now() < end {
        if let Some(m) = consumer.poll(Duration::from_millis(100)) {
            out.push(m.unwrap().detach());
        }
        if out.len() >= n && !complete {
            complete = true;
            end = Instant::now() + Duration::from_millis(1500);
        }
    }
    out
}

pub fn header(m: &OwnedMessage, name: &str) -> Option<String> {
    let headers = m.headers()?;
    let found = headers.iter().filter(|h| h.key == name).last()?;
    found.value.map(|v| String::from_utf8_lossy(v).into_owned())
}

/// Partition and offset of the post that an output says it is of, by its headers alone.
pub fn source_of(m: &OwnedMessage) -> (i32, i64) {
    let of = |labelled: &str, dead: &str| {
        header(m, labelled).or_else(|| header(m, dead)).expect("a source header").parse::<i64>().unwrap()
    };
    let partition = of("sentistream.source.partition", "__connect.errors.partition");
    (partition as i32, of("sentistream.source.offset", "__connect.errors.offset"))
}

/// How often each source offset is seen in the outputs.
pub fn census(outputs: &[OwnedMessage]) -> BTreeMap<(i32, i64), usize> {
    let mut seen = BTreeMap::new();
    for m in outputs {
        *seen.entry(source_of(m)).or_default() += 1;
    }
    seen
}

/// The oracle: every offset of the posts topic once in labelled + dead letters.
pub fn assert_each_once(
    broker: &Broker,
    posts: &str,
    outputs: &[&str],
    skipped: impl Fn(&OwnedMessage) -> bool,
) {
    let input = read(broker, &[posts], watermark_sum(broker, posts), Duration::from_secs(60));
    let expected: Vec<(i32, i64)> = {
        let mut all: Vec<_> =
            input.iter().filter(|m| !skipped(m)).map(|m| (m.partition(), m.offset())).collect();
        all.sort_unstable();
        all
    };
    assert!(!expected.is_empty());
    let census = census(&read(broker, outputs, expected.len(), Duration::from_secs(60)));
    let twice: Vec<_> = census.iter().filter(|(_, n)| **n > 1).collect();
    assert!(
        twice.is_empty(),
        "{} offsets came more than once: {:?}",
        twice.len(),
        &twice[..twice.len().min(5)]
    );
    let got: Vec<(i32, i64)> = census.into_keys().collect();
    assert_eq!(got.len(), expected.len(), "offsets are missing");
    assert_eq!(got, expected);
}

/// Records in a topic that nobody writes transactions to.
pub fn watermark_sum(broker: &Broker, topic: &str) -> usize {
    let consumer: BaseConsumer = broker.client().create().unwrap();
    let meta = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
    let marks = meta.topics()[0].partitions().iter().map(|p| {
        let (low, high) = consumer.fetch_watermarks(topic, p.id(), Duration::from_secs(10)).unwrap();
        (high - low) as usize
    });
    marks.sum()
}

/// What `group` has committed, by partition.
pub fn committed(broker: &Broker, group: &str, topic: &str, partitions: i32) -> BTreeMap<i32, i64> {
    let consumer: BaseConsumer = broker.client().set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    (0..partitions).for_each(|p| {
        list.add_partition(topic, p);
    });
    let list = consumer.committed_offsets(list, Duration::from_secs(10)).unwrap();
    let elements = list.elements();
    elements.iter().filter_map(|e| Some((e.partition(), e.offset().to_raw().filter(|o| *o >= 0)?))).collect()
}
