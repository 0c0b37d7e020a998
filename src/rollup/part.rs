//! The open part of one partition: what was counted since the last sealed part. Pure; time is a value.

use std::time::{Duration, Instant};

use super::window::{Deltas, Key, Sums};
use crate::record::{Labelled, NextOffset, Offset};

/// A labelled post with its place in the labelled topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Archived {
    /// Offset in the labelled topic.
    pub offset: Offset,
    /// The post.
    pub post: Labelled,
}

/// When a part is sealed. Nothing here has to be deterministic: any cut gives the same sums.
#[derive(Clone, Copy, Debug)]
pub struct SealRules {
    /// At this many posts; never more than [`SealRules::MAX_RECORDS`].
    pub records: u64,
    /// At this age, counted from the first record.
    pub age: Duration,
    /// After this long without a record.
    pub idle: Duration,
    /// At this many bytes of sums and kept posts in memory (estimate).
    pub bytes: usize,
}

impl SealRules {
    /// Bound on the posts of a part, which with [`super::window::MAX_REACH`] keeps sums inside 64 bits.
    pub const MAX_RECORDS: u64 = 5_000_000;
}

/// Why a part is sealed; a label of the log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealReason {
    /// Enough posts.
    Records,
    /// Enough bytes in memory.
    Bytes,
    /// Old enough.
    Age,
    /// Nothing came for a while.
    Idle,
}

/// Why a record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} was counted already: the part goes on at {next}")]
pub struct Duplicate {
    /// The record's offset.
    pub offset: Offset,
    /// Where the part goes on.
    pub next: NextOffset,
}

/// What is counted of one partition and not sealed yet: it covers `[first, next)`.
#[derive(Clone, Debug)]
pub struct OpenPart {
    partition: i32,
    first: NextOffset,
    next: NextOffset,
    /// Times of the first and the latest record; `None` while nothing came.
    times: Option<(Instant, Instant)>,
    deltas: Deltas,
    posts: Option<Vec<Archived>>,
    records: u64,
    skipped: u64,
    /// Of the posts kept.
    bytes: usize,
}

impl OpenPart {
    /// An empty part that starts at `first`, which is where the chain ends and not where the next record
    /// is, so that the chain has no gap. `archive`: keep the posts themselves too.
    pub fn new(partition: i32, first: NextOffset, window_s: i64, archive: bool) -> Self {
        Self {
            partition,
            first,
            next: first,
            times: None,
            deltas: Deltas::new(window_s),
            posts: archive.then(Vec::new),
            records: 0,
            skipped: 0,
            bytes: 0,
        }
    }

    /// Counts a post. `next` moves over gaps in the offsets: transaction markers and aborted records.
    pub fn apply(&mut self, offset: Offset, post: Labelled, now: Instant) -> Result<(), Duplicate> {
        self.advance(offset, now)?;
        self.records += 1;
        self.deltas.add(&post);
        if let Some(posts) = &mut self.posts {
            self.bytes += memory_of(&post);
            posts.push(Archived { offset, post });
        }
        Ok(())
    }

    /// Passes over a record that cannot be counted.
    pub fn skip(&mut self, offset: Offset, now: Instant) -> Result<(), Duplicate> {
        self.advance(offset, now)?;
        self.skipped += 1;
        Ok(())
    }

    fn advance(&mut self, offset: Offset, now: Instant) -> Result<(), Duplicate> {
        if offset.0 < self.next.0 {
            return Err(Duplicate { offset, next: self.next });
        }
        self.next = offset.next();
        self.times = Some((self.times.map_or(now, |(opened, _)| opened), now));
        Ok(())
    }

    /// Whether it is time to seal. An empty part is never sealed.
    pub fn should_seal(&self, now: Instant, rules: &SealRules) -> Option<SealReason> {
        let (opened, last) = self.times?;
        if self.records + self.skipped >= rules.records.min(SealRules::MAX_RECORDS) {
            Some(SealReason::Records)
        } else if self.bytes() >= rules.bytes {
            Some(SealReason::Bytes)
        } else if now.saturating_duration_since(opened) >= rules.age {
            Some(SealReason::Age)
        } else if now.saturating_duration_since(last) >= rules.idle {
            Some(SealReason::Idle)
        } else {
            None
        }
    }

    /// Whether no record came yet.
    pub fn is_empty(&self) -> bool {
        self.times.is_none()
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Where the part starts.
    pub fn first(&self) -> NextOffset {
        self.first
    }

    /// Where it goes on.
    pub fn next(&self) -> NextOffset {
        self.next
    }

    /// Posts counted.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Records passed over.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Estimated bytes of the sums and of the posts kept.
    pub fn bytes(&self) -> usize {
        self.bytes + self.deltas.bytes()
    }

    /// Age since the first record.
    pub fn age(&self, now: Instant) -> Duration {
        self.times.map_or(Duration::ZERO, |(opened, _)| now.saturating_duration_since(opened))
    }

    /// The sums in key order.
    pub fn rows(&self) -> Vec<(Key, Sums)> {
        self.deltas.sorted()
    }

    /// The posts in offset order, if they are kept.
    pub fn posts(&self) -> Option<&[Archived]> {
        self.posts.as_deref()
    }
}

fn memory_of(p: &Labelled) -> usize {
    let text = p.text.as_ref().map_or(0, String::len) + p.author.as_ref().map_or(0, String::len);
    let brands: usize = p.brands.iter().map(|b| b.len() + 32).sum();
    size_of::<Archived>() + p.id.len() + p.lang.len() + p.channel.len() + text + brands + 128
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rollup::testing::post;

    const RULES: SealRules =
        SealRules { records: 3, age: Duration::from_secs(60), idle: Duration::from_secs(15), bytes: 1 << 20 };

    #[test]
    fn covers_gaps_and_refuses_what_was_counted() {
        let now = Instant::now();
        let mut p = OpenPart::new(0, NextOffset(10), 60, true);
        assert_eq!(
            p.apply(Offset(9), post(9), now).unwrap_err(),
            Duplicate { offset: Offset(9), next: NextOffset(10) }
        );
        p.apply(Offset(14), post(14), now).unwrap();
        assert_eq!((p.first(), p.next(), p.records()), (NextOffset(10), NextOffset(15), 1));
        p.apply(Offset(14), post(14), now).unwrap_err();
        p.skip(Offset(17), now).unwrap();
        assert_eq!((p.next(), p.records(), p.skipped()), (NextOffset(18), 1, 1));
        assert_eq!(p.posts().unwrap().len(), 1);
    }

    #[test]
    fn seals_by_records_age_idleness_and_bytes() {
        let t0 = Instant::now();
        let at = |s| t0 + Duration::from_secs(s);
        let mut p = OpenPart::new(0, NextOffset(0), 60, false);
        assert_eq!(p.should_seal(at(1000), &RULES), None, "an empty part stays open");
        p.apply(Offset(0), post(0), at(0)).unwrap();
        assert_eq!(p.should_seal(at(14), &RULES), None);
        assert_eq!(p.should_seal(at(15), &RULES), Some(SealReason::Idle));
        p.apply(Offset(1), post(1), at(50)).unwrap();
        assert_eq!(p.should_seal(at(59), &RULES), None);
        assert_eq!(p.should_seal(at(60), &RULES), Some(SealReason::Age));
        p.apply(Offset(2), post(2), at(51)).unwrap();
        assert_eq!(p.should_seal(at(52), &RULES), Some(SealReason::Records));
        let mut p = OpenPart::new(0, NextOffset(0), 60, true);
        let mut big = post(0);
        big.text = Some("x".repeat(1 << 20));
        p.apply(Offset(0), big, at(0)).unwrap();
        assert_eq!(p.should_seal(at(0), &RULES), Some(SealReason::Bytes));
    }

    /// Posts of far-apart times and ever new channels make keys without end.
    #[test]
    fn sums_alone_seal_by_bytes_too() {
        let now = Instant::now();
        let rules = SealRules { records: 1 << 20, ..RULES };
        let mut p = OpenPart::new(0, NextOffset(0), 60, false);
        let sealed = (0..100_000).find(|n| {
            let mut hostile = post(0);
            hostile.channel = format!("channel {n}");
            p.apply(Offset(*n), hostile, now).unwrap();
            p.should_seal(now, &rules).is_some()
        });
        assert!(sealed.is_some_and(|n| (1_000..10_000).contains(&n)), "{sealed:?}");
        assert_eq!(p.should_seal(now, &rules), Some(SealReason::Bytes));
        let same = |n| {
            let mut p = OpenPart::new(0, NextOffset(0), 60, false);
            (0..n).for_each(|i| p.apply(Offset(i), post(0), now).unwrap());
            p.bytes()
        };
        assert_eq!(same(1), same(1000), "the same key costs once");
    }
}
