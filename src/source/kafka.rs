//! The posts consumer: one thread that polls and never blocks on anything but the broker.
//!
//! Offsets are committed by the settler only. A record is stamped with its partition's epoch and queued;
//! when the queue stays full, partitions are paused and polling goes on for the sake of the group. A revoke
//! is a drain with a deadline; what is not committed by then is dropped and read again by the next owner.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset as KafkaOffset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance},
    error::KafkaError,
    message::BorrowedMessage,
};

use super::{
    client,
    queue::{Queue, Stamped},
};
use crate::{
    assignment::{Assignments, Rewind},
    config::{Config, Start},
    health::Health,
    record::{Offset, Position, RawRecord, Timestamp, TopicPartition},
    shutdown::Shutdown,
};

/// What the client reports, so that the stage above need not name its library.
pub type SourceError = KafkaError;

/// Role under which this source reports to [`Health`].
pub const ROLE: &str = "classify";

const POLL: Duration = Duration::from_millis(50);
/// `pause()` throws away what librdkafka has fetched ahead, so a short jam is waited out instead.
const FULL_BEFORE_PAUSE: Duration = Duration::from_millis(300);
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// The consumer type, shared with the sink for its group metadata.
pub type PostsConsumer = BaseConsumer<PostsContext>;

/// librdkafka's callbacks; all of them run on the poll thread.
pub struct PostsContext {
    assignments: Arc<Assignments>,
    queue: Arc<Queue>,
    health: Health,
    drain_limit: Duration,
    closing: AtomicBool,
    assigned: AtomicBool,
}

impl ClientContext for PostsContext {
    fn stats(&self, statistics: Statistics) {
        for (topic, t) in statistics.topics {
            for (partition, s) in t.partitions.into_iter().filter(|(n, _)| *n >= 0) {
                // A `read_committed` consumer gets no further than the last stable offset.
                let end = if s.ls_offset >= 0 { s.ls_offset } else { s.hi_offset };
                if s.app_offset >= 0
                    && end >= 0
                    && self.assignments.holds(&TopicPartition::new(&*topic, partition))
                {
                    set_lag(&topic, partition, (end - s.app_offset).max(0) as f64);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka consumer");
    }
}

impl ConsumerContext for PostsContext {
    fn pre_rebalance(&self, consumer: &PostsConsumer, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = partitions(list);
                tracing::info!(partitions = %names(&partitions), "partitions assigned");
                partitions.into_iter().for_each(|p| self.assignments.assign(p));
                self.assigned.store(true, Ordering::Release);
                self.health.ready(ROLE);
            }
            Rebalance::Revoke(list) => self.revoke(&partitions(list), consumer.assignment_lost()),
            Rebalance::Error(e) => {
                tracing::warn!(error = %e, "rebalance failed; all partitions are given up");
                self.revoke(&self.assignments.all(), true);
            }
        }
    }
}

impl PostsContext {
    fn revoke(&self, partitions: &[TopicPartition], lost: bool) {
        let closing = self.closing.load(Ordering::Acquire);
        let drained = if lost || closing {
            false
        } else {
            self.assignments.close(partitions);
            self.queue.drain().recv_timeout(self.drain_limit).is_ok()
        };
        self.assignments.remove(partitions);
        for p in partitions {
            // The next owner reports it from now on; a last value left standing would be summed with that.
            set_lag(&p.topic, p.partition, 0.0);
        }
        if lost {
            self.health.not_ready(ROLE, "the group took the partitions away; waiting for an assignment");
        }
        tracing::info!(partitions = %names(partitions), lost, drained, "partitions given up");
    }
}

fn set_lag(topic: &str, partition: i32, lag: f64) {
    let (topic, partition) = (topic.to_owned(), partition.to_string());
    metrics::gauge!("sentistream_lag", "topic" => topic, "partition" => partition).set(lag);
}

fn partitions(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|e| TopicPartition::new(e.topic(), e.partition())).collect()
}

fn names(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn list<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> TopicPartitionList {
    let mut l = TopicPartitionList::new();
    for p in partitions {
        l.add_partition(&p.topic, p.partition);
    }
    l
}

/// The consumer's settings: what delivery depends on goes over the user's raw properties.
fn settings(config: &Config) -> ClientConfig {
    let kafka = &config.kafka;
    let mut c = client::base(kafka, "posts");
    for (key, value) in [
        ("group.id", kafka.group.clone()),
        ("enable.auto.commit", "false".into()),
        ("enable.auto.offset.store", "false".into()),
        // So that the offsets fetched at an assignment wait for transactions that are being committed.
        ("isolation.level", "read_committed".into()),
        ("partition.assignment.strategy", "cooperative-sticky".into()),
        ("session.timeout.ms", kafka.session_timeout_ms.to_string()),
        ("max.poll.interval.ms", kafka.max_poll_interval_ms.to_string()),
        ("enable.partition.eof", "false".into()),
    ] {
        client::own(&mut c, key, value);
    }
    let start = match kafka.start {
        Start::Earliest => "earliest",
        Start::Latest => "latest",
    };
    client::own(&mut c, "auto.offset.reset", start);
    if !kafka.instance_id.is_empty() {
        client::own(&mut c, "group.instance.id", &*kafka.instance_id);
    }
    for (key, value) in [("statistics.interval.ms", "2000"), ("fetch.wait.max.ms", "100")] {
        if c.get(key).is_none() {
            c.set(key, value);
        }
    }
    c
}

/// A drain must end before the group or the broker loses patience.
fn drain_limit(config: &Config) -> Duration {
    let session = Duration::from_millis(config.kafka.session_timeout_ms.into()) * 4 / 5;
    let poll = Duration::from_millis(config.kafka.max_poll_interval_ms.into()) / 2;
    Duration::from_secs(config.shutdown.drain_s).min(session).min(poll)
}

/// The poll thread's state. [`PostsSource::run`] is its whole life.
pub struct PostsSource {
    consumer: Arc<PostsConsumer>,
    assignments: Arc<Assignments>,
    queue: Arc<Queue>,
    topic: Arc<str>,
    drain_limit: Duration,
    paused: bool,
    full_since: Option<Instant>,
    rewind_failures: u32,
}

impl PostsSource {
    /// Joins the group. Nothing is read before [`PostsSource::run`].
    pub fn subscribe(
        config: &Config,
        assignments: Arc<Assignments>,
        queue: Arc<Queue>,
        health: Health,
    ) -> Result<Self, KafkaError> {
        health.not_ready(ROLE, "waiting for a partition assignment");
        let drain_limit = drain_limit(config);
        let context = PostsContext {
            assignments: assignments.clone(),
            queue: queue.clone(),
            health,
            drain_limit,
            closing: AtomicBool::new(false),
            assigned: AtomicBool::new(false),
        };
        let consumer: PostsConsumer = settings(config).create_with_context(context)?;
        consumer.subscribe(&[&config.kafka.posts_topic])?;
        Ok(Self {
            consumer: Arc::new(consumer),
            assignments,
            queue,
            topic: config.kafka.posts_topic.as_str().into(),
            drain_limit: drain_limit.min(Duration::from_secs(config.shutdown.drain_s)),
            paused: false,
            full_since: None,
            rewind_failures: 0,
        })
    }

    /// The consumer, for the group metadata that a transaction needs.
    pub fn consumer(&self) -> Arc<PostsConsumer> {
        self.consumer.clone()
    }

    /// Polls until `shutdown` (then drains; tells whether the drain was in time) or until `stop`, which the
    /// stage sets when it cannot go on. The queue is closed on return.
    pub fn run(mut self, shutdown: &Shutdown, stop: &AtomicBool) -> Result<bool, KafkaError> {
        let outcome = loop {
            if stop.load(Ordering::Acquire) {
                break Ok(false);
            }
            if shutdown.is_set() {
                break Ok(self.drain());
            }
            self.rewind();
            if let Err(e) = self.flow() {
                break Err(e);
            }
            match self.consumer.poll(if self.paused { POLL / 2 } else { POLL }) {
                Some(Ok(m)) => enqueue(&m, &self.topic, &self.assignments, &self.queue),
                Some(Err(e @ KafkaError::MessageConsumptionFatal(_))) => break Err(e),
                Some(Err(error)) => self.complain(&error),
                None => {}
            }
        };
        self.consumer.context().closing.store(true, Ordering::Release);
        self.assignments.remove(&self.assignments.all());
        self.queue.close();
        outcome
    }

    fn drain(&self) -> bool {
        tracing::info!("shutting down: finishing what is in flight");
        self.consumer.context().health.not_ready(ROLE, "shutting down");
        self.assignments.close(&self.assignments.all());
        self.queue.drain().recv_timeout(self.drain_limit).is_ok()
    }

    /// Pauses when the queue has been full for a while, resumes at half.
    fn flow(&mut self) -> Result<(), KafkaError> {
        metrics::gauge!("sentistream_queue_depth", "queue" => "posts").set(self.queue.len() as f64);
        if self.paused {
            if self.queue.has_room() {
                self.consumer.resume(&self.consumer.assignment()?)?;
                self.paused = false;
                tracing::debug!("reading resumed");
            } else if self.consumer.context().assigned.swap(false, Ordering::AcqRel) {
                self.consumer.pause(&self.consumer.assignment()?)?;
            }
            return Ok(());
        }
        if !self.queue.is_full() || self.queue.wait_for_room(POLL) {
            self.full_since = None;
        } else if self.full_since.get_or_insert_with(Instant::now).elapsed() >= FULL_BEFORE_PAUSE {
            self.consumer.pause(&self.consumer.assignment()?)?;
            self.consumer.context().assigned.store(false, Ordering::Release);
            self.paused = true;
            self.full_since = None;
            tracing::debug!("the pipeline is behind: reading paused");
        }
        Ok(())
    }

    /// Seeks rewound partitions to what the group has committed. On failure they stay unread and the next
    /// round tries again.
    fn rewind(&mut self) {
        let rewinds = self.assignments.rewinds();
        if rewinds.is_empty() {
            return;
        }
        match self.seek(&rewinds) {
            Ok(()) => {
                rewinds.iter().for_each(|r| self.assignments.sought(r));
                self.rewind_failures = 0;
                self.consumer.context().health.ready(ROLE);
            }
            Err(error) => {
                self.rewind_failures += 1;
                tracing::warn!(%error, tries = self.rewind_failures, "cannot go back to the committed offsets yet");
                self.consumer.context().health.not_ready(ROLE, format!("rewinding: {error}"));
            }
        }
    }

    fn seek(&self, rewinds: &[Rewind]) -> Result<(), KafkaError> {
        let committed =
            self.consumer.committed_offsets(list(rewinds.iter().map(|r| &r.partition)), BROKER_TIMEOUT)?;
        let mut to = TopicPartitionList::new();
        for r in rewinds {
            let (topic, n) = (&*r.partition.topic, r.partition.partition);
            let offset = match committed.find_partition(topic, n) {
                Some(e) => {
                    e.error()?;
                    e.offset()
                }
                None => KafkaOffset::Invalid,
            };
            let offset = match (offset, r.first) {
                (at @ KafkaOffset::Offset(_), _) => at,
                (_, Some(first)) => KafkaOffset::Offset(first.0),
                (_, None) => continue,
            };
            to.add_partition_offset(topic, n, offset)?;
            tracing::info!(partition = %r.partition, ?offset, "reading again from the committed offset");
        }
        let sought = self.consumer.seek_partitions(to, BROKER_TIMEOUT)?;
        sought.elements().iter().try_for_each(|e| e.error())
    }

    fn complain(&self, error: &KafkaError) {
        tracing::warn!(%error, topic = %self.topic, "cannot read for now; librdkafka goes on trying");
        if self.assignments.all().is_empty() {
            self.consumer.context().health.not_ready(ROLE, error.to_string());
        }
    }
}

fn enqueue(m: &BorrowedMessage<'_>, topic: &Arc<str>, assignments: &Assignments, queue: &Queue) {
    let topic = if m.topic() == &**topic { topic.clone() } else { m.topic().into() };
    let position = Position {
        partition: TopicPartition { topic, partition: m.partition() },
        offset: Offset(m.offset()),
    };
    let Some(epoch) = assignments.stamp(&position.partition, position.offset) else { return };
    let record = RawRecord {
        position,
        key: m.key().map(Bytes::copy_from_slice),
        payload: m.payload().map(Bytes::copy_from_slice),
        timestamp: m.timestamp().to_millis().filter(|ms| *ms >= 0).map(Timestamp::from_millis),
    };
    metrics::counter!("sentistream_posts_in_total").increment(1);
    queue.push(Stamped { record, epoch });
}
