//! The demo's broker: librdkafka's mock cluster, on a loopback port of its own choice.
//!
//! It speaks the Kafka protocol, so any client can join while the demo runs. It has no transactions,
//! which is why the demo says `at_least_once`.

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    mocking::MockCluster,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

use super::summary::Summary;
use crate::{
    config::Kafka,
    record::{Labelled, Timestamp},
    shutdown::Shutdown,
};

/// Partitions of each topic.
pub const PARTITIONS: i32 = 2;

/// A broker in this process.
pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    /// Starts it and creates the three topics.
    pub fn start(kafka: &Kafka) -> Result<Self, KafkaError> {
        let cluster = MockCluster::new(1)?;
        for topic in [&kafka.posts_topic, &kafka.labelled_topic, &kafka.dead_letter_topic] {
            cluster.create_topic(topic, PARTITIONS, 1)?;
        }
        Ok(Self { cluster })
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.cluster.bootstrap_servers()
    }
}

/// Produces the generated posts.
pub struct Feed {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
}

impl Feed {
    /// A producer to the posts topic.
    pub fn new(kafka: &Kafka) -> Result<Self, KafkaError> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &kafka.brokers)
            .set("linger.ms", "5")
            .set("compression.type", "lz4")
            .create()?;
        Ok(Self { producer, topic: kafka.posts_topic.clone() })
    }

    /// Sends one record; waits while the client's queue is full.
    pub fn send(&self, key: Option<&str>, payload: &[u8], at: Timestamp) -> Result<(), KafkaError> {
        let mut record = BaseRecord::<str, [u8]>::to(&self.topic).payload(payload).timestamp(at.0 / 1000);
        if let Some(key) = key {
            record = record.key(key);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.producer.flush(Duration::from_millis(100)).ok();
                }
                Err((e, _)) => return Err(e),
            }
        }
    }

    /// Waits until all that was sent has arrived.
    pub fn flush(&self) -> Result<(), KafkaError> {
        self.producer.flush(Duration::from_secs(10))
    }
}

/// Reads the labelled and dead-letter topics into `summary` until `shutdown`.
pub fn follow(
    kafka: &Kafka,
    summary: Arc<Summary>,
    shutdown: Shutdown,
) -> Result<JoinHandle<()>, KafkaError> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", "demo-summary")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut all = TopicPartitionList::new();
    for topic in [&kafka.labelled_topic, &kafka.dead_letter_topic] {
        for p in 0..PARTITIONS {
            all.add_partition_offset(topic, p, Offset::Beginning)?;
        }
    }
    consumer.assign(&all)?;
    let labelled = kafka.labelled_topic.clone();
    Ok(thread::spawn(move || {
        while !shutdown.is_set() {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(m)) if m.topic() == labelled => {
                    let post = m.payload().and_then(|p| serde_json::from_slice::<Labelled>(p).ok());
                    if let Some(post) = post {
                        summary.labelled(&post);
                    }
                }
                Some(Ok(_)) => summary.dead(),
                Some(Err(error)) => tracing::warn!(%error, "reading the labelled topic"),
                None => {}
            }
        }
    }))
}
