//! The rollup stage: configuration → store, machine, consumer; and what the machine's notices mean for
//! logs, metrics and readiness.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    decode::decode,
    part::SealRules,
    roller::{Bounds, Command, Notice, Outcome, RollError, Roller, Settings},
    store::{PartId, PartStore, Parts, StoreError},
};
use crate::{
    config::Config,
    health::Health,
    record::{NextOffset, Offset},
    shutdown::Shutdown,
    sink::parquet::Kind,
};

/// Name of this role in health and logs.
pub const ROLE: &str = "rollup";

/// Bytes of posts that one open part may keep in memory …
const PART_BYTES: usize = 32 << 20;
/// … and all together.
const TOTAL_BYTES: usize = 256 << 20;

/// Stops the rollup stage. Nothing is lost: what is not sealed is read again.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A broken chain, a store that refuses, a topic that was created again.
    #[error("rollup: {0}")]
    Roll(#[from] RollError),
    /// The store cannot be used.
    #[error("rollup: {0}")]
    Store(#[from] StoreError),
    /// The broker refuses for good.
    #[error("rollup: {what}: {message}")]
    Kafka {
        /// What was tried.
        what: String,
        /// The client's reason and what to do.
        message: String,
    },
}

/// Runs the stage until shutdown or a fatal error. Blocks; call it on a thread of its own, outside any async
/// runtime.
pub fn run(config: &Config, shutdown: &Shutdown, health: &Health) -> Result<(), StageError> {
    health.not_ready(ROLE, "opening the store");
    let drain = Duration::from_secs(config.shutdown.drain_s);
    let limit = drain.clamp(Duration::from_secs(5), Duration::from_secs(30));
    let store = PartStore::open(&config.store)?.with_limit(limit);
    probe(&store, shutdown, health)?;
    health.not_ready(ROLE, "no partition assigned yet");
    let machine = Machine::new(store, settings(config), drain, health.clone());
    crate::source::labelled::consume(&config.kafka, machine, shutdown)
}

/// What the machine needs of the configuration.
pub fn settings(config: &Config) -> Settings {
    let r = &config.rollup;
    Settings {
        topic: config.kafka.labelled_topic.as_str().into(),
        window_s: r.window_s,
        archive: r.posts,
        rules: SealRules {
            records: r.seal_records as u64,
            age: Duration::from_secs(r.seal_age_s),
            idle: Duration::from_secs(r.seal_idle_s),
            bytes: PART_BYTES,
        },
        total_bytes: TOTAL_BYTES,
    }
}

/// A store that is down at start is waited for, as it would be later; one that cannot put-if-absent is refused.
fn probe(store: &PartStore, shutdown: &Shutdown, health: &Health) -> Result<(), StageError> {
    let mut wait = Duration::from_millis(500);
    loop {
        match store.probe() {
            Err(e) if e.is_retry() && !shutdown.is_set() => {
                tracing::warn!(error = %e, wait_s = wait.as_secs_f32(), "store is not reachable, trying again");
                health.not_ready(ROLE, format!("store: {e}"));
                shutdown.wait_timeout(wait);
                wait = (wait * 2).min(Duration::from_secs(30));
            }
            other => return Ok(other?),
        }
    }
}

/// The machine with its surroundings. The Kafka adapter owns it.
pub struct Machine<P = PartStore> {
    roller: Roller<P>,
    drain: Duration,
    health: Health,
    /// Partitions whose metrics were set, so that they can be cleared.
    seen: BTreeSet<i32>,
    down: Option<String>,
}

impl<P: Parts> Machine<P> {
    /// A machine without partitions. `drain`: deadline of a revoke and of the shutdown.
    pub fn new(parts: P, settings: Settings, drain: Duration, health: Health) -> Self {
        Self { roller: Roller::new(parts, settings), drain, health, seen: BTreeSet::new(), down: None }
    }

    /// The labelled topic's partition is ours.
    pub fn assign(&mut self, partition: i32, bounds: Bounds) -> Result<(), StageError> {
        self.roller.assign(partition, bounds, Instant::now())?;
        self.tell();
        Ok(())
    }

    /// One record of the labelled topic.
    pub fn record(
        &mut self,
        partition: i32,
        offset: Offset,
        value: Option<&[u8]>,
        now: Instant,
    ) -> Result<(), StageError> {
        self.roller.record(partition, offset, decode(value), now)?;
        Ok(())
    }

    /// Seals what is due, tries again what failed, sets metrics and readiness.
    pub fn tick(&mut self) -> Result<(), StageError> {
        let now = Instant::now();
        self.roller.tick(now)?;
        self.tell();
        self.gauges(now);
        Ok(())
    }

    /// What the adapter has to do now.
    pub fn commands(&mut self) -> Vec<Command> {
        if !self.roller.has_news() {
            return Vec::new();
        }
        self.tell();
        self.roller.take_commands()
    }

    /// Partitions held.
    pub fn partitions(&self) -> Vec<i32> {
        self.roller.partitions()
    }

    /// Seals and gives up partitions before the deadline; what the store does not take until then is dropped
    /// and read again by the next owner. `commit` gets the offsets to commit.
    pub fn give_up(
        &mut self,
        partitions: &[i32],
        mut commit: impl FnMut(i32, NextOffset),
    ) -> Result<(), StageError> {
        let until = Instant::now() + self.drain;
        self.roller.parts().end_by(Some(until));
        let drained = partitions.iter().try_for_each(|p| self.drain(*p, until, &mut commit));
        self.roller.parts().end_by(None);
        drained?;
        self.tell();
        self.gauges(Instant::now());
        Ok(())
    }

    /// One deadline for all partitions: a store that hangs for the first leaves nothing to the others.
    fn drain(
        &mut self,
        p: i32,
        until: Instant,
        commit: &mut impl FnMut(i32, NextOffset),
    ) -> Result<(), StageError> {
        while Instant::now() < until {
            if self.roller.drain(p, Instant::now())? {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.roller.open_parts().any(|part| part.partition() == p && !part.is_empty()) {
            tracing::warn!(
                partition = p,
                "the store did not take the open part in time; its posts will be read again"
            );
        }
        for c in self.roller.take_commands() {
            if let Command::Commit { partition, next } = c {
                commit(partition, next);
            }
        }
        self.roller.give_up(p);
        Ok(())
    }

    /// Drops partitions that belong to somebody else already.
    pub fn forget(&mut self, partitions: &[i32]) {
        partitions.iter().for_each(|p| self.roller.give_up(*p));
        self.gauges(Instant::now());
    }

    fn tell(&mut self) {
        for n in self.roller.take_notices() {
            match n {
                Notice::Sealed { id, next, records, outcome, reason } => {
                    let outcome = if outcome == Outcome::Created { "created" } else { "adopted" };
                    metrics::counter!("sentistream_parts_sealed_total", "outcome" => outcome).increment(1);
                    metrics::counter!("sentistream_rollup_posts_total").increment(records);
                    let file = self.roller.parts().name(&id);
                    tracing::info!(file, %next, records, outcome, ?reason, "part sealed");
                }
                Notice::StoreDown { partition, error, wait } => {
                    metrics::counter!("sentistream_store_errors_total").increment(1);
                    tracing::warn!(
                        partition,
                        error,
                        wait_s = wait.as_secs_f32(),
                        "store failed; the partition is paused"
                    );
                    self.down = Some(error);
                }
                Notice::StoreUp { partition } => tracing::info!(partition, "store works again"),
                Notice::Skipped { partition, offset, why } => {
                    metrics::counter!("sentistream_rollup_skipped_total").increment(1);
                    tracing::error!(partition, %offset, %why, "a record on the labelled topic is no labelled post; it is not counted");
                }
                Notice::NoParts { partition, at } => {
                    let id = PartId { kind: Kind::Rollups, partition, first: at };
                    let name = self.roller.parts().name(&id);
                    let store = name.rsplit_once('/').map_or(&*name, |(folder, _)| folder);
                    tracing::error!(partition, committed = %at, store, "the group has read this partition up to here, but the store has no part of it: were parts deleted, or does store.url name another store than before? Going on from here; earlier posts are in no part of this store");
                }
                Notice::Lost { partition, from, to } => {
                    let lost = u64::try_from(to.0 - from.0).unwrap_or(0);
                    metrics::counter!("sentistream_rollup_lost_offsets_total").increment(lost);
                    tracing::error!(partition, %from, %to, "retention deleted these offsets before they were rolled up");
                }
            }
        }
        let waiting = self.roller.waiting();
        if waiting == 0 {
            self.down = None;
        }
        match &self.down {
            _ if self.roller.partitions().is_empty() => self.health.not_ready(ROLE, "no partition assigned"),
            Some(error) => {
                self.health.not_ready(ROLE, format!("{waiting} partitions wait for the store: {error}"))
            }
            None => self.health.ready(ROLE),
        }
    }

    fn gauges(&mut self, now: Instant) {
        let mut gone = std::mem::take(&mut self.seen);
        for part in self.roller.open_parts() {
            let label = part.partition().to_string();
            metrics::gauge!("sentistream_open_part_age_seconds", "partition" => label.clone())
                .set(part.age(now).as_secs_f64());
            metrics::gauge!("sentistream_open_part_posts", "partition" => label).set(part.records() as f64);
            gone.remove(&part.partition());
            self.seen.insert(part.partition());
        }
        for partition in gone {
            let label = partition.to_string();
            metrics::gauge!("sentistream_open_part_age_seconds", "partition" => label.clone()).set(0.0);
            metrics::gauge!("sentistream_open_part_posts", "partition" => label).set(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{cell::Cell, cell::RefCell, rc::Rc};

    use bytes::Bytes;

    use super::*;
    use crate::{
        rollup::{store::Put, testing::post},
        sink::parquet::Footer,
    };

    /// A store whose puts take all the time they are given and then fail.
    #[derive(Default)]
    struct Hung {
        deadline: Cell<Option<Instant>>,
        tried: Rc<RefCell<BTreeSet<i32>>>,
    }

    impl Parts for Hung {
        fn put(&self, id: &PartId, _: Bytes) -> Result<Put, StoreError> {
            self.tried.borrow_mut().insert(id.partition);
            let until = self.deadline.get().unwrap();
            while Instant::now() < until {
                std::thread::yield_now();
            }
            Err(StoreError::Retry { operation: "put", object: self.name(id), message: "no answer".into() })
        }
        fn footer(&self, _: &PartId) -> Result<Option<Footer>, StoreError> {
            Ok(None)
        }
        fn read(&self, _: &PartId) -> Result<Option<Bytes>, StoreError> {
            Ok(None)
        }
        fn list(&self, _: Kind, _: i32) -> Result<Vec<NextOffset>, StoreError> {
            Ok(Vec::new())
        }
        fn name(&self, id: &PartId) -> String {
            id.key()
        }
        fn end_by(&self, deadline: Option<Instant>) {
            self.deadline.set(deadline);
        }
    }

    #[test]
    fn a_store_that_hangs_for_one_partition_leaves_no_drain_to_the_others() {
        let (store, drain) = (Hung::default(), Duration::from_millis(50));
        let tried = store.tried.clone();
        let mut m = Machine::new(store, settings(&Config::defaults()), drain, Health::default());
        let bounds = Bounds { committed: None, low: NextOffset(0), high: NextOffset(9) };
        let value = serde_json::to_vec(&post(1)).unwrap();
        for p in 0..20 {
            m.assign(p, bounds).unwrap();
            m.record(p, Offset(1), Some(&value), Instant::now()).unwrap();
        }
        m.commands();
        m.give_up(&m.partitions(), |p, next| panic!("nothing was sealed, but {p} is committed at {next}"))
            .unwrap();
        assert_eq!(*tried.borrow(), BTreeSet::from([0]), "the deadline is one for all");
        assert!(m.partitions().is_empty());
        assert_eq!(m.roller.parts().deadline.get(), None, "lifted again");
    }
}
