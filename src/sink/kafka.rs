//! The two ways out of the classify stage: Kafka transactions, or at least once.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    consumer::{CommitMode, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, RDKafkaErrorCode as Code},
    producer::Producer,
};

use super::{
    message::Outgoing,
    producer::{self, CALL, Sender, back_off, fault},
};
use crate::{
    config::{Config, DeliveryMode},
    settle::{Class, Fault, NextOffsets, Output},
    source::{
        client::{base, own},
        kafka::PostsConsumer,
    },
    window::Settled,
};

/// Largest message where the user has not set `message.max.bytes`: under what brokers take by default
/// (1 048 588 bytes with their framing).
const MAX_BYTES: usize = 1_000_000;
/// A topic that refuses messages of this size is not made for posts.
const MIN_BYTES: usize = 16_384;

/// What both outputs share: a producer, the topics, and the consumer whose offsets are committed.
struct Link {
    sender: Option<Sender>,
    settings: ClientConfig,
    consumer: Arc<PostsConsumer>,
    labelled_topic: String,
    dead_letter_topic: String,
    group: String,
    max_bytes: usize,
    /// A message not acknowledged by then has failed, so neither waits longer.
    patience: Duration,
}

impl Link {
    fn new(config: &Config, consumer: Arc<PostsConsumer>) -> Self {
        let mut settings = base(&config.kafka, "labelled");
        producer::settings(&mut settings, MAX_BYTES);
        let max_bytes = settings.get("message.max.bytes").and_then(|v| v.parse().ok()).unwrap_or(MAX_BYTES);
        Self {
            sender: None,
            settings,
            consumer,
            labelled_topic: config.kafka.labelled_topic.clone(),
            dead_letter_topic: config.kafka.dead_letter_topic.clone(),
            group: config.kafka.group.clone(),
            max_bytes,
            patience: Duration::from_millis(config.delivery.transaction_timeout_ms.into()),
        }
    }

    fn sender(&mut self, step: &'static str) -> Result<&mut Sender, Fault> {
        let gone = || Fault { step, class: Class::Unknown, message: "there is no producer".to_owned() };
        self.sender.as_mut().ok_or_else(gone)
    }

    fn send(&mut self, item: &Settled) -> Result<(), Fault> {
        let out = match item {
            Settled::Labelled { record, labelled } => {
                Outgoing::labelled(record, labelled, &self.group, self.max_bytes)
            }
            Settled::Dead(letter) => Outgoing::dead(letter, &self.group, self.max_bytes),
            Settled::Skipped { .. } => return Ok(()),
        };
        let topic = if out.dead { self.dead_letter_topic.clone() } else { self.labelled_topic.clone() };
        let patience = self.patience;
        self.sender("produce")?.send(&topic, &out, patience).map_err(|e| fault("produce", &e))
    }

    /// A topic may take less than we send (`max.message.bytes`), and would refuse the same again for ever. So
    /// after such a refusal the next producer sends half as much at most, in a message and in a batch: what is
    /// larger becomes a dead letter that is cut. The fault asks for that producer.
    fn shrink(&mut self) -> Result<(), Fault> {
        let refused = self.sender.as_ref().is_some_and(Sender::refused_as_too_large);
        if !refused || self.max_bytes / 2 < MIN_BYTES {
            return Ok(());
        }
        let before = self.max_bytes;
        self.max_bytes /= 2;
        self.settings.set("message.max.bytes", self.max_bytes.to_string());
        tracing::warn!(
            before,
            now = self.max_bytes,
            "a topic takes smaller messages than message.max.bytes: larger posts become dead letters; \
             raise max.message.bytes of the labelled and dead-letter topics"
        );
        let message = "a message was refused as too large".to_owned();
        Err(Fault { step: "abort", class: Class::Unknown, message })
    }

    /// Every message has its report, and none failed.
    fn delivered(&mut self) -> Result<(), Fault> {
        let patience = self.patience;
        let sender = self.sender("deliver")?;
        if !sender.settle(patience) {
            let message = format!("not acknowledged within {patience:?}");
            return Err(Fault { step: "deliver", class: Class::Abortable, message });
        }
        match sender.failure() {
            None => Ok(()),
            Some(e) => {
                let f = fault("deliver", &e);
                // Producing the same message again inside this transaction is what librdkafka did already.
                Err(Fault { class: if f.class == Class::Retry { Class::Abortable } else { f.class }, ..f })
            }
        }
    }
}

fn offsets(next: &NextOffsets) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(next.len());
    for (p, offset) in next {
        list.add_partition_offset(&p.topic, p.partition, KafkaOffset::Offset(offset.0))?;
    }
    Ok(list)
}

/// `transactional.id`: fixed for an instance with a name, else one that no other process has.
pub fn transactional_id(config: &Config) -> String {
    let (group, name) = (&config.kafka.group, &config.kafka.instance_id);
    if name.is_empty() {
        format!("sentistream.{group}.{}.{:016x}", std::process::id(), rand::random::<u64>())
    } else {
        format!("sentistream.{group}.{name}")
    }
}

/// Exactly once: labelled records, dead letters and offsets in one Kafka transaction.
pub struct Transactional {
    link: Link,
    begun: bool,
    /// A producer whose start has taken too long for one call: the next goes on with it.
    starting: Option<Sender>,
    /// Held by [`Output::hold_group`].
    member: Option<ConsumerGroupMetadata>,
}

impl Transactional {
    /// An output whose producer is made, and whose predecessors of the same name are fenced, by
    /// [`Output::reset`], which must be called first.
    pub fn new(config: &Config, consumer: Arc<PostsConsumer>) -> Self {
        let mut link = Link::new(config, consumer);
        own(&mut link.settings, "transactional.id", transactional_id(config));
        own(&mut link.settings, "transaction.timeout.ms", config.delivery.transaction_timeout_ms.to_string());
        Self { link, begun: false, starting: None, member: None }
    }
}

impl Output for Transactional {
    fn begin(&mut self) -> Result<(), Fault> {
        self.link.sender("begin")?.client().begin_transaction().map_err(|e| fault("begin", &e))?;
        self.begun = true;
        Ok(())
    }

    fn send(&mut self, item: &Settled) -> Result<(), Fault> {
        self.link.send(item)
    }

    fn hold_group(&mut self) -> Result<(), Fault> {
        let step = "hold the group";
        self.member = self.link.consumer.group_metadata();
        if self.member.is_none() {
            let message = "the consumer has no group".to_owned();
            return Err(Fault { step, class: Class::Fatal, message });
        }
        // A client that was thrown out is no member any more and says so before its revoke callback has run;
        // the broker takes offsets of no member at all without a look at the generation.
        if self.link.consumer.assignment_lost() {
            let message = "the group has taken the partitions away".to_owned();
            return Err(Fault { step, class: Class::Abortable, message });
        }
        Ok(())
    }

    fn send_offsets(&mut self, next: &NextOffsets) -> Result<(), Fault> {
        let step = "send offsets";
        let list = offsets(next).map_err(|e| fault(step, &e))?;
        let Some(member) = &self.member else {
            let message = "no membership of the group is held".to_owned();
            return Err(Fault { step, class: Class::Abortable, message });
        };
        let sender = self.link.sender(step)?;
        sender.client().send_offsets_to_transaction(&list, member, CALL).map_err(|e| fault(step, &e))
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.link.delivered()?;
        self.link.sender("commit")?.client().commit_transaction(CALL).map_err(|e| fault("commit", &e))?;
        self.begun = false;
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Fault> {
        if self.begun {
            self.link.sender("abort")?.abort().map_err(|e| fault("abort", &e))?;
            self.begun = false;
        }
        self.link.shrink()
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.begun = false;
        self.link.sender = None;
        let sender = match self.starting.take() {
            Some(sender) => sender,
            None => Sender::new(&self.link.settings)
                .map_err(|e| Fault { class: Class::Fatal, ..fault("create", &e) })?,
        };
        match sender.client().init_transactions(CALL).map_err(|e| fault("init transactions", &e)) {
            Ok(()) => {
                self.link.sender = Some(sender);
                Ok(())
            }
            Err(fault) => {
                self.starting = Some(sender).filter(|_| fault.class == Class::Retry);
                Err(fault)
            }
        }
    }

    fn wait(&mut self, attempt: u32) {
        back_off(attempt);
    }
}

/// At least once: outputs first, and only once they are acknowledged the offsets.
pub struct AtLeastOnce {
    link: Link,
    next: NextOffsets,
}

impl AtLeastOnce {
    /// An output whose producer is made by [`Output::reset`], which must be called first.
    pub fn new(config: &Config, consumer: Arc<PostsConsumer>) -> Self {
        let mut link = Link::new(config, consumer);
        if link.settings.get("message.timeout.ms").is_none() {
            link.settings.set("message.timeout.ms", config.delivery.transaction_timeout_ms.to_string());
        }
        Self { link, next: NextOffsets::new() }
    }
}

impl Output for AtLeastOnce {
    fn begin(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn send(&mut self, item: &Settled) -> Result<(), Fault> {
        self.link.send(item)
    }

    fn hold_group(&mut self) -> Result<(), Fault> {
        // The commit is the consumer's own; that it can come twice is in the mode's name.
        Ok(())
    }

    fn send_offsets(&mut self, next: &NextOffsets) -> Result<(), Fault> {
        self.next.clone_from(next);
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.link.delivered()?;
        let list = offsets(&self.next).map_err(|e| fault("commit", &e))?;
        match self.link.consumer.commit(&list, CommitMode::Sync) {
            Ok(()) | Err(KafkaError::ConsumerCommit(Code::NoOffset)) => Ok(()),
            Err(e) => Err(fault("commit", &e)),
        }
    }

    fn abort(&mut self) -> Result<(), Fault> {
        // What is on its way may arrive; it will come a second time, as this mode allows.
        let patience = self.link.patience;
        let sender = self.link.sender("abort")?;
        sender.settle(patience);
        sender.failure();
        self.link.shrink()
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.link.sender = None;
        let sender = Sender::new(&self.link.settings)
            .map_err(|e| Fault { class: Class::Fatal, ..fault("create", &e) })?;
        self.link.sender = Some(sender);
        Ok(())
    }

    fn wait(&mut self, attempt: u32) {
        back_off(attempt);
    }
}

/// The output that `delivery.mode` asks for.
pub fn output(config: &Config, consumer: Arc<PostsConsumer>) -> Box<dyn Output> {
    match config.delivery.mode {
        DeliveryMode::ExactlyOnce => Box::new(Transactional::new(config, consumer)),
        DeliveryMode::AtLeastOnce => Box::new(AtLeastOnce::new(config, consumer)),
    }
}
