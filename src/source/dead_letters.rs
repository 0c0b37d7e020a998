//! Reads the dead-letter topic from beginning to end, as `read_committed` readers see it.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};

use super::client::{base, own};
use crate::{
    config::Kafka,
    headers::parse_dead_letter,
    record::{Offset, Position, Timestamp, TopicPartition},
};

const TIMEOUT: Duration = Duration::from_secs(15);

/// A dead letter as it lies in its topic.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Where it lies.
    pub at: Position,
    /// Where the record that it is of was read.
    pub source: Position,
    /// Which stage refused it.
    pub stage: String,
    /// The short stable word.
    pub reason: String,
    /// One line for people.
    pub message: String,
    /// Original length of a value that was cut.
    pub cut_from: Option<u64>,
    /// The original key.
    pub key: Option<Bytes>,
    /// The original value.
    pub value: Option<Bytes>,
    /// The original record's time stamp.
    pub timestamp: Option<Timestamp>,
}

impl Letter {
    /// `None` where the headers that say what it was are missing: not written by us.
    fn read(m: &BorrowedMessage<'_>) -> Option<Self> {
        let headers = m.headers()?;
        let info = parse_dead_letter(headers.iter().map(|h| (h.key, h.value))).ok()?;
        Some(Self {
            at: Position {
                partition: TopicPartition::new(m.topic(), m.partition()),
                offset: Offset(m.offset()),
            },
            source: info.source,
            stage: info.stage,
            reason: info.reason,
            message: info.message,
            cut_from: info.cut_from,
            key: m.key().map(Bytes::copy_from_slice),
            value: m.payload().map(Bytes::copy_from_slice),
            timestamp: m.timestamp().to_millis().filter(|t| *t >= 0).map(Timestamp::from_millis),
        })
    }
}

/// Why the topic could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The client's error.
    #[error("reading dead letters of topic '{topic}': {source}")]
    Kafka {
        /// The topic.
        topic: String,
        /// The client's words.
        source: KafkaError,
    },
    /// The broker stopped answering.
    #[error(
        "reading dead letters of topic '{topic}': nothing came for {TIMEOUT:?}, and the end is not reached"
    )]
    Silence {
        /// The topic.
        topic: String,
    },
    /// There is no such topic.
    #[error("topic '{topic}' does not exist (kafka.dead_letter_topic)")]
    NoTopic {
        /// The topic.
        topic: String,
    },
}

/// Calls `each` for every dead letter up to the present end of every partition, until it returns false.
/// Returns how many records were passed over because they are no dead letters of ours.
pub fn scan(kafka: &Kafka, mut each: impl FnMut(Letter) -> bool) -> Result<u64, ScanError> {
    let topic = &kafka.dead_letter_topic;
    let fail = |source| ScanError::Kafka { topic: topic.clone(), source };
    let mut c = base(kafka, "dead-letters");
    // A group is needed to poll, but nothing is ever committed to it.
    own(&mut c, "group.id", format!("{}.dead-letters.list", kafka.group));
    own(&mut c, "enable.auto.commit", "false");
    own(&mut c, "isolation.level", "read_committed");
    own(&mut c, "enable.partition.eof", "true");
    let consumer: BaseConsumer = c.create().map_err(fail)?;
    let meta = consumer.fetch_metadata(Some(topic), TIMEOUT).map_err(fail)?;
    let partitions = meta.topics().first().map_or(&[][..], |t| t.partitions());
    if partitions.is_empty() {
        return Err(ScanError::NoTopic { topic: topic.clone() });
    }
    let mut list = TopicPartitionList::new();
    for p in partitions {
        list.add_partition_offset(topic, p.id(), KafkaOffset::Beginning).map_err(fail)?;
    }
    let mut unread: BTreeSet<i32> = partitions.iter().map(|p| p.id()).collect();
    consumer.assign(&list).map_err(fail)?;
    let (mut strange, mut last) = (0, std::time::Instant::now());
    while !unread.is_empty() {
        // An error is no progress: one that repeats for ever must not pass for an answer.
        if last.elapsed() > TIMEOUT {
            return Err(ScanError::Silence { topic: topic.clone() });
        }
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(m)) => match Letter::read(&m) {
                Some(letter) => {
                    if !each(letter) {
                        return Ok(strange);
                    }
                }
                None => strange += 1,
            },
            Some(Err(KafkaError::PartitionEOF(p))) => {
                unread.remove(&p);
            }
            Some(Err(KafkaError::MessageConsumption(e))) => {
                tracing::debug!(error = %e, "reading dead letters");
                continue;
            }
            Some(Err(e)) => return Err(fail(e)),
            None => continue,
        }
        last = std::time::Instant::now();
    }
    Ok(strange)
}
