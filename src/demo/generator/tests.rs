#![allow(clippy::unwrap_used)]
use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::*;
use crate::{
    brands::BrandMatcher,
    decode::{Decoded, Decoder},
    record::{Offset, Position, Post, RawRecord, TopicPartition},
};

const START: Timestamp = Timestamp(1_767_225_600_000_000);

fn hours(h: f64) -> Timestamp {
    Timestamp(START.0 + (h * 3.6e9) as i64)
}

fn day() -> Vec<GeneratedRecord> {
    Generator::new(7, START, 0.25).until(hours(24.0))
}

/// What each record of a day decodes to.
fn decoded() -> Vec<(GeneratedRecord, Decoded)> {
    let decoder = Decoder::new(&config::Config::defaults().decode).unwrap();
    let position = Position { partition: TopicPartition::new("t", 0), offset: Offset(0) };
    let decode = |r: &GeneratedRecord| {
        decoder.decode(&RawRecord {
            position: position.clone(),
            key: None,
            payload: Some(Bytes::from(r.payload.clone())),
            timestamp: Some(r.created_at),
        })
    };
    day().into_iter().map(|r| (r.clone(), decode(&r))).collect()
}

fn posts() -> Vec<Post> {
    let post = |(_, d)| if let Decoded::Post(p) = d { Some(p) } else { None };
    decoded().into_iter().filter_map(post).collect()
}

#[test]
fn every_record_becomes_what_it_is_meant_to_become() {
    let mut kinds = HashMap::new();
    for (record, decoded) in decoded() {
        *kinds.entry(format!("{:?}", record.kind)).or_insert(0) += 1;
        match (record.kind, decoded) {
            (Kind::Post, Decoded::Post(p)) => assert_eq!(p.created_at, record.created_at),
            (Kind::Broken, Decoded::Reject { .. }) | (Kind::NoPost, Decoded::Skip("delete")) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(kinds["Post"] > 20_000 && kinds["Broken"] > 50 && kinds["NoPost"] > 50, "{kinds:?}");
}

#[test]
fn the_same_seed_gives_the_same_records_however_they_are_asked_for() {
    let mut bit_by_bit = Generator::new(7, START, 0.25);
    let pieces: Vec<_> = (1..=48).flat_map(|h| bit_by_bit.until(hours(f64::from(h) / 2.0))).collect();
    assert_eq!(pieces, day());
    assert_ne!(Generator::new(8, START, 0.25).until(hours(24.0)), pieces);
    assert!(pieces.windows(2).all(|w| w[0].created_at <= w[1].created_at));
}

#[test]
fn a_day_has_a_rhythm_repeats_and_many_distinct_texts() {
    let texts: Vec<String> = posts().into_iter().map(|p| p.text).collect();
    let distinct: HashSet<&String> = texts.iter().collect();
    assert!(distinct.len() > 8_000, "{} distinct", distinct.len());
    assert!(
        distinct.len() * 100 < texts.len() * 93,
        "{} of {} repeat",
        texts.len() - distinct.len(),
        texts.len()
    );
    assert!(texts.iter().all(|t| !t.contains(['{', '}'])), "a slot is left open");
    let g = Generator::new(7, START, 1.0);
    assert!(g.rate_at(hours(4.0)) < 0.5 && g.rate_at(hours(20.0)) > 1.2);
}

#[test]
fn the_crisis_is_seen_in_its_brand_and_names_its_cause() {
    let matcher = BrandMatcher::new(&brands()).unwrap();
    let mut by_hour = [0; 24];
    let mut cause = 0;
    for p in posts() {
        if matcher.find(&p.text).iter().any(|b| &**b == "Aurelo") {
            by_hour[((p.created_at.0 - START.0) / 3_600_000_000) as usize] += 1;
            cause += usize::from(p.text.to_lowercase().contains("battery") || p.text.contains("Recall"));
        }
    }
    assert!(by_hour[14] > 2 * by_hour[11] && by_hour[14] > 2 * by_hour[18], "{by_hour:?}");
    assert!(cause > by_hour[14] / 4, "{cause} name the cause");
}

#[test]
fn nearly_all_posts_about_brands_are_found_by_their_names() {
    let matcher = BrandMatcher::new(&brands()).unwrap();
    let posts = posts();
    let found = posts.iter().filter(|p| !matcher.find(&p.text).is_empty()).count();
    assert!(found * 100 > posts.len() * 80, "{found} of {}", posts.len());
}
