//! Two machines on one partition, one of them often a zombie, a store that loses replies, kills at every
//! step boundary; and an oracle that knows nothing of the code: parts against a recount of the log.

#![allow(clippy::unwrap_used)]

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use bytes::Bytes;

use super::*;
use crate::{
    rollup::{
        part::Archived,
        store::StoreError,
        testing::post,
        window::{Deltas, Key, Sums},
    },
    sink::parquet::{Footer, Tail, decode_posts, decode_rollup, read_tail},
};

const LOW: i64 = 3;
type Objects = Rc<RefCell<BTreeMap<PartId, Bytes>>>;

/// SplitMix64: seeds give the same run for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// The store does nothing and says so.
    Refused,
    /// The store does it and the answer is lost.
    ReplyLost,
    /// A put is answered with "exists" although nothing is there, as S3 does while another put is under way.
    Conflict,
    /// The process dies before the operation …
    KilledBefore,
    /// … or right after it.
    KilledAfter,
}

/// A store with faults, and the process's death.
struct Faulty {
    objects: Objects,
    plan: Box<dyn Fn(&'static str) -> Fault>,
    dead: Rc<Cell<bool>>,
}

impl Faulty {
    fn run<T>(
        &self,
        operation: &'static str,
        f: impl FnOnce(&mut BTreeMap<PartId, Bytes>) -> T,
    ) -> Result<T, StoreError> {
        let failed = || {
            let (object, message) = ("sim".to_owned(), "simulated".to_owned());
            Err(StoreError::Retry { operation, object, message })
        };
        let fault = if self.dead.get() { Fault::KilledBefore } else { (self.plan)(operation) };
        self.dead.set(self.dead.get() || matches!(fault, Fault::KilledBefore | Fault::KilledAfter));
        match fault {
            Fault::Refused | Fault::KilledBefore => failed(),
            Fault::None | Fault::Conflict => Ok(f(&mut self.objects.borrow_mut())),
            Fault::ReplyLost | Fault::KilledAfter => {
                f(&mut self.objects.borrow_mut());
                failed()
            }
        }
    }
}

impl Parts for Faulty {
    fn put(&self, id: &PartId, bytes: Bytes) -> Result<Put, StoreError> {
        if !self.dead.get() && (self.plan)("conflict") == Fault::Conflict {
            return Ok(Put::Exists);
        }
        self.run("put", |o| match o.entry(*id) {
            std::collections::btree_map::Entry::Occupied(_) => Put::Exists,
            std::collections::btree_map::Entry::Vacant(v) => {
                v.insert(bytes);
                Put::Created
            }
        })
    }
    fn footer(&self, id: &PartId) -> Result<Option<Footer>, StoreError> {
        let tail = self.run("read the footer", |o| o.get(id).cloned())?;
        Ok(tail.map(|b| match read_tail(&b).unwrap() {
            Tail::Footer(f) => *f,
            Tail::Need(_) => panic!("the whole file was given"),
        }))
    }
    fn read(&self, id: &PartId) -> Result<Option<Bytes>, StoreError> {
        self.run("read", |o| o.get(id).cloned())
    }
    fn list(&self, kind: Kind, partition: i32) -> Result<Vec<NextOffset>, StoreError> {
        self.run("list", |o| {
            o.keys().filter(|k| (k.kind, k.partition) == (kind, partition)).map(|k| k.first).collect()
        })
    }
    fn name(&self, id: &PartId) -> String {
        id.key()
    }
}

/// The log of one partition and the group's offset.
struct World {
    log: Vec<(Offset, Option<Labelled>)>,
    committed: Option<NextOffset>,
    objects: Objects,
    now: Instant,
    archive: bool,
}

/// One instance: machine, fetch position (`None`: paused), and whether it was killed.
struct Member {
    roller: Roller<Faulty>,
    position: Option<i64>,
    dead: Rc<Cell<bool>>,
}

impl World {
    fn new(seed: u64, posts: usize, archive: bool) -> Self {
        let mut dice = Dice(seed);
        let mut at = LOW;
        let log = (0..posts)
            .map(|_| {
                at += 1 + if dice.one_in(4) { dice.below(5) as i64 } else { 0 };
                (Offset(at), (!dice.one_in(15)).then(|| post(at)))
            })
            .collect();
        Self { log, committed: None, objects: Objects::default(), now: Instant::now(), archive }
    }

    fn high(&self) -> NextOffset {
        self.log.last().map_or(NextOffset(LOW), |(o, _)| o.next())
    }

    fn start(&mut self, plan: Box<dyn Fn(&'static str) -> Fault>) -> Member {
        let mut m = self.idle(plan);
        m.roller.assign(0, self.bounds(), self.now).unwrap();
        m
    }

    fn bounds(&self) -> Bounds {
        Bounds { committed: self.committed, low: NextOffset(LOW), high: self.high() }
    }

    /// Without a partition.
    fn idle(&self, plan: Box<dyn Fn(&'static str) -> Fault>) -> Member {
        let dead = Rc::new(Cell::new(false));
        let parts = Faulty { objects: self.objects.clone(), plan, dead: dead.clone() };
        let seconds = Duration::from_secs;
        let rules = SealRules { records: 7, age: seconds(60), idle: seconds(15), bytes: 1 << 20 };
        let settings = Settings {
            topic: "posts.labelled".into(),
            window_s: 60,
            archive: self.archive,
            rules,
            total_bytes: 1 << 24,
        };
        Member { roller: Roller::new(parts, settings), position: None, dead }
    }

    /// Carries out what the machine asked for; `lose` decides whether a commit is lost, `kill` whether the
    /// process dies before it.
    fn obey(&mut self, m: &mut Member, mut lose: impl FnMut() -> bool, mut kill: impl FnMut() -> bool) {
        for c in m.roller.take_commands() {
            if m.dead.get() || kill() {
                m.dead.set(true);
                return;
            }
            match c {
                Command::Commit { next, .. } if !lose() => self.committed = Some(next),
                Command::Commit { .. } => {}
                Command::Pause { .. } => m.position = None,
                Command::Start { at, .. } => m.position = Some(at.0),
                Command::Bounds { .. } => panic!("the log's end is never behind the chain here"),
            }
        }
    }

    /// Gives the member its next records, at most `n`.
    fn deliver(&mut self, m: &mut Member, n: usize) {
        for _ in 0..n {
            let Some(position) = m.position else { return };
            let i = self.log.partition_point(|(o, _)| o.0 < position);
            let Some((offset, value)) = self.log.get(i).cloned() else { return };
            m.position = Some(offset.next().0);
            let value = value.ok_or(Undecodable::Tombstone);
            m.roller.record(0, offset, value, self.now).unwrap();
            if !m.roller.commands.is_empty() {
                return;
            }
        }
    }

    /// A healthy instance finishes the work.
    fn heal(&mut self) {
        let mut m = self.start(Box::new(|_| Fault::None));
        loop {
            self.obey(&mut m, || false, || false);
            let before = m.position;
            self.deliver(&mut m, 100);
            if m.position == before && m.roller.commands.is_empty() {
                break;
            }
        }
        assert!(m.roller.drain(0, self.now).unwrap());
        self.obey(&mut m, || false, || false);
        assert_eq!(self.committed, Some(self.high()), "everything is committed in the end");
    }

    /// The oracle.
    fn judge(&self, what: &str) {
        let objects = self.objects.borrow();
        let of = |kind: Kind| objects.iter().filter(move |(id, _)| id.kind == kind);
        let mut at = NextOffset(LOW);
        let mut total = Deltas::new(60);
        for (id, bytes) in of(Kind::Rollups) {
            let (f, rows) = decode_rollup(bytes.clone()).unwrap();
            assert_eq!((id.first, f.first), (at, at), "{what}: gap or overlap");
            at = f.next;
            rows.iter().for_each(|(k, s)| total.merge(k, s));
        }
        assert_eq!(at, self.high(), "{what}: the chain ends where the log does");
        let posts: Vec<Archived> = self
            .log
            .iter()
            .filter_map(|(offset, p)| p.clone().map(|post| Archived { offset: *offset, post }))
            .collect();
        assert_eq!(total.sorted(), recount(&posts), "{what}: sums");
        if self.archive {
            let mut archived = Vec::new();
            for (id, bytes) in of(Kind::Posts) {
                let (f, rows) = decode_posts(bytes.clone()).unwrap();
                let mut d = Deltas::new(f.window_s);
                rows.iter().for_each(|a| d.add(&a.post));
                let derived = encode_rollup(&Head::from(&f), &d.sorted()).unwrap();
                assert_eq!(
                    derived,
                    objects[&id.of_kind(Kind::Rollups)],
                    "{what}: a rollup part is a function of its posts"
                );
                archived.extend(rows);
            }
            assert_eq!(archived, posts, "{what}: archive");
        }
    }
}

/// The plain way to the same sums.
fn recount(posts: &[Archived]) -> Vec<(Key, Sums)> {
    let mut by_key: BTreeMap<Key, Sums> = BTreeMap::new();
    for Archived { post: p, .. } in posts {
        for brand in std::iter::once("*").chain(p.brands.iter().map(|b| &**b)) {
            let key = Key {
                window_start: crate::record::Timestamp(p.created_at.0.div_euclid(60_000_000) * 60_000_000),
                brand: brand.into(),
                channel: p.channel.as_str().into(),
                lang: p.lang.as_str().into(),
                model: p.model.name.clone(),
                model_hash: p.model.hash.clone(),
            };
            by_key.entry(key).or_default().add(&Sums::of(p));
        }
    }
    by_key.into_iter().collect()
}

#[test]
fn kills_zombies_and_lost_replies_change_no_sum() {
    let mut kills = 0;
    let mut adopted = 0;
    for seed in 0..100u64 {
        let mut w = World::new(seed, 45, seed % 3 != 0);
        let dice = Rc::new(RefCell::new(Dice(seed ^ 0xABCD)));
        let mut members: [Option<Member>; 2] = [None, None];
        for _ in 0..120 {
            let which = dice.borrow_mut().below(2) as usize;
            let Some(mut m) = members[which].take() else {
                let d = dice.clone();
                let plan = move |_: &'static str| match d.borrow_mut().below(25) {
                    0 => Fault::Refused,
                    1 => Fault::ReplyLost,
                    2 => Fault::KilledBefore,
                    3 => Fault::KilledAfter,
                    4 => Fault::Conflict,
                    _ => Fault::None,
                };
                members[which] = Some(w.start(Box::new(plan)));
                continue;
            };
            w.now += Duration::from_millis(dice.borrow_mut().below(9000));
            let action = dice.borrow_mut().below(10);
            let mut gone = action == 9;
            match action {
                0 | 1 => m.roller.tick(w.now).unwrap(),
                2 => {
                    // A revoke: drained, or given up as it is when the store does not answer.
                    m.roller.drain(0, w.now).unwrap();
                    gone = true;
                }
                3 => {}
                n => w.deliver(&mut m, n as usize),
            }
            let (a, b) = (dice.clone(), dice.clone());
            w.obey(&mut m, move || a.borrow_mut().one_in(5), move || b.borrow_mut().one_in(12));
            adopted += m
                .roller
                .take_notices()
                .iter()
                .filter(|n| matches!(n, Notice::Sealed { outcome: Outcome::Adopted, .. }))
                .count();
            if m.dead.get() {
                kills += 1;
            } else if !gone {
                members[which] = Some(m);
            }
        }
        w.heal();
        w.judge(&format!("seed {seed}"));
    }
    assert!(kills > 200 && adopted > 100, "the faults happened: {kills} kills, {adopted} adoptions");
}

/// One run with a single fault at operation `k`, for every `k` there is and every fault, also at commits.
#[test]
fn a_fault_at_every_step_boundary_changes_no_sum() {
    let mut runs = 0;
    for archive in [true, false] {
        let faults =
            [Fault::Refused, Fault::ReplyLost, Fault::Conflict, Fault::KilledBefore, Fault::KilledAfter];
        for fault in faults {
            for k in 0.. {
                let mut w = World::new(7, 25, archive);
                let steps = Rc::new(Cell::new(0));
                let hit = Rc::new(Cell::new(false));
                let next_step = {
                    let (steps, hit) = (steps.clone(), hit.clone());
                    move || {
                        steps.set(steps.get() + 1);
                        let now = steps.get() == k + 1;
                        hit.set(hit.get() || now);
                        now
                    }
                };
                let in_store = next_step.clone();
                let mut m = w.start(Box::new(move |_| if in_store() { fault } else { Fault::None }));
                for _ in 0..60 {
                    w.deliver(&mut m, 3);
                    w.now += Duration::from_secs(2);
                    m.roller.tick(w.now).unwrap();
                    let at_commit = next_step.clone();
                    let killed = matches!(fault, Fault::KilledBefore | Fault::KilledAfter);
                    w.obey(&mut m, || false, move || killed && at_commit());
                    if m.dead.get() {
                        break;
                    }
                }
                drop(m);
                w.heal();
                w.judge(&format!("archive {archive}, operation {k}"));
                runs += 1;
                if !hit.get() {
                    break;
                }
            }
        }
    }
    assert!(runs > 80, "{runs} runs");
}

#[test]
fn a_rollup_part_lost_between_the_two_writes_is_derived_again() {
    let mut w = World::new(1, 20, true);
    w.heal();
    let lost: Vec<PartId> =
        w.objects.borrow().keys().filter(|id| id.kind == Kind::Rollups).copied().collect();
    let before = w.objects.borrow().clone();
    assert!(lost.len() > 1);
    w.objects.borrow_mut().retain(|id, _| id.kind == Kind::Posts);
    drop(w.start(Box::new(|_| Fault::None)));
    assert_eq!(*w.objects.borrow(), before);
}

#[test]
fn a_shorter_log_or_a_missing_part_stops_with_the_reason() {
    let mut w = World::new(2, 30, true);
    w.heal();
    let mut m = w.start(Box::new(|_| Fault::None));
    let bounds = Bounds { committed: None, low: NextOffset(0), high: NextOffset(4) };
    // The end of the log may be older news than the chain: it is asked for once more.
    m.roller.assign(0, bounds, w.now).unwrap();
    assert_eq!(m.roller.take_commands().last(), Some(&Command::Bounds { partition: 0 }));
    assert_eq!((m.roller.waiting(), m.roller.open_parts().count()), (1, 0));
    let e = m.roller.assign(0, bounds, w.now).unwrap_err();
    assert!(e.to_string().contains("created again"), "{e}");
    let mut m = w.start(Box::new(|_| Fault::None));
    m.roller.assign(0, bounds, w.now).unwrap();
    m.roller.assign(0, w.bounds(), w.now).unwrap();
    assert_eq!(m.roller.waiting(), 0);
    let second = w.objects.borrow().keys().map(|id| id.first).nth(1).unwrap();
    w.objects.borrow_mut().retain(|id, _| id.first != second);
    let bounds = Bounds { committed: None, low: NextOffset(0), high: w.high() };
    let e = m.roller.assign(0, bounds, w.now).unwrap_err();
    assert!(e.to_string().contains("gap in the chain"), "{e}");
}

#[test]
fn records_wait_while_the_store_is_down_and_none_is_lost() {
    let mut w = World::new(3, 10, true);
    let down = Rc::new(Cell::new(true));
    let plan = {
        let down = down.clone();
        move |_: &'static str| if down.get() { Fault::Refused } else { Fault::None }
    };
    let mut m = w.start(Box::new(plan));
    w.obey(&mut m, || false, || false);
    assert_eq!((m.position, m.roller.waiting()), (None, 1), "its position is not known yet");
    m.roller.record(0, Offset(5), Ok(post(5)), w.now).unwrap();
    assert!(m.roller.take_notices().iter().any(|n| matches!(n, Notice::StoreDown { .. })));
    down.set(false);
    m.roller.tick(w.now).unwrap();
    assert_eq!(m.position, None, "not before its back-off has passed");
    w.now += Duration::from_secs(1);
    m.roller.tick(w.now).unwrap();
    w.obey(&mut m, || false, || false);
    assert_eq!(m.position, Some(LOW));
    down.set(true);
    w.deliver(&mut m, 7);
    w.obey(&mut m, || false, || false);
    assert_eq!((m.position, m.roller.waiting()), (None, 1));
    down.set(false);
    w.now += Duration::from_secs(1);
    m.roller.tick(w.now).unwrap();
    w.obey(&mut m, || false, || false);
    assert_eq!(m.roller.waiting(), 0);
    assert!(m.roller.take_notices().iter().any(|n| matches!(n, Notice::StoreUp { partition: 0 })));
    w.heal();
    w.judge("after an outage");
}

#[test]
fn a_newer_schema_stops_the_stage_and_is_not_passed_over() {
    let mut w = World::new(4, 10, true);
    let mut m = w.start(Box::new(|_| Fault::None));
    w.deliver(&mut m, 3);
    let at = m.roller.open_parts().next().unwrap().next();
    let found = Labelled::SCHEMA + 1;
    let newer = |r: &mut Roller<Faulty>, offset| {
        r.record(0, Offset(offset), Err(Undecodable::Schema { found }), w.now).err().map(|e| e.to_string())
    };
    assert_eq!(newer(&mut m.roller, at.0 - 1), None, "counted already");
    let e = newer(&mut m.roller, at.0).unwrap();
    assert!(e.contains(&format!("posts.labelled[0] offset {at}: schema version {found}")), "{e}");
    assert_eq!(m.roller.open_parts().next().unwrap().next(), at);
    w.heal();
    w.judge("after a newer instance");
}

#[test]
fn an_answer_of_exists_without_a_part_is_tried_again() {
    for archive in [true, false] {
        let mut w = World::new(5, 10, archive);
        let conflict = Rc::new(Cell::new(true));
        let seen = conflict.clone();
        let plan = move |_: &'static str| if seen.get() { Fault::Conflict } else { Fault::None };
        let mut m = w.start(Box::new(plan));
        w.obey(&mut m, || false, || false);
        w.deliver(&mut m, 7);
        assert_eq!((m.roller.waiting(), w.objects.borrow().len()), (1, 0));
        let notices = m.roller.take_notices();
        let down =
            |n: &&Notice| matches!(n, Notice::StoreDown { error, .. } if error.contains("does not show"));
        assert_eq!(notices.iter().filter(down).count(), 1, "{notices:?}");
        conflict.set(false);
        w.now += Duration::from_secs(1);
        m.roller.tick(w.now).unwrap();
        assert_eq!(m.roller.waiting(), 0);
        w.heal();
        w.judge("after a conflict");
    }
}

#[test]
fn parts_of_an_instance_with_the_other_archive_setting_are_adopted() {
    for archive in [true, false] {
        let mut w = World::new(6, 10, archive);
        let mut m = w.start(Box::new(|_| Fault::None));
        w.obey(&mut m, || false, || false);
        w.archive = !archive;
        let mut zombie = w.start(Box::new(|_| Fault::None));
        w.obey(&mut zombie, || false, || false);
        w.deliver(&mut zombie, 4);
        assert!(zombie.roller.drain(0, w.now).unwrap());
        let tip = zombie.roller.open_parts().next().unwrap().first();
        let parts = w.objects.borrow().len();
        w.deliver(&mut m, 7);
        assert_eq!(m.roller.open_parts().next().unwrap().first(), tip, "archive {archive}");
        assert_eq!(w.objects.borrow().len(), parts, "nothing beside it");
        w.obey(&mut m, || false, || false);
        w.heal();
        w.archive = false;
        w.judge("mixed");
    }
}

/// The caller has to poll the broker between two waits for a store that hangs.
#[test]
fn a_tick_ends_at_the_first_failure_and_the_next_begins_after_it() {
    let w = World::new(8, 10, true);
    let mut m = w.idle(Box::new(|_| Fault::Refused));
    for p in 0..3 {
        m.roller.assign(p, w.bounds(), w.now).unwrap();
    }
    m.roller.take_notices();
    let mut failed = Vec::new();
    for tick in 1..=3 {
        m.roller.tick(w.now + Duration::from_secs(60 * tick)).unwrap();
        failed.extend(m.roller.take_notices().into_iter().map(|n| match n {
            Notice::StoreDown { partition, .. } => partition,
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(failed, [0, 1, 2]);
}

#[test]
fn a_group_that_has_read_and_a_store_without_parts_are_told() {
    let mut w = World::new(9, 10, true);
    let told = |w: &mut World| {
        let mut m = w.start(Box::new(|_| Fault::None));
        m.roller.take_notices().iter().any(|n| matches!(n, Notice::NoParts { partition: 0, .. }))
    };
    assert!(!told(&mut w), "nothing committed");
    w.committed = Some(NextOffset(LOW));
    assert!(!told(&mut w), "what the first start commits");
    w.committed = Some(NextOffset(LOW + 1));
    assert!(told(&mut w));
}

#[test]
fn waits_double_up_to_their_bound() {
    assert_eq!(back_off(1, 1.0), Duration::from_millis(200));
    assert_eq!(back_off(2, 0.0), Duration::from_millis(200));
    assert_eq!(back_off(4, 1.0), Duration::from_millis(1600));
    assert_eq!(back_off(u32::MAX, 1.0), Duration::from_secs(30));
}
