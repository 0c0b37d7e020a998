//! Dead letters back to the topic they came from, once each.
//!
//! What has been requeued is remembered as committed offsets of the dead-letter topic, in one consumer group
//! per stage and reason (`<group>.requeue.<stage>.<reason>`): so a requeue of one reason today does not make
//! tomorrow's requeue of all forget or repeat anything. Records and offsets are one transaction.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    producer::Producer,
};

use super::{
    message::Outgoing,
    producer::{self, CALL, Sender},
};
use crate::{
    config::Config,
    record::NextOffset,
    source::{
        client::{base, own},
        dead_letters::Letter,
    },
};

/// Letters in one transaction at most.
const BATCH: usize = 1000;

/// What one stage and reason has behind it.
struct Memory {
    consumer: BaseConsumer,
    done: BTreeMap<i32, i64>,
    pending: BTreeMap<i32, NextOffset>,
}

/// Requeues letters; [`Requeue::finish`] commits the rest.
pub struct Requeue {
    config: Config,
    sender: Option<Sender>,
    memories: BTreeMap<(String, String), Memory>,
    open: usize,
    /// A transaction is open at the broker.
    begun: bool,
    /// Committed so far.
    pub requeued: usize,
}

fn clients(config: &Config) -> ClientConfig {
    let mut c = base(&config.kafka, "requeue");
    producer::settings(&mut c, config.decode.limits.max_record_bytes.max(1_000_000) + 65_536);
    // Fixed, so that a second requeue of the same group fences the first instead of doubling its work.
    own(&mut c, "transactional.id", format!("sentistream.{}.requeue", config.kafka.group));
    c
}

/// However it ends: a transaction left open would hold up every `read_committed` reader of the topic until the
/// broker's time-out.
impl Drop for Requeue {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.as_ref().filter(|_| self.begun)
            && let Err(error) = sender.abort()
        {
            tracing::warn!(%error, "the open transaction could not be aborted; the broker does it in a minute");
        }
    }
}

impl Requeue {
    /// Nothing is produced before the first [`Requeue::put`]; `dry` never produces.
    pub fn new(config: &Config, dry: bool) -> Result<Self, KafkaError> {
        let sender = if dry {
            None
        } else {
            let sender = Sender::new(&clients(config))?;
            sender.client().init_transactions(3 * CALL)?;
            Some(sender)
        };
        Ok(Self {
            config: config.clone(),
            sender,
            memories: BTreeMap::new(),
            open: 0,
            begun: false,
            requeued: 0,
        })
    }

    fn memory(&mut self, letter: &Letter) -> Result<&mut Memory, KafkaError> {
        let key = (letter.stage.clone(), letter.reason.clone());
        if !self.memories.contains_key(&key) {
            let mut c = base(&self.config.kafka, "requeue");
            own(&mut c, "group.id", format!("{}.requeue.{}.{}", self.config.kafka.group, key.0, key.1));
            own(&mut c, "enable.auto.commit", "false");
            own(&mut c, "isolation.level", "read_committed");
            let consumer: BaseConsumer = c.create()?;
            let topic = &*letter.at.partition.topic;
            let meta = consumer.fetch_metadata(Some(topic), CALL)?;
            let mut list = TopicPartitionList::new();
            for p in meta.topics().iter().flat_map(|t| t.partitions()) {
                list.add_partition(topic, p.id());
            }
            let list = consumer.committed_offsets(list, CALL)?;
            let done = list
                .elements()
                .iter()
                .filter_map(|e| match e.offset() {
                    KafkaOffset::Offset(o) => Some((e.partition(), o)),
                    _ => None,
                })
                .collect();
            self.memories.insert(key.clone(), Memory { consumer, done, pending: BTreeMap::new() });
        }
        Ok(self.memories.get_mut(&key).expect("inserted above"))
    }

    /// Takes the next letter; false when it had been requeued before. Letters of a partition must come in
    /// offset order.
    pub fn put(&mut self, letter: &Letter) -> Result<bool, KafkaError> {
        let (partition, offset) = (letter.at.partition.partition, letter.at.offset);
        let memory = self.memory(letter)?;
        if memory.done.get(&partition).is_some_and(|next| offset.0 < *next) {
            return Ok(false);
        }
        memory.pending.insert(partition, offset.next());
        if let Some(sender) = &mut self.sender {
            if !self.begun {
                sender.client().begin_transaction()?;
                self.begun = true;
            }
            let out = Outgoing {
                dead: false,
                key: letter.key.clone(),
                value: letter.value.clone(),
                headers: Vec::new(),
                timestamp: letter.timestamp,
            };
            sender.send(&letter.source.partition.topic, &out, CALL)?;
        }
        self.open += 1;
        if self.open >= BATCH {
            self.commit()?;
        }
        Ok(true)
    }

    fn commit(&mut self) -> Result<(), KafkaError> {
        if let Some(sender) = self.sender.as_mut().filter(|_| self.open > 0) {
            sender.settle(Duration::from_secs(60));
            if let Some(e) = sender.failure() {
                return Err(e);
            }
            for memory in self.memories.values_mut() {
                let mut list = TopicPartitionList::new();
                for (partition, next) in std::mem::take(&mut memory.pending) {
                    let at = KafkaOffset::Offset(next.0);
                    list.add_partition_offset(&self.config.kafka.dead_letter_topic, partition, at)?;
                }
                if let Some(group) = memory.consumer.group_metadata().filter(|_| list.count() > 0) {
                    sender.client().send_offsets_to_transaction(&list, &group, CALL)?;
                }
            }
            sender.client().commit_transaction(3 * CALL)?;
            self.begun = false;
        }
        self.requeued += std::mem::take(&mut self.open);
        Ok(())
    }

    /// Commits what is open; returns how many were requeued in all.
    pub fn finish(mut self) -> Result<usize, KafkaError> {
        self.commit()?;
        Ok(self.requeued)
    }
}
