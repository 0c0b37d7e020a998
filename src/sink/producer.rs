//! An idempotent producer with its delivery reports counted, and the one place that classifies its errors.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Statistics,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
};

use super::message::Outgoing;
use crate::{
    settle::{Class, Fault},
    source::client::own,
};

/// Longest wait for one call to the broker.
pub const CALL: Duration = Duration::from_secs(10);

/// Counts deliveries and keeps the first failure.
#[derive(Debug, Default)]
pub struct Reports {
    delivered: AtomicU64,
    too_large: AtomicBool,
    failure: Mutex<Option<KafkaError>>,
}

/// Shared between the producer's callbacks and [`Sender`].
#[derive(Clone, Debug, Default)]
pub struct ReportsContext(Arc<Reports>);

impl ClientContext for ReportsContext {
    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka producer");
    }
}

impl ProducerContext for ReportsContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.0.delivered.fetch_add(1, Ordering::Relaxed);
            }
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(Code::MessageSizeTooLarge) {
                    self.0.too_large.store(true, Ordering::Relaxed);
                }
                let mut failure = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// A producer that waits instead of failing when its own queue is full.
pub struct Sender {
    producer: BaseProducer<ReportsContext>,
    reports: Arc<Reports>,
    sent: u64,
}

impl Sender {
    /// Connects in the background.
    pub fn new(config: &ClientConfig) -> Result<Self, KafkaError> {
        let context = ReportsContext::default();
        let reports = context.0.clone();
        Ok(Self { producer: config.create_with_context(context)?, reports, sent: 0 })
    }

    /// The client itself, for transactions.
    pub fn client(&self) -> &BaseProducer<ReportsContext> {
        &self.producer
    }

    /// Produces to `topic`. A full queue is waited out, at most `limit`.
    pub fn send(&mut self, topic: &str, out: &Outgoing, limit: Duration) -> Result<(), KafkaError> {
        let until = Instant::now() + limit;
        let mut headers = OwnedHeaders::new_with_capacity(out.headers.len());
        for (key, value) in &out.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        record.key = out.key.as_deref();
        record.payload = out.value.as_deref();
        record.timestamp = out.timestamp.map(|t| t.0.div_euclid(1000));
        loop {
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(Code::QueueFull), back)) if Instant::now() < until => {
                    self.producer.poll(Duration::from_millis(5));
                    record = back;
                }
                Err((e, _)) => return Err(e),
            }
        }
        self.sent += 1;
        if self.sent.is_multiple_of(256) {
            self.producer.poll(Duration::ZERO);
        }
        Ok(())
    }

    /// Waits until every message has its report, at most `limit`; tells whether all have. The client's own
    /// `flush` sleeps in steps of 100 ms, which would be the latency of every transaction.
    pub fn settle(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= until {
                return false;
            }
            self.producer.poll(Duration::from_millis(1));
        }
        true
    }

    /// Aborts the transaction. Only the abort itself may throw away what has not left yet (a purge of our own
    /// leaves a gap in the sequence numbers), and it waits for the reports, which are fetched beside it.
    pub fn abort(&self) -> Result<(), KafkaError> {
        let over = AtomicBool::new(false);
        let aborted = thread::scope(|s| {
            s.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    self.producer.poll(Duration::from_millis(2));
                }
            });
            let aborted = self.producer.abort_transaction(CALL);
            over.store(true, Ordering::Release);
            aborted
        });
        // The thrown away ones are no failures of the next transaction.
        if aborted.is_ok() {
            self.settle(CALL);
            self.failure();
        }
        aborted
    }

    /// Takes the first failed delivery since the last call.
    pub fn failure(&self) -> Option<KafkaError> {
        self.reports.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a delivery failed because the broker takes no message of that size. Stays set.
    pub fn refused_as_too_large(&self) -> bool {
        self.reports.too_large.load(Ordering::Relaxed)
    }

    /// Messages acknowledged so far.
    pub fn delivered(&self) -> u64 {
        self.reports.delivered.load(Ordering::Relaxed)
    }
}

/// Settings on top of the user's that every producer of ours has.
pub fn settings(c: &mut ClientConfig, max_message_bytes: usize) {
    own(c, "enable.idempotence", "true");
    for (key, value) in [
        ("linger.ms", "5".to_owned()),
        ("compression.type", "zstd".to_owned()),
        // The Java client's, so that a key lands where other producers put it.
        ("partitioner", "murmur2_random".to_owned()),
        ("message.max.bytes", max_message_bytes.to_string()),
        // As many as librdkafka takes by default, but waiting for room is cheap: bound the memory instead.
        ("queue.buffering.max.kbytes", "131072".to_owned()),
    ] {
        if c.get(key).is_none() {
            c.set(key, value);
        }
    }
}

/// Says what can be done about an error at `step`.
pub fn fault(step: &'static str, error: &KafkaError) -> Fault {
    let by_code = |code| match code {
        Code::Fatal | Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Class::Fatal,
        Code::TransactionalIdAuthorizationFailed | Code::ClusterAuthorizationFailed => Class::Fatal,
        Code::OperationTimedOut | Code::RequestTimedOut | Code::BrokerTransportFailure => Class::Retry,
        Code::CoordinatorLoadInProgress | Code::CoordinatorNotAvailable | Code::NotCoordinator => {
            Class::Retry
        }
        Code::ConcurrentTransactions | Code::AllBrokersDown | Code::NotEnoughReplicas => Class::Retry,
        _ => Class::Abortable,
    };
    let class = match error {
        KafkaError::Transaction(e) if e.is_fatal() => Class::Fatal,
        KafkaError::Transaction(e) if e.txn_requires_abort() => Class::Abortable,
        KafkaError::Transaction(e) if e.is_retriable() => Class::Retry,
        // The client lost track of the transaction's state: a fresh one settles it.
        KafkaError::Transaction(e) if e.code() == Code::State => Class::Unknown,
        other => other.rdkafka_error_code().map_or(Class::Abortable, by_code),
    };
    Fault { step, class, message: error.to_string() }
}

/// Sleeps before try number `attempt` (from 1): 100 ms, doubled each time up to 5 s, less up to half of it
/// by chance, so that instances do not come back in step.
pub fn back_off(attempt: u32) {
    let full = Duration::from_millis(100 << attempt.saturating_sub(1).min(6)).min(Duration::from_secs(5));
    thread::sleep(full.mul_f64(rand::random_range(0.5..=1.0)));
}
