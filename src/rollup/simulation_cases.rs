//! Single faults in the simulated world, each with what must come of it.

use super::*;

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
