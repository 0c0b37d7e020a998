//! Settling: classified windows in, transactions out. The protocol and nothing else: no thread, no clock,
//! no client; `now` is an argument and [`Output`] does the talking, so that a test can fail every step.
//!
//! A transaction holds whole runs of offsets per partition, because windows come in number order and a
//! window holds consecutive records. When it cannot be committed, all of its partitions are rewound: their
//! epoch changes, so whatever follows in flight is dropped, and the source reads on from the committed
//! offset. Hence the offsets committed are always a contiguous prefix.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    assignment::{Assignments, Epoch},
    record::{NextOffset, Offset, Timestamp, TopicPartition},
    window::{Settled, SettledWindow},
};

mod tally;
#[cfg(test)]
mod tests;

pub use tally::Tally;

/// Epoch of every partition that a window holds records of.
pub type Stamps = HashMap<TopicPartition, Epoch>;

/// Offsets to commit.
pub type NextOffsets = BTreeMap<TopicPartition, NextOffset>;

/// What can be done about a failure. Decided once, where the client's error is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call may be made again.
    Retry,
    /// The transaction is lost; abort it and begin again.
    Abortable,
    /// This producer must not go on: fenced, or broken.
    Fatal,
    /// It may have happened or not; only a fresh producer under the same name can settle it.
    Unknown,
}

/// A failed step.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{step}: {message}")]
pub struct Fault {
    /// Which step.
    pub step: &'static str,
    /// What can be done.
    pub class: Class,
    /// The client's words.
    pub message: String,
}

/// Where settled records go: one transaction at a time.
pub trait Output {
    /// Opens a transaction.
    fn begin(&mut self) -> Result<(), Fault>;
    /// Adds the labelled record or the dead letter to it.
    fn send(&mut self, item: &Settled) -> Result<(), Fault>;
    /// Keeps the consumer's membership of its group as it is now, for all the [`Output::send_offsets`] of this
    /// cut. Called before the epochs are judged: a membership of later would vouch for partitions that were
    /// lost in between, and the broker could not tell.
    fn hold_group(&mut self) -> Result<(), Fault>;
    /// Adds the offsets to it, as the member of the group that was held.
    fn send_offsets(&mut self, next: &NextOffsets) -> Result<(), Fault>;
    /// Commits it.
    fn commit(&mut self) -> Result<(), Fault>;
    /// Aborts it.
    fn abort(&mut self) -> Result<(), Fault>;
    /// Starts afresh under the same name. On return nothing of before is undecided any more.
    fn reset(&mut self) -> Result<(), Fault>;
    /// Back-off before try number `attempt`, counted from 1.
    fn wait(&mut self, attempt: u32);
}

impl<O: Output + ?Sized> Output for Box<O> {
    fn begin(&mut self) -> Result<(), Fault> {
        (**self).begin()
    }

    fn send(&mut self, item: &Settled) -> Result<(), Fault> {
        (**self).send(item)
    }

    fn hold_group(&mut self) -> Result<(), Fault> {
        (**self).hold_group()
    }

    fn send_offsets(&mut self, next: &NextOffsets) -> Result<(), Fault> {
        (**self).send_offsets(next)
    }

    fn commit(&mut self) -> Result<(), Fault> {
        (**self).commit()
    }

    fn abort(&mut self) -> Result<(), Fault> {
        (**self).abort()
    }

    fn reset(&mut self) -> Result<(), Fault> {
        (**self).reset()
    }

    fn wait(&mut self, attempt: u32) {
        (**self).wait(attempt);
    }
}

/// When to cut, and how often to try.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// A transaction is cut at this age …
    pub interval: Duration,
    /// … or at this many records.
    pub max_records: usize,
    /// Tries of one step that may be repeated.
    pub attempts: u32,
    /// Transactions lost in a row before the stage stops.
    pub max_aborts: u32,
}

/// Why settling ended for good. Nothing that is not committed counts as done.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// Another producer has taken the name over, or the client is broken.
    #[error("the producer cannot go on: {0}")]
    Fatal(Fault),
    /// Transactions fail one after the other.
    #[error("{aborts} transactions in a row were lost, the last one at {last}")]
    NoProgress {
        /// How many.
        aborts: u32,
        /// The last failure.
        last: Fault,
    },
    /// A bug: offsets of one partition did not come in order.
    #[error(
        "{partition}: offset {offset} came after next offset {next}: records left the pipeline out of order"
    )]
    OutOfOrder {
        /// Where.
        partition: TopicPartition,
        /// What came.
        offset: Offset,
        /// What was expected or later.
        next: NextOffset,
    },
    /// A bug: a record of no known epoch. Passing over it would lose it with the next commit.
    #[error(
        "{partition}: offset {offset} came in window {window}, which was announced without its partition"
    )]
    Unannounced {
        /// Where.
        partition: TopicPartition,
        /// What came.
        offset: Offset,
        /// Number of the window.
        window: u64,
    },
}

#[derive(Debug)]
struct Open {
    since: Instant,
    begun: bool,
    records: usize,
    next: BTreeMap<TopicPartition, (Epoch, NextOffset)>,
    tally: Tally,
}

impl Open {
    fn new(since: Instant) -> Self {
        Self { since, begun: false, records: 0, next: BTreeMap::new(), tally: Tally::default() }
    }
}

/// See the module.
pub struct Settler<O> {
    output: O,
    assignments: Arc<Assignments>,
    policy: Policy,
    open: Option<Open>,
    aborts: u32,
    over: Arc<AtomicBool>,
}

impl<O: Output> Settler<O> {
    /// A settler without an open transaction. Once `over` is set, when the source has ended and holds no
    /// partition, nothing is repeated any more: what is undecided is left to the next producer of the name.
    pub fn new(output: O, assignments: Arc<Assignments>, policy: Policy, over: Arc<AtomicBool>) -> Self {
        Self { output, assignments, policy, open: None, aborts: 0, over }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Takes the next window. Records of partitions that were revoked or rewound since are dropped.
    pub fn settle(&mut self, window: &SettledWindow, stamps: &Stamps, now: Instant) -> Result<(), Stop> {
        for item in &window.items {
            let position = &item.record().position;
            let Some(&epoch) = stamps.get(&position.partition) else {
                let (partition, offset) = (position.partition.clone(), position.offset);
                return Err(Stop::Unannounced { partition, offset, window: window.seq });
            };
            if !self.assignments.may_deliver(&position.partition, epoch) {
                continue;
            }
            let before = self.open.as_ref().and_then(|o| o.next.get(&position.partition));
            if before.is_some_and(|(of, _)| *of != epoch) {
                // Revoked and assigned again while the transaction was open: its half of before is void.
                self.give_up("a partition was assigned anew")?;
            }
            self.settle_one(item, epoch, now)?;
        }
        Ok(())
    }

    fn settle_one(&mut self, item: &Settled, epoch: Epoch, now: Instant) -> Result<(), Stop> {
        let position = &item.record().position;
        let open = self.open.get_or_insert_with(|| Open::new(now));
        let next =
            open.next.entry(position.partition.clone()).or_insert((epoch, NextOffset(position.offset.0)));
        if position.offset.0 < next.1.0 {
            let (partition, offset) = (position.partition.clone(), position.offset);
            return Err(Stop::OutOfOrder { partition, offset, next: next.1 });
        }
        // Before anything can fail, so that a failure rewinds this partition too.
        *next = (epoch, position.offset.next());
        open.records += 1;
        open.tally.add(item);
        let begun = std::mem::replace(&mut open.begun, true);
        if !begun && let Err(fault) = self.retry(Class::Abortable, O::begin) {
            return self.recover(fault);
        }
        if !matches!(item, Settled::Skipped { .. })
            && let Err(fault) = self.retry(Class::Abortable, |o| o.send(item))
        {
            return self.recover(fault);
        }
        if self.open.as_ref().is_some_and(|o| o.records >= self.policy.max_records) {
            self.cut()
        } else {
            Ok(())
        }
    }

    /// When the open transaction is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.as_ref().map(|o| o.since + self.policy.interval)
    }

    /// Commits the open transaction if it is old enough.
    pub fn cut_if_due(&mut self, now: Instant) -> Result<(), Stop> {
        if self.deadline().is_some_and(|due| now >= due) { self.cut() } else { Ok(()) }
    }

    /// Commits the open transaction, if there is one. One that holds work of a partition that is not ours
    /// any more is aborted instead.
    pub fn cut(&mut self) -> Result<(), Stop> {
        if self.open.is_none() {
            return Ok(());
        }
        let held = self.output.hold_group();
        let Some(open) = &self.open else { return Ok(()) };
        if open.next.iter().any(|(p, (epoch, _))| !self.assignments.may_deliver(p, *epoch)) {
            return self.give_up("a partition was revoked before its work was committed");
        }
        let next: NextOffsets = open.next.iter().map(|(p, (_, next))| (p.clone(), *next)).collect();
        let committed = held
            .and_then(|()| self.retry(Class::Abortable, |o| o.send_offsets(&next)))
            .and_then(|()| self.retry(Class::Unknown, O::commit));
        match committed {
            Ok(()) => {
                self.aborts = 0;
                metrics::counter!("sentistream_transactions_total", "outcome" => "committed").increment(1);
                if let Some(open) = self.open.take() {
                    open.tally.publish(Timestamp::from_millis(chrono::Utc::now().timestamp_millis()));
                }
                Ok(())
            }
            Err(fault) => self.recover(fault),
        }
    }

    /// Repeats a step while it may be; a step that never succeeds fails as `exhausted`.
    fn retry(&mut self, exhausted: Class, step: impl Fn(&mut O) -> Result<(), Fault>) -> Result<(), Fault> {
        let mut attempt = 1;
        loop {
            match step(&mut self.output) {
                Err(f) if f.class == Class::Retry && attempt < self.policy.attempts && !self.is_over() => {
                    tracing::debug!(attempt, fault = %f, "trying again");
                    self.output.wait(attempt);
                    attempt += 1;
                }
                Err(f) if f.class == Class::Retry => return Err(Fault { class: exhausted, ..f }),
                other => return other,
            }
        }
    }

    /// Not a failure: the transaction is void because its partitions moved on.
    fn give_up(&mut self, why: &'static str) -> Result<(), Stop> {
        tracing::info!(why, "transaction aborted");
        self.void(Class::Abortable)
    }

    fn recover(&mut self, fault: Fault) -> Result<(), Stop> {
        if fault.class == Class::Fatal {
            return Err(Stop::Fatal(fault));
        }
        self.aborts += 1;
        tracing::warn!(%fault, in_a_row = self.aborts, "transaction lost; reading on from the committed offsets");
        self.void(fault.class)?;
        if self.is_over() {
            return Ok(());
        }
        if self.aborts >= self.policy.max_aborts {
            return Err(Stop::NoProgress { aborts: self.aborts, last: fault });
        }
        self.output.wait(self.aborts);
        Ok(())
    }

    /// Undoes the open transaction, then rewinds its partitions: only once nothing of it is undecided may
    /// the source ask for the committed offsets.
    fn void(&mut self, class: Class) -> Result<(), Stop> {
        let undone = if class == Class::Unknown { None } else { Some(self.retry(Class::Unknown, O::abort)) };
        match undone {
            Some(Ok(())) => {
                metrics::counter!("sentistream_transactions_total", "outcome" => "aborted").increment(1)
            }
            Some(Err(fault)) if fault.class == Class::Fatal => return Err(Stop::Fatal(fault)),
            // Nobody will begin again here; a reset would only hold up the end.
            _ if self.is_over() => {
                tracing::warn!(
                    "a transaction is left open at the end; the next producer or its timeout aborts it"
                );
            }
            _ => {
                self.retry(Class::Fatal, O::reset).map_err(Stop::Fatal)?;
                metrics::counter!("sentistream_transactions_total", "outcome" => "reset").increment(1);
            }
        }
        for (partition, (epoch, _)) in self.open.take().into_iter().flat_map(|o| o.next) {
            self.assignments.rewind(&partition, epoch);
        }
        Ok(())
    }
}
