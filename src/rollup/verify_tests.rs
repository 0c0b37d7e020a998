#![allow(clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use object_store::{ObjectStoreExt, memory::InMemory, path::Path};

use super::*;
use crate::{
    config::Config,
    rollup::{
        roller::{Bounds, Roller},
        stage::settings,
        store::{PartId, Parts},
        testing::{post, rollup_part},
    },
};

/// A log in memory: offset and value.
struct Log {
    low: i64,
    records: Vec<(i64, Vec<u8>)>,
}

impl LabelledLog for Log {
    fn partitions(&self) -> Result<Vec<i32>, StageError> {
        Ok(vec![0])
    }

    fn extent(&self, partition: i32) -> Result<Extent, StageError> {
        let high = self.records.last().map_or(0, |(o, _)| o + 2);
        Ok(Extent { partition, low: NextOffset(self.low), high: NextOffset(high) })
    }

    fn scan(
        &self,
        _: i32,
        from: NextOffset,
        visit: &mut dyn FnMut(Offset, Option<&[u8]>),
    ) -> Result<(), StageError> {
        self.records.iter().filter(|(o, _)| *o >= from.0).for_each(|(o, v)| visit(Offset(*o), Some(v)));
        Ok(())
    }
}

fn log(n: i64) -> Log {
    let value = |i: i64| if i % 11 == 3 { b"?".to_vec() } else { serde_json::to_vec(&post(i)).unwrap() };
    Log { low: 0, records: (0..n).map(|i| (i * 2 + 1, value(i))).collect() }
}

/// The log rolled up, all but its last `tail` records.
fn rolled(log: &Log, tail: usize, archive: bool) -> (Arc<InMemory>, PartStore) {
    let memory = Arc::new(InMemory::new());
    let mut s = settings(&Config::defaults());
    (s.archive, s.rules.records) = (archive, 10);
    let mut r = Roller::new(PartStore::from_store(memory.clone(), "memory://v").unwrap(), s);
    let now = Instant::now();
    r.assign(0, Bounds { committed: None, low: NextOffset(0), high: NextOffset(1 << 40) }, now).unwrap();
    for (o, v) in &log.records[..log.records.len() - tail] {
        r.record(0, Offset(*o), decode(Some(v)), now + Duration::from_millis(1)).unwrap();
    }
    assert!(r.drain(0, now).unwrap());
    (memory.clone(), PartStore::from_store(memory, "memory://v").unwrap())
}

fn check(store: &PartStore, log: &Log) -> Report {
    verify(store, "posts.labelled", log).unwrap()
}

fn problems(r: &Report) -> String {
    assert!(!r.ok);
    r.partitions.iter().flat_map(|p| p.problems.clone()).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_was_rolled_up_right_is_found_right() {
    for archive in [true, false] {
        let log = log(75);
        let (_, store) = rolled(&log, 5, archive);
        let r = check(&store, &log);
        assert!(r.ok, "{r:?}");
        let p = &r.partitions[0];
        assert_eq!((p.parts, p.first, p.unsealed), (7, Some(0), 5));
        assert_eq!((p.posts_in_parts, p.posts_in_log, p.skipped), (63, 63, 7));
        assert!(r.keys > 10);
    }
}

#[test]
fn a_changed_log_shows_in_counts_and_sums() {
    let mut l = log(40);
    let (_, store) = rolled(&l, 0, true);
    l.records[7].1 = serde_json::to_vec(&post(8)).unwrap();
    let r = check(&store, &l);
    assert!(!r.ok && r.differing_keys > 0 && r.differences.iter().any(|d| d.column == "posts"), "{r:?}");
    let mut l = log(40);
    l.records.remove(12);
    let text = problems(&check(&store, &l));
    assert!(text.contains("the log has"), "{text}");
}

#[test]
fn broken_parts_are_named() {
    let l = log(40);
    let delete = |memory: &Arc<InMemory>, key: String| {
        futures::executor::block_on(memory.delete(&Path::from(key))).unwrap()
    };
    let second = PartId { kind: Kind::Rollups, partition: 0, first: NextOffset(20) };
    // A rollup part is missing beside its posts part.
    let (memory, store) = rolled(&l, 0, true);
    delete(&memory, second.key());
    assert!(problems(&check(&store, &l)).contains("part-00000000000000000020.parquet was there and is gone"));
    // It holds other sums.
    store
        .put(&second, {
            let (f, mut rows) = decode_rollup(
                store.read(&second.of_kind(Kind::Posts)).unwrap().map(|_| rollup_part(0, 20, 29)).unwrap(),
            )
            .unwrap();
            rows[0].1.score_units += 1;
            let mut head = crate::sink::parquet::Head::from(&f);
            head.next = NextOffset(40);
            crate::sink::parquet::encode_rollup(&head, &rows).unwrap()
        })
        .unwrap();
    assert!(problems(&check(&store, &l)).contains("not the rollup's"));
    // Both are missing: a gap.
    let (memory, store) = rolled(&l, 0, true);
    delete(&memory, second.key());
    delete(&memory, second.of_kind(Kind::Posts).key());
    assert!(problems(&check(&store, &l)).contains("gap in the chain"));
}

#[test]
fn a_last_part_whose_rollup_is_still_to_come_is_not_sealed_yet() {
    let l = log(40);
    let (memory, store) = rolled(&l, 0, true);
    let last = *store.list(Kind::Rollups, 0).unwrap().last().unwrap();
    let id = PartId { kind: Kind::Rollups, partition: 0, first: last };
    futures::executor::block_on(memory.delete(&Path::from(id.key()))).unwrap();
    let r = check(&store, &l);
    assert!(r.ok, "{r:?}");
    assert_eq!((r.partitions[0].unsealed, r.partitions[0].parts, r.partitions[0].tip), (10, 3, Some(last.0)));
}

#[test]
fn parts_older_than_the_log_are_not_held_against_it() {
    let mut l = log(60);
    let (_, store) = rolled(&l, 0, true);
    l.low = 25;
    l.records.retain(|(o, _)| *o >= 25);
    let r = check(&store, &l);
    assert!(r.ok, "{r:?}");
    assert_eq!(r.partitions[0].parts_older_than_log, 2);
}
