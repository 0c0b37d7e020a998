//! Faults between the stage and the broker: lost transactions, lost answers, refused requests.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use rdkafka::{
    mocking::MockCluster, producer::DefaultProducerContext, types::RDKafkaApiKey, types::RDKafkaRespErr,
};
use sentistream::{
    config::DeliveryMode::{AtLeastOnce, ExactlyOnce},
    settle::{Class, Fault, NextOffsets, Output},
    stage::StageError,
    window::Settled,
};
use support::{
    assert_each_once,
    broker::Broker,
    census, committed, produce, read,
    stage::{Double, Setup, setup, start, start_with},
    until,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Fails every third commit before it is made, and loses the answer of every fifth after it was made.
struct Flaky {
    inner: Box<dyn Output>,
    commits: u32,
    sends: u32,
}

fn fault(step: &'static str, class: Class) -> Fault {
    Fault { step, class, message: "injected".into() }
}

impl Output for Flaky {
    fn begin(&mut self) -> Result<(), Fault> {
        self.inner.begin()
    }

    fn send(&mut self, item: &Settled) -> Result<(), Fault> {
        self.sends += 1;
        if self.sends.is_multiple_of(701) {
            return Err(fault("send", Class::Abortable));
        }
        self.inner.send(item)
    }

    fn hold_group(&mut self) -> Result<(), Fault> {
        self.inner.hold_group()
    }

    fn send_offsets(&mut self, next: &NextOffsets) -> Result<(), Fault> {
        self.inner.send_offsets(next)
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.commits += 1;
        match self.commits {
            n if n.is_multiple_of(5) => {
                self.inner.commit()?;
                Err(fault("commit", Class::Unknown))
            }
            n if n.is_multiple_of(7) => Err(fault("commit", Class::Unknown)),
            n if n.is_multiple_of(3) => Err(fault("commit", Class::Abortable)),
            _ => self.inner.commit(),
        }
    }

    fn abort(&mut self) -> Result<(), Fault> {
        self.inner.abort()
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.inner.reset()
    }

    fn wait(&mut self, _: u32) {}
}

#[test]
fn aborted_and_undecided_transactions_leave_no_gap_and_no_double() {
    let Some(broker) = Broker::start("aborted_and_undecided_transactions_leave_no_gap_and_no_double") else {
        return;
    };
    let mut s = setup(&broker, "flaky", 3, ExactlyOnce);
    s.config.batch.window_rows = 64;
    s.config.delivery.commit_max_records = 150;
    produce(&broker, &s.config.kafka.posts_topic, 3, (0..3000).map(|i| format!("post {i}")));
    let flaky = |inner| -> Box<dyn Output> { Box::new(Flaky { inner, commits: 0, sends: 0 }) };
    let stage = start_with(&s.config, Double::new(Duration::ZERO), flaky);
    let total =
        || committed(&broker, &s.config.kafka.group, &s.config.kafka.posts_topic, 3).values().sum::<i64>();
    until("all posts are committed", LIMIT, || {
        assert!(!stage.is_finished(), "the stage gave up");
        total() == 3000
    });
    stage.stop().unwrap();
    assert_each_once(&broker, &s.config.kafka.posts_topic, &s.outputs(), |_| false);
}

/// A cluster inside the process with the topics of a test and some posts.
fn mocked(name: &str, posts: usize) -> (MockCluster<'static, DefaultProducerContext>, Broker, Setup) {
    let cluster = MockCluster::new(1).unwrap();
    let broker = Broker::at(cluster.bootstrap_servers());
    let s = support::stage::names(&broker, name, 2, AtLeastOnce);
    let k = &s.config.kafka;
    for (topic, n) in [(&k.posts_topic, 2), (&k.labelled_topic, 2), (&k.dead_letter_topic, 1)] {
        cluster.create_topic(topic, n, 1).unwrap();
    }
    produce(&broker, &k.posts_topic, 2, (0..posts).map(|i| format!("post {i}")));
    (cluster, broker, s)
}

/// Otherwise the source would go on reading, the group would keep its member, and nothing would be labelled.
#[test]
fn a_classifier_that_dies_ends_the_stage() {
    for connected in [true, false] {
        let (_cluster, _broker, s) = mocked("dead-classifier", 10);
        let stage = start(&s.config, Double::dead(connected));
        let outcome = stage.join();
        assert!(matches!(outcome, Err(StageError::Classifier)), "connected {connected}: {outcome:?}");
    }
}

#[test]
fn a_stop_is_obeyed_while_there_is_no_broker() {
    // Nothing listens at port 1.
    let broker = Broker::at("127.0.0.1:1".into());
    let s = support::stage::names(&broker, "no-broker", 1, ExactlyOnce);
    let stage = start(&s.config, Double::new(Duration::ZERO));
    let asked = Instant::now();
    stage.stop().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(25), "took {:?}", asked.elapsed());
}

/// A topic that takes less than `message.max.bytes` refuses the same again for ever; each producer that follows
/// sends less, in both modes.
#[test]
fn messages_refused_as_too_large_are_sent_smaller() {
    use RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as TOO_LARGE;
    for mode in [AtLeastOnce, ExactlyOnce] {
        let (cluster, broker, mut s) = mocked("too-large", 0);
        s.config.delivery.mode = mode;
        let k = &s.config.kafka;
        // Under the default limit, and over what is left of it after two refusals.
        let long = format!("long {}", "x".repeat(300_000));
        produce(&broker, &k.posts_topic, 1, [long]);
        cluster.request_errors(RDKafkaApiKey::Produce, &[TOO_LARGE, TOO_LARGE]);
        let stage = start(&s.config, Double::new(Duration::ZERO));
        let seen = read(&broker, &[&k.dead_letter_topic], 1, LIMIT);
        assert!(!stage.is_finished(), "the stage gave up");
        assert_eq!(seen.len(), 1, "{mode:?}: a dead letter that fits");
        stage.stop().unwrap();
    }
}

/// The cluster inside the process has no transactions, but it can refuse any request.
#[test]
fn refused_requests_are_repeated_or_rewound_and_nothing_is_lost() {
    let (cluster, broker, s) = mocked("refused", 1000);
    let k = &s.config.kafka;
    use RDKafkaRespErr::{
        RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE as TOO_LARGE,
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION as NOT_LEADER,
        RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS as REBALANCE,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT as TIMED_OUT,
    };
    cluster.request_errors(RDKafkaApiKey::Produce, &[NOT_LEADER, TOO_LARGE, TIMED_OUT]);
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[REBALANCE, TIMED_OUT]);
    let mut config = s.config.clone();
    config.delivery.commit_max_records = 200;
    let stage = start(&config, Double::new(Duration::ZERO));
    until("all posts are committed", LIMIT, || {
        assert!(!stage.is_finished(), "the stage gave up");
        committed(&broker, &k.group, &k.posts_topic, 2).values().sum::<i64>() == 1000
    });
    stage.stop().unwrap();
    let seen = census(&read(&broker, &[&k.labelled_topic], 1000, LIMIT));
    assert_eq!(seen.len(), 1000, "every post at least once");
}
