//! Which partitions are ours, and since when: an **epoch** per assignment. Work carries the epoch it was
//! read under, and work of an earlier one is dropped, never produced.
//!
//! A partition goes `open → closing → gone` when it is revoked, and `open → rewinding → open` under a new
//! epoch when a transaction that held its records was aborted. The poll thread alone assigns, seeks and
//! removes; the settler alone asks for a rewind; neither ever waits for the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;

use crate::record::{Offset, TopicPartition};

/// Number of an assignment (or of a rewind within it); never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Read, classified, delivered.
    Open,
    /// Nothing is read until the consumer stands at the committed offset again.
    Rewinding,
    /// Work in flight may still be delivered; nothing new begins.
    Closing,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: Epoch,
    phase: Phase,
    first: Option<Offset>,
}

/// The table of epochs. Shared by the poll thread, the windower and the settler.
#[derive(Debug, Default)]
pub struct Assignments {
    held: DashMap<TopicPartition, Held>,
    epochs: AtomicU64,
    rewinding: AtomicBool,
}

/// A partition that waits for its consumer to seek.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewind {
    /// The partition.
    pub partition: TopicPartition,
    /// The epoch that begins once the seek is done.
    pub epoch: Epoch,
    /// The first record read under this assignment: where to go if the group has committed nothing.
    pub first: Option<Offset>,
}

impl Assignments {
    fn next_epoch(&self) -> Epoch {
        Epoch(self.epochs.fetch_add(1, Ordering::Relaxed))
    }

    /// `partition` is ours from now on.
    pub fn assign(&self, partition: TopicPartition) {
        let held = Held { epoch: self.next_epoch(), phase: Phase::Open, first: None };
        self.held.insert(partition, held);
    }

    /// The epoch of a record just polled; `None` when it must be thrown away.
    pub fn stamp(&self, partition: &TopicPartition, offset: Offset) -> Option<Epoch> {
        let mut held = self.held.get_mut(partition)?;
        if held.phase != Phase::Open {
            return None;
        }
        held.first.get_or_insert(offset);
        Some(held.epoch)
    }

    /// Whether a queued record may still go into a window.
    pub fn may_start(&self, partition: &TopicPartition, epoch: Epoch) -> bool {
        self.held.get(partition).is_some_and(|h| h.epoch == epoch && h.phase == Phase::Open)
    }

    /// Whether classified work may be produced and its offset committed.
    pub fn may_deliver(&self, partition: &TopicPartition, epoch: Epoch) -> bool {
        self.held.get(partition).is_some_and(|h| h.epoch == epoch)
    }

    /// No new work of these begins; what is in flight may finish.
    pub fn close<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for p in partitions {
            if let Some(mut held) = self.held.get_mut(p) {
                held.phase = Phase::Closing;
            }
        }
    }

    /// These are not ours any more.
    pub fn remove<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) {
        for p in partitions {
            self.held.remove(p);
        }
    }

    /// Everything in flight of `partition` is void, and it must be read from its committed offset again.
    /// Nothing happens if it has a later epoch than `epoch` or is gone.
    pub fn rewind(&self, partition: &TopicPartition, epoch: Epoch) {
        let next = self.next_epoch();
        if let Some(mut held) = self.held.get_mut(partition).filter(|h| h.epoch == epoch) {
            held.epoch = next;
            if held.phase == Phase::Open {
                held.phase = Phase::Rewinding;
                self.rewinding.store(true, Ordering::Release);
            }
        }
    }

    /// Partitions that wait for a seek; cheap when there are none.
    pub fn rewinds(&self) -> Vec<Rewind> {
        if !self.rewinding.load(Ordering::Acquire) {
            return Vec::new();
        }
        let all: Vec<Rewind> = self
            .held
            .iter()
            .filter(|h| h.phase == Phase::Rewinding)
            .map(|h| Rewind { partition: h.key().clone(), epoch: h.epoch, first: h.first })
            .collect();
        if all.is_empty() {
            // None are left. One that was asked for since the look above is found by the look below.
            self.rewinding.store(false, Ordering::Release);
            if self.held.iter().any(|h| h.phase == Phase::Rewinding) {
                self.rewinding.store(true, Ordering::Release);
            }
        }
        all
    }

    /// The consumer stands at the committed offset: reading goes on under the new epoch.
    pub fn sought(&self, rewind: &Rewind) {
        if let Some(mut held) = self.held.get_mut(&rewind.partition)
            && held.epoch == rewind.epoch
            && held.phase == Phase::Rewinding
        {
            held.phase = Phase::Open;
        }
    }

    /// Whether `partition` is ours, whatever its phase.
    pub fn holds(&self, partition: &TopicPartition) -> bool {
        self.held.contains_key(partition)
    }

    /// All partitions held.
    pub fn all(&self) -> Vec<TopicPartition> {
        self.held.iter().map(|h| h.key().clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn p(n: i32) -> TopicPartition {
        TopicPartition::new("t", n)
    }

    #[test]
    fn work_of_an_earlier_assignment_is_never_delivered() {
        let a = Assignments::default();
        a.assign(p(0));
        let old = a.stamp(&p(0), Offset(5)).unwrap();
        a.remove([&p(0)]);
        assert!(!a.may_deliver(&p(0), old) && a.stamp(&p(0), Offset(6)).is_none());
        a.assign(p(0));
        assert!(!a.may_deliver(&p(0), old));
        assert!(a.may_deliver(&p(0), a.stamp(&p(0), Offset(5)).unwrap()));
    }

    #[test]
    fn closing_finishes_what_is_in_flight_and_begins_nothing() {
        let a = Assignments::default();
        a.assign(p(0));
        let e = a.stamp(&p(0), Offset(0)).unwrap();
        a.close([&p(0)]);
        assert!(a.may_deliver(&p(0), e) && !a.may_start(&p(0), e) && a.stamp(&p(0), Offset(1)).is_none());
        a.rewind(&p(0), e);
        assert!(!a.may_deliver(&p(0), e) && a.rewinds().is_empty());
    }

    #[test]
    fn nothing_is_read_between_a_rewind_and_its_seek() {
        let a = Assignments::default();
        a.assign(p(0));
        let e = a.stamp(&p(0), Offset(7)).unwrap();
        a.rewind(&p(0), e);
        assert!(a.stamp(&p(0), Offset(9)).is_none() && !a.may_deliver(&p(0), e));
        let rewinds = a.rewinds();
        assert_eq!((rewinds.len(), rewinds[0].first), (1, Some(Offset(7))));
        a.rewind(&p(0), e);
        assert_eq!(a.rewinds(), rewinds, "an older epoch rewinds nothing");
        a.sought(&rewinds[0]);
        assert!(a.rewinds().is_empty());
        let again = a.stamp(&p(0), Offset(7)).unwrap();
        assert!(again != e && a.may_start(&p(0), again));
    }
}
