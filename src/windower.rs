//! Cuts the queue into windows: what is waiting, at most `window_rows`, at most some bytes, at most `linger_ms`
//! after the first.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;

use crate::{
    assignment::Assignments,
    record::RawRecord,
    settle::Stamps,
    source::queue::{Drain, Popped, Queue, Stamped, bytes_of},
    window::Window,
};

/// What the settler must know besides the windows themselves.
#[derive(Debug)]
pub enum Note {
    /// The window of this number is about to be submitted.
    Window {
        /// Its number.
        seq: u64,
        /// The epochs of its records.
        stamps: Stamps,
    },
    /// Commit once `windows` windows are settled, then answer.
    Drain {
        /// Windows submitted so far.
        windows: u64,
        /// To be answered.
        drain: Drain,
    },
}

/// Bytes of keys and values in a window, unless one record has more: posts of a megabyte each must not make
/// the windows in flight a multiple of the queue.
const WINDOW_BYTES: usize = 16 << 20;

/// See the module.
pub struct Windower {
    queue: Arc<Queue>,
    assignments: Arc<Assignments>,
    notes: Sender<Note>,
    rows: usize,
    linger: Duration,
    next_seq: u64,
    records: Vec<RawRecord>,
    bytes: usize,
    stamps: Stamps,
}

/// The other side is gone; the stage is ending.
struct Ended;

impl Windower {
    /// A windower that tells `notes` of every window before it submits it.
    pub fn new(
        queue: Arc<Queue>,
        assignments: Arc<Assignments>,
        notes: Sender<Note>,
        rows: usize,
        linger: Duration,
    ) -> Self {
        Self {
            queue,
            assignments,
            notes,
            rows,
            linger,
            next_seq: 0,
            records: Vec::new(),
            bytes: 0,
            stamps: Stamps::new(),
        }
    }

    /// Runs until the queue is closed or nobody takes windows any more. `submit` blocks while the pipeline
    /// is busy and returns false when it has ended.
    pub fn run(mut self, submit: impl Fn(Window) -> bool) {
        while self.step(&submit).is_ok() {}
    }

    fn step(&mut self, submit: &impl Fn(Window) -> bool) -> Result<(), Ended> {
        let mut popped = Vec::new();
        let mut deadline = None;
        while self.records.len() < self.rows && self.bytes < WINDOW_BYTES {
            let (rows, bytes) = (self.rows - self.records.len(), WINDOW_BYTES - self.bytes);
            match self.queue.pop(&mut popped, rows, bytes, deadline) {
                Popped::Records => {
                    for item in popped.drain(..) {
                        self.take(item, submit)?;
                    }
                    if !self.records.is_empty() {
                        deadline.get_or_insert_with(|| Instant::now() + self.linger);
                    }
                }
                Popped::Drain(drain) => {
                    self.submit(submit)?;
                    let note = Note::Drain { windows: self.next_seq, drain };
                    return self.notes.send(note).map_err(|_| Ended);
                }
                Popped::Nothing => break,
                Popped::Closed => return Err(Ended),
            }
        }
        self.submit(submit)
    }

    fn take(&mut self, item: Stamped, submit: &impl Fn(Window) -> bool) -> Result<(), Ended> {
        let partition = &item.record.position.partition;
        if !self.assignments.may_start(partition, item.epoch) {
            return Ok(());
        }
        // A window has one epoch a partition, by which the settler judges it.
        if self.stamps.get(partition).is_some_and(|e| *e != item.epoch) {
            self.submit(submit)?;
        }
        if !self.stamps.contains_key(&item.record.position.partition) {
            self.stamps.insert(item.record.position.partition.clone(), item.epoch);
        }
        self.bytes += bytes_of(&item.record);
        self.records.push(item.record);
        Ok(())
    }

    fn submit(&mut self, submit: &impl Fn(Window) -> bool) -> Result<(), Ended> {
        if self.records.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let seq = self.next_seq;
        self.next_seq += 1;
        let (records, stamps) = (std::mem::take(&mut self.records), std::mem::take(&mut self.stamps));
        self.notes.send(Note::Window { seq, stamps }).map_err(|_| Ended)?;
        if submit(Window { seq, records }) { Ok(()) } else { Err(Ended) }
    }
}
