//! The labelled topic as the rollup reads it: a `read_committed` consumer group whose offsets are a hint,
//! because the chain of parts says where a partition goes on.
//!
//! Assignment: the partition is assigned paused, at any offset; then the machine finds its position and asks
//! for a seek. Records are passed on only after that seek has succeeded, so that neither a prefetched record
//! nor a failed seek can make the machine take a record too early.
//! Revoke: runs inside `poll` on the poll thread, seals within the drain deadline, commits, unassigns.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset as KafkaOffset, Statistics, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use super::client::{base, own};
use crate::{
    config::Kafka,
    record::{NextOffset, Offset},
    rollup::{
        roller::{Bounds, Command},
        stage::{Machine, StageError},
    },
    shutdown::Shutdown,
};

/// Longest wait for an answer of the broker on the poll thread.
const ANSWER: Duration = Duration::from_secs(10);
/// How often seals and retries are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Trouble that goes on is logged this often.
const TROUBLE_SAID_EVERY: Duration = Duration::from_secs(30);

fn kafka_error(what: impl Into<String>) -> impl FnOnce(KafkaError) -> StageError {
    let what = what.into();
    move |e| StageError::Kafka { what, message: e.to_string() }
}

fn client(kafka: &Kafka) -> ClientConfig {
    let mut c = base(kafka, "rollup");
    own(&mut c, "group.id", kafka.rollup_group());
    own(&mut c, "isolation.level", "read_committed");
    own(&mut c, "enable.auto.commit", "false");
    own(&mut c, "enable.auto.offset.store", "false");
    own(&mut c, "auto.offset.reset", "error");
    own(&mut c, "partition.assignment.strategy", "cooperative-sticky");
    own(&mut c, "session.timeout.ms", kafka.session_timeout_ms.to_string());
    own(&mut c, "max.poll.interval.ms", kafka.max_poll_interval_ms.max(kafka.session_timeout_ms).to_string());
    own(&mut c, "statistics.interval.ms", "5000");
    if !kafka.instance_id.is_empty() {
        own(&mut c, "group.instance.id", format!("{}.rollup", kafka.instance_id));
    }
    c
}

/// State that the rebalance callback and the poll loop share. Both run on the poll thread, never at once.
struct Context {
    topic: Arc<str>,
    shared: Mutex<Shared>,
    /// When trouble with the broker was last logged.
    trouble: Mutex<Option<Instant>>,
}

struct Shared {
    machine: Machine,
    /// Assigned partitions whose bounds are not known yet.
    new: VecDeque<i32>,
    /// Partitions that wait for a seek to succeed, and where to.
    seeks: BTreeMap<i32, NextOffset>,
    /// An error inside a callback, for the poll loop.
    failed: Option<StageError>,
}

impl Context {
    /// A panic inside the machine ends the stage anyway; the callback must not panic again while it unwinds.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        partitions.into_iter().for_each(|p| _ = list.add_partition(&self.topic, p));
        list
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, tpl: &mut TopicPartitionList) -> KafkaResult<()> {
        // Any offset that surely exists: the real one is known only after the chain was followed.
        tpl.set_all_offsets(KafkaOffset::Beginning)?;
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(tpl)?,
            _ => consumer.assign(tpl)?,
        }
        consumer.pause(tpl)?;
        let mut shared = self.lock();
        for e in tpl.elements() {
            tracing::info!(topic = e.topic(), partition = e.partition(), "partition assigned");
            shared.new.push_back(e.partition());
        }
        Ok(())
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, tpl: &TopicPartitionList) -> KafkaResult<()> {
        let partitions: Vec<i32> = tpl.elements().iter().map(|e| e.partition()).collect();
        let lost = consumer.assignment_lost();
        tracing::info!(?partitions, lost, "partitions revoked");
        let mut shared = self.lock();
        shared.new.retain(|p| !partitions.contains(p));
        shared.seeks.retain(|p, _| !partitions.contains(p));
        if lost {
            shared.machine.forget(&partitions);
        } else {
            let commit = |p, next| self.commit(consumer, p, next, CommitMode::Sync);
            if let Err(e) = shared.machine.give_up(&partitions, commit) {
                shared.failed.get_or_insert(e);
            }
        }
        drop(shared);
        // Its next owner reports it.
        partitions.iter().for_each(|p| self.lag(*p, 0));
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(tpl),
            _ => consumer.unassign(),
        }
    }

    fn lag(&self, partition: i32, records: i64) {
        let labels = [("topic", self.topic.to_string()), ("partition", partition.to_string())];
        metrics::gauge!("sentistream_lag", &labels).set(records as f64);
    }

    /// A commit that fails costs the next owner a look along the chain, nothing else.
    fn commit(&self, consumer: &BaseConsumer<Self>, partition: i32, next: NextOffset, mode: CommitMode) {
        let mut list = TopicPartitionList::new();
        let done = list
            .add_partition_offset(&self.topic, partition, KafkaOffset::Offset(next.0))
            .and_then(|()| consumer.commit(&list, mode));
        if let Err(e) = done {
            tracing::warn!(partition, %next, error = %e, "offset not committed; the chain of parts stands");
        }
    }
}

impl ClientContext for Context {
    fn stats(&self, s: Statistics) {
        let Some(topic) = s.topics.get(&*self.topic) else { return };
        // The statistics keep partitions that were ours once.
        let held = self.lock().machine.partitions();
        for (partition, p) in
            topic.partitions.iter().filter(|(id, p)| held.contains(id) && p.consumer_lag >= 0)
        {
            self.lag(*partition, p.consumer_lag);
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, tpl: &mut TopicPartitionList) {
        let done = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assigned(consumer, tpl),
            // A cooperative revoke may come for partitions that were never assigned to us; all steps bear it.
            _ => self.revoked(consumer, tpl),
        };
        if let Err(e) = done {
            self.lock().failed.get_or_insert(kafka_error("rebalance")(e));
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(e) = result {
            tracing::warn!(error = %e, "offset not committed; the chain of parts stands");
        }
    }
}

/// Reads the labelled topic into the machine until shutdown or a fatal error.
pub fn consume(kafka: &Kafka, machine: Machine, shutdown: &Shutdown) -> Result<(), StageError> {
    let topic: Arc<str> = kafka.labelled_topic.as_str().into();
    let shared = Shared { machine, new: VecDeque::new(), seeks: BTreeMap::new(), failed: None };
    let context = Context { topic: topic.clone(), shared: Mutex::new(shared), trouble: Mutex::new(None) };
    let consumer: BaseConsumer<Context> =
        client(kafka).create_with_context(context).map_err(kafka_error("create the rollup consumer"))?;
    consumer.subscribe(&[&topic]).map_err(kafka_error(format!("subscribe to {topic}")))?;
    let work = || -> Result<(), StageError> {
        let (mut next_tick, mut next_new) = (Instant::now(), Instant::now());
        while !shutdown.is_set() {
            poll(&consumer)?;
            if Instant::now() >= next_new && !assign_one(&consumer)? {
                next_new = Instant::now() + TICK;
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                consumer.context().lock().machine.tick()?;
            }
            obey(&consumer)?;
        }
        Ok(())
    };
    let worked = work();
    let context = consumer.context();
    let mut shared = context.lock();
    let held = shared.machine.partitions();
    let drained = match &worked {
        Ok(()) => {
            shared.machine.give_up(&held, |p, next| context.commit(&consumer, p, next, CommitMode::Sync))
        }
        Err(_) => {
            shared.machine.forget(&held);
            Ok(())
        }
    };
    shared.new.clear();
    drop(shared);
    // A consumer that is dropped with partitions may hang.
    let left = match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => {
            consumer.assignment().and_then(|held| consumer.incremental_unassign(&held))
        }
        _ => consumer.unassign(),
    };
    if let Err(e) = left {
        tracing::warn!(error = %e, "unassign before close");
    }
    worked.and(drained)
}

/// One poll, and whatever a callback left behind.
fn poll(consumer: &BaseConsumer<Context>) -> Result<(), StageError> {
    let polled = consumer.poll(Duration::from_millis(100));
    let mut shared = consumer.context().lock();
    if let Some(e) = shared.failed.take() {
        return Err(e);
    }
    match polled {
        None => Ok(()),
        Some(Ok(m)) if shared.seeks.contains_key(&m.partition()) => Ok(()),
        Some(Ok(m)) => shared.machine.record(m.partition(), Offset(m.offset()), m.payload(), Instant::now()),
        Some(Err(e)) => broker_error(consumer.context(), e),
    }
}

fn broker_error(context: &Context, e: KafkaError) -> Result<(), StageError> {
    let fatal = matches!(e, KafkaError::MessageConsumptionFatal(_));
    match e.rdkafka_error_code() {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
            Err(StageError::Kafka {
                what: format!("read {}", context.topic),
                message: format!(
                    "{e}: the records to read next were deleted by the topic's retention. On restart the stage \
                              goes on at the oldest record and reports what was lost"
                ),
            })
        }
        _ if fatal => Err(kafka_error(format!("read {}", context.topic))(e)),
        _ => {
            // librdkafka reconnects and retries by itself, and says the same twice a second meanwhile.
            let mut said = context.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            if said.is_none_or(|at: Instant| at.elapsed() > TROUBLE_SAID_EVERY) {
                *said = Some(Instant::now());
                tracing::warn!(topic = &*context.topic, error = %e, "broker trouble");
            }
            Ok(())
        }
    }
}

/// Asks the broker for the bounds of one newly assigned partition and hands it to the machine. One alone: broker
/// and store may each take their whole limit, and the group waits for the next poll. `false`: no answer, the
/// partition stays new.
fn assign_one(consumer: &BaseConsumer<Context>) -> Result<bool, StageError> {
    let context = consumer.context();
    let Some(partition) = context.lock().new.pop_front() else { return Ok(true) };
    match bounds(consumer, partition) {
        Ok(bounds) => context.lock().machine.assign(partition, bounds)?,
        Err(e) => {
            tracing::warn!(partition, error = %e, "cannot read the partition's offsets, trying again");
            context.lock().new.push_back(partition);
            return Ok(false);
        }
    }
    Ok(true)
}

fn bounds(consumer: &BaseConsumer<Context>, partition: i32) -> KafkaResult<Bounds> {
    let context = consumer.context();
    let committed = consumer.committed_offsets(context.list([partition]), ANSWER)?;
    let committed = match committed.find_partition(&context.topic, partition) {
        Some(e) => {
            e.error()?;
            match e.offset() {
                KafkaOffset::Offset(n) => Some(NextOffset(n)),
                _ => None,
            }
        }
        None => None,
    };
    let (low, high) = consumer.fetch_watermarks(&context.topic, partition, ANSWER)?;
    Ok(Bounds { committed, low: NextOffset(low), high: NextOffset(high) })
}

/// Carries out the machine's commands, and seeks that did not succeed before.
fn obey(consumer: &BaseConsumer<Context>) -> Result<(), StageError> {
    let context = consumer.context();
    let mut shared = context.lock();
    for c in shared.machine.commands() {
        match c {
            Command::Commit { partition, next } => {
                context.commit(consumer, partition, next, CommitMode::Async)
            }
            Command::Pause { partition } => {
                shared.seeks.remove(&partition);
                let paused = consumer.pause(&context.list([partition]));
                paused.map_err(kafka_error(format!("pause {}[{partition}]", context.topic)))?;
            }
            Command::Start { partition, at } => {
                shared.seeks.insert(partition, at);
            }
            Command::Bounds { partition } => shared.new.push_back(partition),
        }
    }
    if shared.seeks.is_empty() {
        return Ok(());
    }
    let seeks = std::mem::take(&mut shared.seeks);
    for (partition, at) in seeks {
        // Fails while the partition's first fetch state is still being set up: the next round tries again.
        let list = context.list([partition]);
        let started = consumer
            .seek(&context.topic, partition, KafkaOffset::Offset(at.0), ANSWER)
            .and_then(|()| consumer.resume(&list));
        if let Err(e) = started {
            tracing::debug!(partition, %at, error = %e, "seek not possible yet");
            shared.seeks.insert(partition, at);
        } else {
            tracing::info!(topic = &*context.topic, partition, %at, "reading on");
        }
    }
    Ok(())
}
