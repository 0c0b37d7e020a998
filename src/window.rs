//! The unit of flow: consecutive records, numbered, and what became of them.

use crate::record::{DeadLetter, Labelled, RawRecord};

/// Consecutive records on their way through the pipeline.
#[derive(Debug)]
pub struct Window {
    /// Counted from 0, without a gap.
    pub seq: u64,
    /// Per partition in offset order.
    pub records: Vec<RawRecord>,
}

/// What became of one record.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every record is labelled; a box would be an allocation each"
)]
pub enum Settled {
    /// A post, labelled.
    Labelled {
        /// The record as it came.
        record: RawRecord,
        /// The value of the labelled record.
        labelled: Labelled,
    },
    /// Refused.
    Dead(DeadLetter),
    /// No post at all (a delete, a heart-beat): its offset settles, nothing is produced.
    Skipped {
        /// The record as it came.
        record: RawRecord,
        /// A short stable word for metrics.
        reason: &'static str,
    },
}

impl Settled {
    /// The record it was.
    pub fn record(&self) -> &RawRecord {
        match self {
            Self::Labelled { record, .. } | Self::Skipped { record, .. } => record,
            Self::Dead(letter) => &letter.record,
        }
    }
}

/// A window whose every record is settled, in the order they came.
#[derive(Debug)]
pub struct SettledWindow {
    /// That of the [`Window`].
    pub seq: u64,
    /// One per record.
    pub items: Vec<Settled>,
}
