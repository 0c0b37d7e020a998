//! What the rollup's machine is told, asks for and reports.

use std::{sync::Arc, time::Duration};

use super::{
    chain::ChainError,
    decode::Undecodable,
    part::{SealReason, SealRules},
    store::PartId,
};
use crate::record::{Labelled, NextOffset, Offset};

/// What the machine must know besides events.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The labelled topic.
    pub topic: Arc<str>,
    /// Width of windows, seconds.
    pub window_s: i64,
    /// Archive the posts beside the rollups.
    pub archive: bool,
    /// When to seal.
    pub rules: SealRules,
    /// Bytes of posts that all open parts together may keep; beyond it the largest is sealed.
    pub total_bytes: usize,
}

/// What the broker knows of a partition at assignment.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The group's committed offset.
    pub committed: Option<NextOffset>,
    /// The oldest offset that can still be read.
    pub low: NextOffset,
    /// The end of the log.
    pub high: NextOffset,
}

/// What the adapter has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Commit this offset. It may fail: the chain of parts alone decides where the next owner starts.
    Commit {
        /// Partition.
        partition: i32,
        /// The offset to read next.
        next: NextOffset,
    },
    /// Stop fetching; records that still come are not taken.
    Pause {
        /// Partition.
        partition: i32,
    },
    /// Seek there and fetch.
    Start {
        /// Partition.
        partition: i32,
        /// The offset to read next.
        at: NextOffset,
    },
    /// Ask the broker for the bounds again and assign the partition with them.
    Bounds {
        /// Partition.
        partition: i32,
    },
}

/// How a part came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// We wrote it.
    Created,
    /// It was there.
    Adopted,
}

/// Things worth counting, for metrics and logs.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A part is sealed, or one that was there was adopted.
    Sealed {
        /// The part's place.
        id: PartId,
        /// Where it ends.
        next: NextOffset,
        /// Posts of ours in it; 0 when somebody else wrote it.
        records: u64,
        /// How it came to be.
        outcome: Outcome,
        /// Why it was sealed; `None` for a drain.
        reason: Option<SealReason>,
    },
    /// The store did not do it; it is tried again after `wait`.
    StoreDown {
        /// Partition that waits.
        partition: i32,
        /// What went wrong.
        error: String,
        /// Until the next try.
        wait: Duration,
    },
    /// The store works for this partition again.
    StoreUp {
        /// Partition.
        partition: i32,
    },
    /// A record was passed over.
    Skipped {
        /// Partition.
        partition: i32,
        /// Its offset.
        offset: Offset,
        /// Why.
        why: Undecodable,
    },
    /// The group has read here before, but the store has no part of the partition.
    NoParts {
        /// Partition.
        partition: i32,
        /// Where the group goes on.
        at: NextOffset,
    },
    /// Records were deleted by the topic's retention before they were rolled up.
    Lost {
        /// Partition.
        partition: i32,
        /// Where the chain ends.
        from: NextOffset,
        /// The oldest record there is.
        to: NextOffset,
    },
}

/// Stops the stage.
#[derive(Debug, thiserror::Error)]
pub enum RollError {
    /// The chain is broken or the store refuses for good.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The log is shorter than what was rolled up of it.
    #[error(
        "{topic}[{partition}]: parts cover offsets up to {tip}, but the log ends at {high}. Was the topic deleted and \
             created again? Give the new one a new kafka.group and a new store.url"
    )]
    Recreated {
        /// The labelled topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// Where the chain ends.
        tip: NextOffset,
        /// Where the log ends.
        high: NextOffset,
    },
    /// A newer instance labels posts already; passed over, they would be missing in the sums for good.
    #[error(
        "{topic}[{partition}] offset {offset}: schema version {found}, this sentistream counts up to {}. Run the \
             rollup in the version that labels the posts; nothing is lost meanwhile",
        Labelled::SCHEMA
    )]
    Newer {
        /// The labelled topic.
        topic: Arc<str>,
        /// Partition.
        partition: i32,
        /// The record's offset.
        offset: Offset,
        /// Its schema version.
        found: u32,
    },
}
