//! The rollup stage against a real broker: labelled records in, parts out, the stage stopped and started again in
//! between, and the verification that everything is counted once.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use sentistream::{
    config::Config,
    health::Health,
    record::{Label, Labelled, ModelId, Scores, SourceRef, Timestamp},
    rollup::{
        stage,
        store::PartStore,
        verify::{Report, verify},
    },
    shutdown::Shutdown,
    source::{
        probe::{create_missing, partitions},
        scan::LabelledTopic,
    },
};

const PARTITIONS: i32 = 2;

fn post(n: i64) -> Labelled {
    Labelled {
        schema: Labelled::SCHEMA,
        id: format!("p{n}"),
        created_at: Timestamp(1_772_359_200_000_000 + n * 100_000),
        label: Label::Neutral,
        confidence: 0.9,
        scores: Scores::rounded([0.05, 0.9, 0.05]),
        brands: vec!["Acme".into()],
        lang: "en".into(),
        channel: "x".into(),
        author: None,
        reach: Some(1),
        text: Some(format!("post {n}")),
        model: ModelId { name: "m".into(), hash: "h".into() },
        source: SourceRef { topic: "posts".into(), partition: 0, offset: n },
    }
}

fn produce(config: &Config, from: i64, to: i64) {
    let producer: ThreadedProducer<DefaultProducerContext> =
        ClientConfig::new().set("bootstrap.servers", &config.kafka.brokers).create().unwrap();
    for n in from..to {
        let value = serde_json::to_vec(&post(n)).unwrap();
        let record = BaseRecord::<(), _>::to(&config.kafka.labelled_topic)
            .partition((n % i64::from(PARTITIONS)) as i32)
            .payload(&value);
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

fn check(config: &Config) -> Report {
    let store = PartStore::open(&config.store).unwrap();
    verify(&store, &config.kafka.labelled_topic, &LabelledTopic::open(&config.kafka).unwrap()).unwrap()
}

/// Runs the stage until `done` says so or two minutes have passed, then stops it.
fn run_until(config: &Config, done: impl Fn(&Report) -> bool) {
    let (trigger, shutdown) = Shutdown::new();
    let health = Health::default();
    std::thread::scope(|s| {
        let stage = s.spawn({
            let health = health.clone();
            move || stage::run(config, &shutdown, &health)
        });
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let report = check(config);
            if done(&report) || stage.is_finished() {
                break;
            }
            assert!(Instant::now() < until, "{report:?}, health: {:?}", health.reasons());
        }
        trigger.set();
        stage.join().unwrap().unwrap();
    });
}

fn posts_in_parts(r: &Report) -> u64 {
    r.partitions.iter().map(|p| p.posts_in_parts).sum()
}

#[test]
fn every_labelled_record_is_counted_once_across_restarts() {
    let test = "every_labelled_record_is_counted_once_across_restarts";
    let Some(broker) = support::broker::Broker::start(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = format!("{:x}", std::process::id());
    let mut config = Config::defaults();
    config.kafka.brokers.clone_from(&broker.servers);
    config.kafka.group = format!("rollup-test-{run}");
    config.kafka.instance_id = format!("rollup-test-{run}");
    config.kafka.labelled_topic = format!("labelled-{run}");
    config.store.url = format!("file:{}", dir.path().display());
    (config.rollup.seal_records, config.rollup.seal_idle_s) = (500, 3600);
    broker.create_topics(&[(&config.kafka.labelled_topic, PARTITIONS)]);

    produce(&config, 0, 2600);
    // Two full parts a partition are sealed, the rest is open; the shutdown drains it.
    run_until(&config, |r| posts_in_parts(r) >= 2000);
    let r = check(&config);
    assert!(r.ok, "{r:?}");
    assert_eq!((posts_in_parts(&r), r.partitions.iter().map(|p| p.unsealed).sum::<u64>()), (2600, 0));

    // The next run starts at the tip and counts nothing twice.
    produce(&config, 2600, 6000);
    run_until(&config, |r| posts_in_parts(r) >= 5000);
    let r = check(&config);
    assert!(r.ok, "{r:?}");
    assert_eq!(posts_in_parts(&r), 6000);

    // A group whose offsets are gone: the chain alone tells the position.
    config.kafka.group += "-new";
    config.kafka.instance_id += "-new";
    produce(&config, 6000, 7100);
    run_until(&config, |r| posts_in_parts(r) >= 7000);
    let r = check(&config);
    assert!(r.ok, "{r:?}");
    assert_eq!(posts_in_parts(&r), 7100);
}

/// A backlog's records keep their old time stamps; on the labelled topic retention must not go by them.
#[test]
fn a_missing_labelled_topic_is_created_with_the_time_of_writing() {
    let test = "a_missing_labelled_topic_is_created_with_the_time_of_writing";
    let Some(broker) = support::broker::Broker::start(test) else { return };
    let mut config = Config::defaults().kafka;
    config.brokers.clone_from(&broker.servers);
    config.posts_topic = support::unique("posts");
    config.labelled_topic = support::unique("labelled");
    config.dead_letter_topic = support::unique("dead");
    broker.create_topics(&[(&config.posts_topic, 3)]);
    let limit = Duration::from_secs(20);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let created = runtime.block_on(create_missing(&config, 1, limit)).unwrap();
    assert_eq!(created, [config.labelled_topic.clone(), config.dead_letter_topic.clone()]);
    let topics = [&*config.labelled_topic, &*config.dead_letter_topic];
    support::until("the topics are known", limit, || {
        partitions(&config, &topics, limit).unwrap() == [Some(3), Some(3)]
    });
    assert!(runtime.block_on(create_missing(&config, 1, limit)).unwrap().is_empty());

    let admin: AdminClient<DefaultClientContext> = broker.client().create().unwrap();
    let of = |name| {
        let asked = runtime
            .block_on(admin.describe_configs([&ResourceSpecifier::Topic(name)], &AdminOptions::new()))
            .unwrap();
        let described = asked.into_iter().next().unwrap().unwrap();
        described.entry_map().get("message.timestamp.type").and_then(|e| e.value.clone())
    };
    // The stand-in takes the setting and does not keep it.
    if broker.full {
        assert_eq!(
            (of(topics[0]).as_deref(), of(topics[1]).as_deref()),
            (Some("LogAppendTime"), Some("CreateTime"))
        );
    }
}
