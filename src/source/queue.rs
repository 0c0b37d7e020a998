//! The bounded queue between the poll thread and the windower. A push never blocks and never loses a
//! record: the bounds are a signal on which the poll thread stops reading, not a wall.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{assignment::Epoch, record::RawRecord};

/// A record with the epoch of its partition when it was polled.
#[derive(Clone, Debug)]
pub struct Stamped {
    /// The record.
    pub record: RawRecord,
    /// Under which assignment it was read.
    pub epoch: Epoch,
}

/// A request to finish what is in flight. Answered by [`Drain::done`]; dropped unanswered when the stage
/// gives up.
#[derive(Debug)]
pub struct Drain(Sender<()>);

impl Drain {
    /// A request and where its answer comes.
    pub fn new() -> (Self, Receiver<()>) {
        let (tx, rx) = bounded(1);
        (Self(tx), rx)
    }

    /// Everything that was in flight is committed (or dropped for good).
    pub fn done(self) {
        // The asker may have given up waiting.
        let _ = self.0.try_send(());
    }
}

/// What the windower finds.
#[derive(Debug)]
pub enum Popped {
    /// Records were appended to the caller's buffer.
    Records,
    /// Finish what is in flight; comes before any record.
    Drain(Drain),
    /// Nothing came before the deadline.
    Nothing,
    /// The source has ended and the queue is empty.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Stamped>,
    bytes: usize,
    drains: VecDeque<Drain>,
    closed: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    max_records: usize,
    max_bytes: usize,
}

/// Bytes of a record's key and value.
pub fn bytes_of(r: &RawRecord) -> usize {
    r.key.as_ref().map_or(0, bytes::Bytes::len) + r.payload.as_ref().map_or(0, bytes::Bytes::len)
}

impl Queue {
    /// A queue that calls itself full at `max_records` records or `max_bytes` bytes of keys and values.
    pub fn new(max_records: usize, max_bytes: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), max_records, max_bytes }
    }

    /// No invariant spans a panic inside the lock, so a poisoned lock is taken as it is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record, full or not.
    pub fn push(&self, item: Stamped) {
        let mut s = self.lock();
        s.bytes += bytes_of(&item.record);
        s.records.push_back(item);
        self.changed.notify_all();
    }

    /// Asks for a drain. After [`Queue::close`] the request is dropped, which the asker sees at once.
    pub fn drain(&self) -> Receiver<()> {
        let (drain, done) = Drain::new();
        let mut s = self.lock();
        if !s.closed {
            s.drains.push_back(drain);
            self.changed.notify_all();
        }
        done
    }

    /// No record comes any more; what is queued is void.
    pub fn close(&self) {
        let mut s = self.lock();
        s.closed = true;
        s.records.clear();
        s.bytes = 0;
        s.drains.clear();
        self.changed.notify_all();
    }

    /// Appends up to `max` records to `into`, waiting for the first until `deadline` (`None`: for ever). The
    /// first is taken whatever its size, more only while all together have `max_bytes` bytes at most.
    pub fn pop(
        &self,
        into: &mut Vec<Stamped>,
        max: usize,
        max_bytes: usize,
        deadline: Option<Instant>,
    ) -> Popped {
        let mut s = self.lock();
        loop {
            if let Some(drain) = s.drains.pop_front() {
                return Popped::Drain(drain);
            }
            if !s.records.is_empty() {
                let (mut n, mut taken) = (0, 0);
                for bytes in s.records.iter().take(max).map(|r| bytes_of(&r.record)) {
                    if n > 0 && taken + bytes > max_bytes {
                        break;
                    }
                    n += 1;
                    taken += bytes;
                }
                s.bytes -= taken;
                into.extend(s.records.drain(..n));
                self.changed.notify_all();
                return Popped::Records;
            }
            if s.closed {
                return Popped::Closed;
            }
            s = match deadline.map(|d| d.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(s).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Popped::Nothing,
                Some(left) => self.changed.wait_timeout(s, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn over(&self, s: &State, share: usize) -> bool {
        s.records.len() >= (self.max_records / share).max(1) || s.bytes >= (self.max_bytes / share).max(1)
    }

    /// Whether reading should stop.
    pub fn is_full(&self) -> bool {
        self.over(&self.lock(), 1)
    }

    /// Whether reading may go on after it was stopped: at half the bounds, so that it does not flutter.
    pub fn has_room(&self) -> bool {
        !self.over(&self.lock(), 2)
    }

    /// Waits until it is not full any more, at most `limit`; tells whether it is not.
    pub fn wait_for_room(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut s = self.lock();
        while self.over(&s, 1) && !s.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            s = self.changed.wait_timeout(s, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Records waiting.
    pub fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        assignment::Assignments,
        record::{Offset, Position, TopicPartition},
    };

    fn record(offset: i64, len: usize) -> Stamped {
        let partition = TopicPartition::new("t", 0);
        let assignments = Assignments::default();
        assignments.assign(partition.clone());
        let epoch = assignments.stamp(&partition, Offset(offset)).unwrap();
        let position = Position { partition, offset: Offset(offset) };
        Stamped {
            record: RawRecord { position, key: None, payload: Some(vec![0; len].into()), timestamp: None },
            epoch,
        }
    }

    #[test]
    fn full_by_records_or_bytes_and_room_only_at_half() {
        let q = Queue::new(4, 1000);
        for i in 0..4 {
            assert!(!q.is_full());
            q.push(record(i, 1));
        }
        assert!(q.is_full() && !q.wait_for_room(Duration::from_millis(1)));
        q.push(record(4, 1));
        let mut out = Vec::new();
        assert!(matches!(q.pop(&mut out, 2, 99, None), Popped::Records));
        assert!(!q.is_full() && !q.has_room());
        assert!(matches!(q.pop(&mut out, 9, 99, None), Popped::Records));
        assert!(q.has_room());
        let offsets: Vec<i64> = out.iter().map(|s| s.record.position.offset.0).collect();
        assert_eq!(offsets, [0, 1, 2, 3, 4]);
        q.push(record(5, 1000));
        assert!(q.is_full());
    }

    #[test]
    fn a_pop_is_bounded_by_bytes_and_takes_one_record_at_least() {
        let q = Queue::new(9, 1000);
        for (i, len) in [60, 30, 20, 500, 1].into_iter().enumerate() {
            q.push(record(i as i64, len));
        }
        let mut out = Vec::new();
        let mut taken = Vec::new();
        while !q.is_empty() {
            let before = out.len();
            assert!(matches!(q.pop(&mut out, 9, 99, None), Popped::Records));
            taken.push(out.len() - before);
        }
        assert_eq!(taken, [2, 1, 1, 1]);
        assert_eq!(q.lock().bytes, 0);
    }

    #[test]
    fn a_drain_goes_before_records_and_is_dropped_once_closed() {
        let q = Queue::new(4, 1000);
        q.push(record(0, 1));
        let done = q.drain();
        let mut out = Vec::new();
        let Popped::Drain(drain) = q.pop(&mut out, 9, 99, None) else { panic!("expected the drain") };
        assert!(out.is_empty());
        drain.done();
        done.recv().unwrap();
        q.close();
        assert!(q.drain().recv().is_err());
        assert!(matches!(q.pop(&mut out, 9, 99, None), Popped::Closed));
    }

    #[test]
    fn a_pop_ends_at_its_deadline() {
        let q = Queue::new(4, 1000);
        assert!(matches!(q.pop(&mut Vec::new(), 1, 99, Some(Instant::now())), Popped::Nothing));
    }
}
