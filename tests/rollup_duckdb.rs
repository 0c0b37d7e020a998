//! DuckDB reads the parts through deploy/sql/duckdb.sql and comes to the sums that plain counting gives.
//! Needs python3 with the `duckdb` package (PYTHONPATH is honoured); without it the test says so and passes,
//! unless SENTISTREAM_TEST_DUCKDB=1 demands it.

#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Instant};

use sentistream::{
    config::Config,
    record::{Label, Labelled, ModelId, NextOffset, Offset, Scores, SourceRef, Timestamp},
    rollup::{
        roller::{Bounds, Roller},
        stage::settings,
        store::PartStore,
    },
};

const POSTS: i64 = 1000;

fn post(n: i64) -> Labelled {
    let positive = n % 3 == 0;
    Labelled {
        schema: Labelled::SCHEMA,
        id: format!("p{n}"),
        created_at: Timestamp(1_772_359_200_000_000 + n * 10_000_000),
        label: if positive { Label::Positive } else { Label::Negative },
        confidence: 0.9,
        scores: Scores::rounded(if positive { [0.0667, 0.1, 0.8333] } else { [0.8, 0.1, 0.1] }),
        brands: if n % 2 == 0 { vec!["Acme".into()] } else { vec!["Acme".into(), "Zed".into()] },
        lang: "en".into(),
        channel: "x".into(),
        author: None,
        reach: Some(3),
        text: Some("ünï ✓ 'quoted'".into()),
        model: ModelId { name: "m".into(), hash: "h".into() },
        source: SourceRef { topic: "posts".into(), partition: 0, offset: n },
    }
}

const SCRIPT: &str = r#"
import sys, duckdb
con = duckdb.connect()
con.execute("SET TimeZone = 'UTC'")
con.execute(f"SET VARIABLE store = '{sys.argv[1]}'")
con.execute(open(sys.argv[2]).read())
def show(sql):
    for row in con.execute(sql).fetchall():
        print("|".join(str(v) for v in row))
show("SELECT brand, sum(posts), sum(positive), sum(negative), sum(score_sum), sum(reach_sum) FROM rollup_deltas GROUP BY ALL ORDER BY ALL")
show("SELECT count(*), sum(positive - negative), min(created_at), sum(len(brands)), any_value(text) FROM labelled_posts")
show("SELECT brand, round(share_of_voice, 4), round(net_sentiment, 4), round(mean_score, 6), round(health, 3) FROM sentiment_by_day ORDER BY brand")
show("SELECT count(*), sum(posts) FROM sentiment_by_hour WHERE brand = '*'")
show("SELECT count(*), sum(posts) FROM sentiment_by_minute WHERE brand = '*'")
show("SELECT typeof(window_start), typeof(score_sum), typeof(partition) FROM rollup_deltas LIMIT 1")
"#;

#[test]
fn duckdb_comes_to_the_same_sums() {
    let has =
        Command::new("python3").args(["-c", "import duckdb"]).output().is_ok_and(|o| o.status.success());
    if !has {
        assert!(
            std::env::var_os("SENTISTREAM_TEST_DUCKDB").is_none(),
            "SENTISTREAM_TEST_DUCKDB is set, but python3 has no duckdb"
        );
        eprintln!("SKIPPED duckdb_comes_to_the_same_sums: python3 with the duckdb package is not here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::defaults();
    config.store.url = format!("file:{}", dir.path().display());
    config.rollup.seal_records = 64;
    let mut roller = Roller::new(PartStore::open(&config.store).unwrap(), settings(&config));
    let now = Instant::now();
    let bounds = Bounds { committed: None, low: NextOffset(0), high: NextOffset(POSTS) };
    for partition in [0, 1] {
        roller.assign(partition, bounds, now).unwrap();
    }
    (0..POSTS).for_each(|n| roller.record((n % 2) as i32, Offset(n), Ok(post(n)), now).unwrap());
    assert!(roller.drain(0, now).unwrap() && roller.drain(1, now).unwrap());

    let sql = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/sql/duckdb.sql");
    let out = Command::new("python3").args(["-c", SCRIPT]).arg(dir.path()).arg(sql).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // 334 positive (0.7666 each), 666 negative (-0.7 each); half of the posts name Zed, of which 167 are positive.
    let want = [
        "*|1000|334|666|-210.1556|3000",
        "Acme|1000|334|666|-210.1556|3000",
        "Zed|500|167|333|-105.0778|1500",
        "1000|-210.1556|2026-03-01 10:00:00+00:00|1500|ünï ✓ 'quoted'",
        "*|None|-0.332|-0.210156|0.334",
        "Acme|0.6667|-0.332|-0.210156|0.334",
        "Zed|0.3333|-0.332|-0.210156|0.334",
        "3|1000",
        "167|1000",
        "TIMESTAMP WITH TIME ZONE|DECIMAL(18,4)|BIGINT",
    ];
    assert_eq!(String::from_utf8(out.stdout).unwrap().lines().collect::<Vec<_>>(), want);
}
