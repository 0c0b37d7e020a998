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
        part::{Archived, SealRules},
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

#[path = "simulation_cases.rs"]
mod cases;
