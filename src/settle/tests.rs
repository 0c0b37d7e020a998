#![allow(clippy::unwrap_used)]

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use proptest::prelude::*;

use super::*;
use crate::record::{DeadLetter, Position, RawRecord, Stage};

const PARTITIONS: i32 = 3;
const RECORDS: i64 = 40;

fn p(n: i32) -> TopicPartition {
    TopicPartition::new("posts", n)
}

/// Every seventh record is no post; all others are produced (as dead letters: the settler does not care).
fn skipped(offset: i64) -> bool {
    offset % 7 == 3
}

fn settled(partition: i32, offset: i64) -> Settled {
    let position = Position { partition: p(partition), offset: Offset(offset) };
    let record = RawRecord { position, key: None, payload: None, timestamp: None };
    if skipped(offset) {
        return Settled::Skipped { record, reason: "delete" };
    }
    Settled::Dead(DeadLetter { record, stage: Stage::Decode, reason: "not_json", message: String::new() })
}

/// The broker as its `read_committed` readers and its group coordinator know it.
#[derive(Default)]
struct Broker {
    committed: BTreeMap<i32, i64>,
    visible: Vec<(i32, i64)>,
    open: bool,
    sent: Vec<(i32, i64)>,
    offsets: NextOffsets,
    undecided: bool,
    /// Goes up with every rebalance; a commit of an earlier generation is refused.
    generation: u32,
}

impl Broker {
    fn apply(&mut self) {
        self.visible.append(&mut self.sent);
        for (tp, next) in std::mem::take(&mut self.offsets) {
            self.committed.insert(tp.partition, next.0);
        }
        self.open = false;
    }

    fn discard(&mut self) {
        self.sent.clear();
        self.offsets.clear();
        self.open = false;
    }

    /// Another member gets `partition` and delivers up to two records. It waits for offsets that are pending
    /// in a transaction, as every reader of committed offsets does.
    fn rebalance(&mut self, partition: i32) -> bool {
        if !self.offsets.is_empty() || self.undecided {
            return false;
        }
        self.generation += 1;
        let from = self.committed.get(&partition).copied().unwrap_or(0);
        let to = RECORDS.min(from + 2);
        self.visible.extend((from..to).filter(|o| !skipped(*o)).map(|o| (partition, o)));
        self.committed.insert(partition, to);
        true
    }

    fn check(&self) {
        for partition in 0..PARTITIONS {
            let end = self.committed.get(&partition).copied().unwrap_or(0);
            let mut seen: Vec<i64> =
                self.visible.iter().filter(|(q, _)| *q == partition).map(|(_, o)| *o).collect();
            let order = seen.clone();
            seen.sort_unstable();
            assert_eq!(seen, order, "produced in offset order");
            let expected: Vec<i64> = (0..end).filter(|o| !skipped(*o)).collect();
            assert_eq!(seen, expected, "partition {partition}, committed {end}");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Script {
    Ok,
    Retry,
    Abort,
    /// The call was carried out and its answer lost.
    UnknownDone,
    /// The call never arrived, nor an answer.
    UnknownLost,
    Fenced,
    /// The call may be made again, and meanwhile this partition has gone to another member.
    Moved(i32),
}

struct Fake {
    assignments: Arc<Assignments>,
    held: Option<u32>,
    broker: Rc<RefCell<Broker>>,
    script: Rc<RefCell<VecDeque<Script>>>,
}

impl Fake {
    fn rebalance(&self, broker: &mut Broker, n: i32) {
        if broker.rebalance(n) {
            self.assignments.remove([&p(n)]);
        }
    }

    fn step(&self, step: &'static str, apply: impl Fn(&mut Broker)) -> Result<(), Fault> {
        let mut broker = self.broker.borrow_mut();
        assert!(!broker.undecided || step == "reset", "{step} on a producer whose commit is undecided");
        let script = self.script.borrow_mut().pop_front().unwrap_or(Script::Ok);
        let class = match script {
            Script::Ok => {
                apply(&mut broker);
                return Ok(());
            }
            Script::Retry => Class::Retry,
            Script::Moved(n) => {
                self.rebalance(&mut broker, n);
                Class::Retry
            }
            Script::Abort => Class::Abortable,
            Script::Fenced => Class::Fatal,
            Script::UnknownDone | Script::UnknownLost => {
                if script == Script::UnknownDone {
                    apply(&mut broker);
                }
                broker.undecided = true;
                Class::Unknown
            }
        };
        Err(Fault { step, class, message: format!("{script:?}") })
    }
}

impl Output for Fake {
    fn begin(&mut self) -> Result<(), Fault> {
        self.step("begin", |b| {
            assert!(!b.open, "a transaction inside a transaction");
            b.open = true;
        })
    }

    fn send(&mut self, item: &Settled) -> Result<(), Fault> {
        let position = &item.record().position;
        self.step("send", |b| {
            assert!(b.open);
            b.sent.push((position.partition.partition, position.offset.0));
        })
    }

    fn hold_group(&mut self) -> Result<(), Fault> {
        let mut broker = self.broker.borrow_mut();
        let script = self.script.borrow_mut().pop_front();
        match script {
            Some(Script::Moved(n)) => self.rebalance(&mut broker, n),
            Some(Script::Abort) => {
                let message = "no membership".to_owned();
                return Err(Fault { step: "hold_group", class: Class::Abortable, message });
            }
            _ => {}
        }
        self.held = Some(broker.generation);
        Ok(())
    }

    fn send_offsets(&mut self, next: &NextOffsets) -> Result<(), Fault> {
        if self.held != Some(self.broker.borrow().generation) {
            let message = "illegal generation".to_owned();
            return Err(Fault { step: "send_offsets", class: Class::Abortable, message });
        }
        self.step("send_offsets", |b| {
            assert!(b.open);
            b.offsets.clone_from(next);
        })
    }

    fn commit(&mut self) -> Result<(), Fault> {
        self.step("commit", |b| {
            assert!(b.open);
            b.apply();
        })
    }

    fn abort(&mut self) -> Result<(), Fault> {
        self.step("abort", Broker::discard)
    }

    fn reset(&mut self) -> Result<(), Fault> {
        self.step("reset", |b| {
            b.discard();
            b.undecided = false;
        })
    }

    fn wait(&mut self, _: u32) {}
}

/// A whole stage in one thread: a source that obeys the epochs, windows in flight, the settler.
struct Stage1 {
    broker: Rc<RefCell<Broker>>,
    script: Rc<RefCell<VecDeque<Script>>>,
    assignments: Arc<Assignments>,
    settler: Settler<Fake>,
    position: BTreeMap<i32, i64>,
    flight: VecDeque<(SettledWindow, Stamps)>,
    now: Instant,
    seq: u64,
}

const POLICY: Policy =
    Policy { interval: Duration::from_millis(100), max_records: 9, attempts: 3, max_aborts: 8 };

impl Stage1 {
    fn start(broker: Rc<RefCell<Broker>>, script: Rc<RefCell<VecDeque<Script>>>) -> Self {
        let assignments = Arc::new(Assignments::default());
        // What a new producer of the same name does first.
        broker.borrow_mut().discard();
        broker.borrow_mut().undecided = false;
        let fake = Fake {
            assignments: assignments.clone(),
            held: None,
            broker: broker.clone(),
            script: script.clone(),
        };
        let settler = Settler::new(fake, assignments.clone(), POLICY, Arc::default());
        let mut s = Self {
            broker,
            script,
            assignments,
            settler,
            position: BTreeMap::new(),
            flight: VecDeque::new(),
            now: Instant::now(),
            seq: 0,
        };
        (0..PARTITIONS).for_each(|n| s.assign(n));
        s
    }

    fn committed(&self, partition: i32) -> Option<i64> {
        self.broker.borrow().committed.get(&partition).copied()
    }

    fn assign(&mut self, n: i32) {
        if !self.assignments.all().contains(&p(n)) {
            self.assignments.assign(p(n));
            self.position.insert(n, self.committed(n).unwrap_or(0));
        }
    }

    fn seek(&mut self) {
        for r in self.assignments.rewinds() {
            assert!(!self.broker.borrow().undecided, "the committed offsets are not known yet");
            let n = r.partition.partition;
            let to = self.committed(n).or(r.first.map(|o| o.0)).unwrap_or(0);
            self.position.insert(n, to);
            self.assignments.sought(&r);
        }
    }

    /// Polls up to `n` records of each partition into a window.
    fn poll(&mut self, n: usize) {
        let (mut items, mut stamps) = (Vec::new(), Stamps::new());
        for (&partition, position) in &mut self.position {
            for _ in 0..n {
                if *position == RECORDS {
                    break;
                }
                let offset = *position;
                *position += 1;
                if let Some(epoch) = self.assignments.stamp(&p(partition), Offset(offset)) {
                    stamps.insert(p(partition), epoch);
                    items.push(settled(partition, offset));
                }
            }
        }
        self.flight.push_back((SettledWindow { seq: self.seq, items }, stamps));
        self.seq += 1;
    }

    fn settle(&mut self) -> Result<(), Stop> {
        let Some((window, stamps)) = self.flight.pop_front() else { return Ok(()) };
        self.settler.settle(&window, &stamps, self.now)
    }

    fn step(&mut self, op: &Op) -> Result<(), Stop> {
        match op {
            Op::Poll(n) => self.poll(*n),
            Op::Settle => self.settle()?,
            Op::Tick => {
                self.now += Duration::from_millis(60);
                self.settler.cut_if_due(self.now)?;
            }
            Op::Seek => self.seek(),
            Op::Lost(n) => self.assignments.remove([&p(*n)]),
            Op::Revoke(n) => {
                self.assignments.close([&p(*n)]);
                while !self.flight.is_empty() {
                    self.settle()?;
                }
                self.settler.cut()?;
                self.assignments.remove([&p(*n)]);
            }
            Op::Assign(n) => self.assign(*n),
            Op::Kill => {
                *self = Self::start(self.broker.clone(), self.script.clone());
            }
        }
        Ok(())
    }

    fn step_or_restart(&mut self, op: &Op) {
        match self.step(op) {
            Ok(()) => {}
            Err(e @ Stop::OutOfOrder { .. }) => panic!("{e}"),
            Err(_) => *self = Self::start(self.broker.clone(), self.script.clone()),
        }
        self.broker.borrow().check();
    }
}

#[derive(Clone, Debug)]
enum Op {
    Poll(usize),
    Settle,
    Tick,
    Seek,
    Lost(i32),
    Revoke(i32),
    Assign(i32),
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    let partition = 0..PARTITIONS;
    prop_oneof![
        8 => (1usize..6).prop_map(Op::Poll),
        8 => Just(Op::Settle),
        5 => Just(Op::Tick),
        5 => Just(Op::Seek),
        1 => partition.clone().prop_map(Op::Lost),
        1 => partition.clone().prop_map(Op::Revoke),
        3 => partition.prop_map(Op::Assign),
        1 => Just(Op::Kill),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    prop_oneof![
        30 => Just(Script::Ok),
        3 => Just(Script::Retry),
        3 => Just(Script::Abort),
        2 => Just(Script::UnknownDone),
        2 => Just(Script::UnknownLost),
        1 => Just(Script::Fenced),
        3 => (0..PARTITIONS).prop_map(Script::Moved),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// After every step: what readers see of a partition is its committed prefix, each offset once, in order.
    /// And once the faults end, everything is delivered.
    #[test]
    fn offsets_committed_are_a_prefix_and_outputs_are_seen_once(
        ops in prop::collection::vec(op(), 1..120),
        script in prop::collection::vec(script(), 0..400),
    ) {
        let broker = Rc::new(RefCell::new(Broker::default()));
        let script = Rc::new(RefCell::new(script.into_iter().collect::<VecDeque<_>>()));
        let mut stage = Stage1::start(broker.clone(), script.clone());
        for op in &ops {
            stage.step_or_restart(op);
        }
        script.borrow_mut().clear();
        for _ in 0..200 {
            (0..PARTITIONS).for_each(|n| stage.assign(n));
            for op in [Op::Seek, Op::Poll(5), Op::Settle, Op::Settle, Op::Tick, Op::Tick] {
                stage.step_or_restart(&op);
            }
        }
        let all: BTreeMap<i32, i64> = (0..PARTITIONS).map(|n| (n, RECORDS)).collect();
        prop_assert_eq!(&broker.borrow().committed, &all);
    }
}

fn stage_with(script: &[Script]) -> Stage1 {
    let script = Rc::new(RefCell::new(script.iter().copied().collect()));
    Stage1::start(Rc::default(), script)
}

#[test]
fn a_retriable_step_is_repeated_within_its_bound() {
    let mut s = stage_with(&[Script::Retry, Script::Retry]);
    s.poll(1);
    s.settle().unwrap();
    s.settler.cut().unwrap();
    assert_eq!(s.committed(0), Some(1));
}

/// A membership fetched anew for the second try would be of the generation after the loss, and both members
/// would have delivered the record.
#[test]
fn a_partition_lost_between_the_check_and_the_second_try_is_not_committed() {
    use Script::{Moved, Ok as Fine};
    for moved in [vec![Fine, Fine, Fine, Fine, Moved(0)], vec![Fine, Fine, Fine, Moved(0)]] {
        let mut s = stage_with(&[vec![Fine], moved].concat());
        s.poll(1);
        s.settle().unwrap();
        s.settler.cut().unwrap();
        s.broker.borrow().check();
        assert_eq!((s.committed(0), s.committed(1)), (Some(2), None));
    }
}

#[test]
fn a_record_of_an_unannounced_partition_is_no_silent_loss() {
    let mut s = stage_with(&[]);
    s.poll(1);
    s.flight[0].1.remove(&p(1));
    assert!(matches!(s.settle(), Err(Stop::Unannounced { offset: Offset(0), window: 0, .. })));
    assert_eq!(s.committed(0), None);
}

/// At the end of the process one try of each step is all that the broker gets.
#[test]
fn nothing_is_repeated_once_the_source_is_over() {
    let mut s = stage_with(&[Script::Ok; 4]);
    s.poll(1);
    s.settle().unwrap();
    (0..PARTITIONS).for_each(|n| s.assignments.remove([&p(n)]));
    s.settler.over.store(true, Ordering::Release);
    // The membership, one abort, and nothing else: no second abort, no reset.
    *s.script.borrow_mut() = [Script::Ok, Script::Retry, Script::Fenced].into();
    s.settler.cut().unwrap();
    assert_eq!(*s.script.borrow(), [Script::Fenced]);
    assert_eq!(s.committed(0), None);
}

#[test]
fn a_fenced_producer_stops_and_commits_nothing() {
    let mut s = stage_with(&[Script::Ok, Script::Ok, Script::Fenced]);
    s.poll(1);
    assert!(matches!(s.settle(), Err(Stop::Fatal(f)) if f.step == "send"));
    assert_eq!(s.committed(0), None);
}

#[test]
fn transactions_that_never_succeed_stop_the_stage() {
    let mut s = stage_with(&[Script::Abort, Script::Ok].repeat(20));
    let mut ended = None;
    for _ in 0..20 {
        s.seek();
        s.poll(1);
        if let Err(e) = s.settle() {
            ended = Some(e);
            break;
        }
    }
    assert!(matches!(ended, Some(Stop::NoProgress { aborts: 8, .. })));
}

#[test]
fn a_transaction_is_cut_by_count_or_by_age() {
    let mut s = stage_with(&[]);
    s.poll(3);
    s.settle().unwrap();
    assert_eq!(s.committed(2), Some(3), "nine records are enough");
    s.poll(1);
    s.settle().unwrap();
    let due = s.settler.deadline().unwrap();
    s.settler.cut_if_due(due - Duration::from_nanos(1)).unwrap();
    assert_eq!(s.committed(2), Some(3));
    s.settler.cut_if_due(due).unwrap();
    assert_eq!(s.committed(2), Some(4));
    assert!(s.settler.deadline().is_none());
}
