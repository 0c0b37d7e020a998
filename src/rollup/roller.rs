//! The rollup's machine: events in, parts and commands out. Synchronous, one owner of all state; time is a
//! value. The Kafka adapter feeds it and carries out its [`Command`]s; a simulation does the same with faults.
//!
//! Sealing: posts part (commit point), rollup part (derived from it), then the offset. Whatever was written
//! already is adopted: our own sums are dropped and the partition is read again from where that part ends.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

pub use super::events::{Bounds, Command, Notice, Outcome, RollError, Settings};
use super::{
    chain::{Chain, ChainError},
    decode::Undecodable,
    part::{OpenPart, SealReason},
    store::{PartId, Parts, Put},
};
use crate::{
    record::{Labelled, NextOffset, Offset},
    sink::parquet::{Head, Kind, encode_posts, encode_rollup},
};

enum State {
    /// Assigned; its position is not known yet. `true`: these bounds were asked for because the first were
    /// older than the chain.
    Resolving(Bounds, bool),
    /// Waits for fresher bounds.
    Asked,
    /// Taking records.
    Open(OpenPart),
    /// The store did not take the part yet; no records are taken meanwhile.
    Sealing(OpenPart, Option<SealReason>),
}

struct Slot {
    state: State,
    attempts: u32,
    retry_at: Option<Instant>,
}

/// The machine.
pub struct Roller<P> {
    parts: P,
    settings: Settings,
    slots: BTreeMap<i32, Slot>,
    /// The partition for which the store failed last: the next tick begins after it.
    failed_at: Option<i32>,
    commands: Vec<Command>,
    notices: Vec<Notice>,
}

impl<P: Parts> Roller<P> {
    /// No partitions yet.
    pub fn new(parts: P, settings: Settings) -> Self {
        let (slots, commands, notices) = Default::default();
        Self { parts, settings, slots, failed_at: None, commands, notices }
    }

    /// What is to be done since the last call, in order.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    /// What happened since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Whether there is something to take with the two calls above.
    pub fn has_news(&self) -> bool {
        !self.commands.is_empty() || !self.notices.is_empty()
    }

    /// A partition is ours. Its records are taken once a [`Command::Start`] was given.
    pub fn assign(&mut self, partition: i32, bounds: Bounds, now: Instant) -> Result<(), RollError> {
        let again = matches!(self.slots.get(&partition), Some(Slot { state: State::Asked, .. }));
        let slot = Slot { state: State::Resolving(bounds, again), attempts: 0, retry_at: None };
        self.slots.insert(partition, slot);
        self.step(partition, now)
    }

    /// A record came. It is not taken while the partition waits for the store.
    pub fn record(
        &mut self,
        partition: i32,
        offset: Offset,
        value: Result<Labelled, Undecodable>,
        now: Instant,
    ) -> Result<(), RollError> {
        let Some(Slot { state: State::Open(part), .. }) = self.slots.get_mut(&partition) else {
            return Ok(());
        };
        // A duplicate was fetched before a seek took effect: it is counted already.
        match value {
            Ok(post) => _ = part.apply(offset, post, now),
            Err(why) => {
                if let Some(found) = why.newer()
                    && offset.0 >= part.next().0
                {
                    let topic = self.settings.topic.clone();
                    return Err(RollError::Newer { topic, partition, offset, found });
                }
                if part.skip(offset, now).is_ok() {
                    self.notices.push(Notice::Skipped { partition, offset, why });
                }
            }
        }
        if part.should_seal(now, &self.settings.rules).is_some() {
            return self.step(partition, now);
        }
        self.bound_memory(now)
    }

    /// Time went by: seals what is due, tries again what failed. Ends at the first failure of the store, because
    /// one that hangs takes its whole limit each time and the caller has to poll in between; the next tick
    /// begins with the partition after it.
    pub fn tick(&mut self, now: Instant) -> Result<(), RollError> {
        let mut partitions: Vec<i32> = self.slots.keys().copied().collect();
        if let Some(at) = self.failed_at.take() {
            let after = partitions.partition_point(|p| *p <= at);
            partitions.rotate_left(after);
        }
        for p in partitions {
            self.step(p, now)?;
            if self.failed_at.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Seals what is open of a partition before it is given up. `false`: the store did not take it, try again
    /// later or give it up as it is.
    pub fn drain(&mut self, partition: i32, now: Instant) -> Result<bool, RollError> {
        let Some(slot) = self.slots.get(&partition) else { return Ok(true) };
        match &slot.state {
            State::Open(part) if !part.is_empty() => self.seal(partition, None, now)?,
            State::Sealing(..) if slot.retry_at.is_none_or(|at| at <= now) => {
                self.seal(partition, None, now)?
            }
            _ => {}
        }
        Ok(!matches!(self.slots.get(&partition), Some(Slot { state: State::Sealing(..), .. })))
    }

    /// Forgets a partition. What was not sealed is read again by its next owner.
    pub fn give_up(&mut self, partition: i32) {
        self.slots.remove(&partition);
    }

    /// Partitions held.
    pub fn partitions(&self) -> Vec<i32> {
        self.slots.keys().copied().collect()
    }

    /// Partitions that wait for the store.
    pub fn waiting(&self) -> usize {
        self.slots.values().filter(|s| !matches!(s.state, State::Open(_))).count()
    }

    /// The open parts, for metrics.
    pub fn open_parts(&self) -> impl Iterator<Item = &OpenPart> {
        self.slots.values().filter_map(|s| match &s.state {
            State::Open(p) | State::Sealing(p, _) => Some(p),
            State::Resolving(..) | State::Asked => None,
        })
    }

    /// The store.
    pub fn parts(&self) -> &P {
        &self.parts
    }

    fn step(&mut self, partition: i32, now: Instant) -> Result<(), RollError> {
        let Some(slot) = self.slots.get(&partition) else { return Ok(()) };
        if slot.retry_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        match &slot.state {
            State::Resolving(bounds, again) => self.resolve(partition, *bounds, *again, now),
            State::Asked => Ok(()),
            State::Sealing(_, reason) => self.seal(partition, *reason, now),
            State::Open(part) => match part.should_seal(now, &self.settings.rules) {
                Some(reason) => self.seal(partition, Some(reason), now),
                None => Ok(()),
            },
        }
    }

    fn bound_memory(&mut self, now: Instant) -> Result<(), RollError> {
        let total: usize = self.open_parts().map(OpenPart::bytes).sum();
        if total < self.settings.total_bytes {
            return Ok(());
        }
        let open = self.slots.values().filter_map(|s| match &s.state {
            State::Open(p) if !p.is_empty() => Some(p),
            _ => None,
        });
        let Some(largest) = open.max_by_key(|p| p.bytes()).map(OpenPart::partition) else { return Ok(()) };
        self.seal(largest, Some(SealReason::Bytes), now)
    }

    fn chain(&self, partition: i32) -> Chain<'_> {
        Chain { parts: &self.parts, topic: &self.settings.topic, partition }
    }

    /// Finds where the partition goes on and opens a part there.
    fn resolve(
        &mut self,
        partition: i32,
        bounds: Bounds,
        again: bool,
        now: Instant,
    ) -> Result<(), RollError> {
        let chain = self.chain(partition);
        let followed = chain.follow(bounds.committed).and_then(|tip| {
            if let Some(tip) = &tip {
                tip.unfinished.iter().try_for_each(|posts| chain.finish(*posts))?;
            }
            Ok(tip)
        });
        let next = match followed {
            Ok(Some(tip)) => tip.next,
            Ok(None) => {
                // The first commit is made before the first part, at the oldest record there was.
                if let Some(at) = bounds.committed.filter(|c| *c > bounds.low) {
                    self.notices.push(Notice::NoParts { partition, at });
                }
                bounds.committed.unwrap_or(bounds.low)
            }
            Err(e) if e.is_retry() => return self.back_off(partition, &e, now),
            Err(e) => return Err(e.into()),
        };
        if next > bounds.high && !again {
            // The bounds were fetched before the chain was followed: another instance may have sealed since.
            if let Some(slot) = self.slots.get_mut(&partition) {
                slot.state = State::Asked;
            }
            self.commands.push(Command::Bounds { partition });
            return Ok(());
        }
        if next > bounds.high {
            let topic = self.settings.topic.clone();
            return Err(RollError::Recreated { topic, partition, tip: next, high: bounds.high });
        }
        if next < bounds.low {
            self.notices.push(Notice::Lost { partition, from: next, to: bounds.low });
        }
        // Committed at once even where the group had nothing: a second instance that starts before the first
        // part is sealed must start at the same position, although retention may have moved the oldest record.
        if bounds.committed != Some(next) {
            self.commands.push(Command::Commit { partition, next });
        }
        self.commands.push(Command::Start { partition, at: next.max(bounds.low) });
        self.open(partition, next);
        Ok(())
    }

    /// An empty part at `next`, whatever was there before.
    fn open(&mut self, partition: i32, next: NextOffset) {
        let part = OpenPart::new(partition, next, self.settings.window_s, self.settings.archive);
        let before =
            self.slots.insert(partition, Slot { state: State::Open(part), attempts: 0, retry_at: None });
        if before.is_some_and(|s| s.attempts > 0) {
            self.notices.push(Notice::StoreUp { partition });
        }
    }

    /// Seals the open part. When the store fails the part is kept and the partition paused.
    fn seal(&mut self, partition: i32, reason: Option<SealReason>, now: Instant) -> Result<(), RollError> {
        let Some(slot) = self.slots.get(&partition) else { return Ok(()) };
        let (part, paused) = match &slot.state {
            State::Open(p) => (p, false),
            State::Sealing(p, _) => (p, true),
            State::Resolving(..) | State::Asked => return Ok(()),
        };
        match self.write(part) {
            Ok((id, next, outcome)) => {
                let (ours, records) = (part.next(), part.records());
                // What stands where an earlier try of ours had no answer, with our end, is most likely ours.
                let own = outcome == Outcome::Created || (paused && next == ours);
                let records = if own { records } else { 0 };
                self.notices.push(Notice::Sealed { id, next, records, outcome, reason });
                self.open(partition, next);
                self.commands.push(Command::Commit { partition, next });
                if paused || next != ours {
                    self.commands.push(Command::Start { partition, at: next });
                }
                Ok(())
            }
            Err(e) if e.is_retry() => {
                if !paused {
                    self.commands.push(Command::Pause { partition });
                    if let Some(Slot { state, .. }) = self.slots.remove(&partition)
                        && let State::Open(part) = state
                    {
                        let slot = Slot { state: State::Sealing(part, reason), attempts: 0, retry_at: None };
                        self.slots.insert(partition, slot);
                    }
                }
                self.back_off(partition, &e, now)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The writes of a seal, each conditional. What was there already is adopted. Gives the commit point.
    fn write(&self, part: &OpenPart) -> Result<(PartId, NextOffset, Outcome), ChainError> {
        let head = Head {
            topic: self.settings.topic.clone(),
            partition: part.partition(),
            first: part.first(),
            next: part.next(),
            records: part.records(),
            skipped: part.skipped(),
            window_s: self.settings.window_s,
        };
        let rollup = PartId { kind: Kind::Rollups, partition: part.partition(), first: part.first() };
        let posts = rollup.of_kind(Kind::Posts);
        let codec = |id: PartId| move |source| ChainError::Codec { file: self.parts.name(&id), source };
        let chain = self.chain(part.partition());
        let (commit, other) = if part.posts().is_some() { (posts, rollup) } else { (rollup, posts) };
        // An instance with the other rollup.posts may have sealed from here: its commit point is another key,
        // so that no condition of ours would meet it.
        if chain.footer(other)?.is_some() {
            return Ok((other, chain.adopt(other)?, Outcome::Adopted));
        }
        if let Some(rows) = part.posts()
            && self.parts.put(&posts, encode_posts(&head, rows).map_err(codec(posts))?)? == Put::Exists
        {
            return Ok((commit, chain.adopt(commit)?, Outcome::Adopted));
        }
        let bytes = encode_rollup(&head, &part.rows()).map_err(codec(rollup))?;
        match (self.parts.put(&rollup, bytes)?, commit.kind) {
            (Put::Created, _) => Ok((commit, part.next(), Outcome::Created)),
            (Put::Exists, Kind::Rollups) => Ok((commit, chain.adopt(commit)?, Outcome::Adopted)),
            // Another instance met our posts part and was quicker to derive its rollup.
            (Put::Exists, Kind::Posts) => {
                chain.finish(posts).map(|()| (commit, part.next(), Outcome::Created))
            }
        }
    }

    fn back_off(&mut self, partition: i32, e: &ChainError, now: Instant) -> Result<(), RollError> {
        self.failed_at = Some(partition);
        if let Some(slot) = self.slots.get_mut(&partition) {
            slot.attempts = slot.attempts.saturating_add(1);
            let wait = back_off(slot.attempts, rand::random());
            slot.retry_at = Some(now + wait);
            self.notices.push(Notice::StoreDown { partition, error: e.to_string(), wait });
        }
        Ok(())
    }
}

/// 0.2 s doubled with every attempt up to 30 s, of which `jitter` (0 to 1) leaves half to all.
fn back_off(attempts: u32, jitter: f64) -> Duration {
    let full = Duration::from_millis(200 << attempts.saturating_sub(1).min(8)).min(Duration::from_secs(30));
    full.mul_f64(0.5 + 0.5 * jitter)
}

#[cfg(test)]
#[path = "simulation.rs"]
mod simulation;
