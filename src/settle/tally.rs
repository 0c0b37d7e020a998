//! What a transaction holds, counted for metrics only once it is committed.

use crate::{
    record::{Map, Stage, Timestamp},
    window::Settled,
};

/// Counts of one transaction.
#[derive(Debug, Default)]
pub struct Tally {
    labels: Map<&'static str, u64>,
    dead: Map<(Stage, &'static str), u64>,
    skipped: Map<&'static str, u64>,
    stamps: Vec<Timestamp>,
}

/// Older records are backlog or replay: their age says nothing about this process.
const LATENCY_LIMIT_S: f64 = 3600.0;

impl Tally {
    pub(super) fn add(&mut self, item: &Settled) {
        match item {
            Settled::Labelled { labelled, .. } => {
                *self.labels.entry(labelled.label.as_str()).or_default() += 1
            }
            Settled::Dead(letter) => *self.dead.entry((letter.stage, letter.reason)).or_default() += 1,
            Settled::Skipped { reason, .. } => *self.skipped.entry(reason).or_default() += 1,
        }
        self.stamps.extend(item.record().timestamp);
    }

    /// Into the metrics; latencies are from the record's own time stamp to `now`.
    pub(super) fn publish(self, now: Timestamp) {
        for (label, n) in self.labels {
            metrics::counter!("sentistream_posts_labelled_total", "label" => label).increment(n);
        }
        for ((stage, reason), n) in self.dead {
            metrics::counter!("sentistream_posts_dead_total", "stage" => stage.as_str(), "reason" => reason)
                .increment(n);
        }
        for (reason, n) in self.skipped {
            metrics::counter!("sentistream_posts_skipped_total", "reason" => reason).increment(n);
        }
        let latency = metrics::histogram!("sentistream_end_to_end_seconds");
        for stamp in self.stamps {
            let seconds = (now.0 - stamp.0) as f64 / 1e6;
            if (0.0..LATENCY_LIMIT_S).contains(&seconds) {
                latency.record(seconds);
            }
        }
    }
}
