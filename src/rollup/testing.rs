//! Labelled posts for tests.

use proptest::prelude::*;

use crate::record::{Label, Labelled, ModelId, Scores, SourceRef, Timestamp};

/// A post that `n` alone decides.
pub fn post(n: i64) -> Labelled {
    let pick = |k: i64, of: &[&str]| of[((n / k).unsigned_abs() % of.len() as u64) as usize].to_owned();
    let neg = ((n * 37).rem_euclid(101)) as f64 / 100.0;
    let scores = Scores::rounded([neg, (1.0 - neg) * 0.3, (1.0 - neg) * 0.7]);
    let label = match n.rem_euclid(4) {
        0 => Label::Negative,
        1 => Label::Neutral,
        2 => Label::Positive,
        _ => Label::Uncertain,
    };
    let brands: &[&str] = match n.rem_euclid(3) {
        0 => &[],
        1 => &["Acme"],
        _ => &["Acme", "Zed"],
    };
    Labelled {
        schema: Labelled::SCHEMA,
        id: format!("p{n}"),
        created_at: Timestamp(1_780_000_000_000_000 + n * 1_234_567),
        label,
        confidence: 0.75,
        scores,
        brands: brands.iter().map(|b| (*b).into()).collect(),
        lang: pick(2, &["en", "ja", "und"]),
        channel: pick(5, &["x", "bluesky"]),
        author: (n % 2 == 0).then(|| format!("user{}", n % 7)),
        reach: (n % 3 == 0).then_some(n.abs() * 10),
        text: (n % 5 != 0).then(|| format!("post number {n} ✓")),
        model: ModelId { name: "sentiment-en".into(), hash: "0123456789abcdef".into() },
        source: SourceRef { topic: "posts".into(), partition: 3, offset: n + 1000 },
    }
}

/// Posts of all kinds, hostile ones too.
pub fn any_post() -> impl Strategy<Value = Labelled> {
    (0i64..100, -3_000_000_000i64..3_000_000_000, prop::option::of(any::<i64>()), "\\PC{0,12}").prop_map(
        |(n, ms, reach, channel)| Labelled {
            created_at: Timestamp::from_millis(ms),
            reach,
            channel,
            ..post(n)
        },
    )
}

/// A rollup part of `partition` that covers `[first, next)`, one post an offset.
pub fn rollup_part(partition: i32, first: i64, next: i64) -> bytes::Bytes {
    let mut d = super::window::Deltas::new(60);
    (first..next).for_each(|n| d.add(&post(n)));
    let head = crate::sink::parquet::Head {
        topic: "posts.labelled".into(),
        partition,
        first: crate::record::NextOffset(first),
        next: crate::record::NextOffset(next),
        records: (next - first) as u64,
        skipped: 0,
        window_s: 60,
    };
    crate::sink::parquet::encode_rollup(&head, &d.sorted()).expect("a part can be encoded")
}
