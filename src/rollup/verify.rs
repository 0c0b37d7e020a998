//! Parts against the labelled topic: chains, footers, archives, and every sum against a recount.
//!
//! The recount goes its own way: it takes the log record by record and knows nothing of open parts.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    chain::{Chain, ChainError, Link},
    decode::decode,
    stage::StageError,
    store::PartStore,
    window::{ALL_BRANDS, Deltas, Key, Sums},
};
use crate::{
    record::{NextOffset, Offset},
    sink::parquet::{Kind, decode_posts, decode_rollup},
};

/// Differences and problems listed at most; all are counted.
const LISTED: usize = 50;

/// What the broker holds of one partition.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Partition.
    pub partition: i32,
    /// The oldest offset.
    pub low: NextOffset,
    /// The end of the log.
    pub high: NextOffset,
}

/// The labelled topic as verification needs it.
pub trait LabelledLog {
    /// All partitions, ascending.
    fn partitions(&self) -> Result<Vec<i32>, StageError>;
    /// What the broker holds of one, as of now.
    fn extent(&self, partition: i32) -> Result<Extent, StageError>;
    /// Shows every committed record of a partition from `from` to the end, in order.
    fn scan(
        &self,
        partition: i32,
        from: NextOffset,
        visit: &mut dyn FnMut(Offset, Option<&[u8]>),
    ) -> Result<(), StageError>;
}

/// What was found. `ok` decides.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// No problem and no difference.
    pub ok: bool,
    /// One entry a partition.
    pub partitions: Vec<PartitionReport>,
    /// Keys compared.
    pub keys: usize,
    /// Keys whose sums differ.
    pub differing_keys: usize,
    /// The first of them.
    pub differences: Vec<Difference>,
}

/// One partition.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartitionReport {
    /// Partition.
    pub partition: i32,
    /// Links of the chain.
    pub parts: usize,
    /// Where the chain starts.
    pub first: Option<i64>,
    /// Where it ends.
    pub tip: Option<i64>,
    /// Posts in the parts.
    pub posts_in_parts: u64,
    /// Posts in the log, in the range that parts cover and the log still holds.
    pub posts_in_log: u64,
    /// Records in that range that are no labelled posts.
    pub skipped: u64,
    /// Records after the tip: not sealed yet, which is no error.
    pub unsealed: u64,
    /// Parts whose records the topic's retention has deleted: checked against their archives only.
    pub parts_older_than_log: usize,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// A key whose sums differ.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Start of the window.
    pub window_start: String,
    /// Brand.
    pub brand: String,
    /// Channel.
    pub channel: String,
    /// Language.
    pub lang: String,
    /// Model name and hash.
    pub model: String,
    /// Which sum.
    pub column: &'static str,
    /// Its value over all parts.
    pub parts: String,
    /// Its value in the recount.
    pub log: String,
}

/// The sums of a chain that the log can still confirm, and those of the log.
#[derive(Default)]
struct Both(BTreeMap<Key, (Sums, Sums)>);

/// Checks everything in the store against everything in the log.
pub fn verify(store: &PartStore, topic: &str, log: &dyn LabelledLog) -> Result<Report, StageError> {
    let partitions = log.partitions()?;
    let mut report = Report::default();
    let mut both = Both::default();
    for p in &partitions {
        report.partitions.push(partition(store, topic, *p, log, &mut both)?);
    }
    for p in store.partitions()? {
        if !partitions.contains(&p) {
            let problem = format!("the store has parts of partition {p}, which {topic} does not have");
            report.partitions.push(PartitionReport {
                partition: p,
                problems: vec![problem],
                ..Default::default()
            });
        }
    }
    report.keys = both.0.len();
    for (key, (parts, log)) in both.0.iter().filter(|(_, (a, b))| a != b) {
        report.differing_keys += 1;
        if report.differences.len() < LISTED {
            report.differences.extend(differences(key, parts, log));
        }
    }
    report.ok = report.differing_keys == 0 && report.partitions.iter().all(|p| p.problems.is_empty());
    Ok(report)
}

fn partition(
    store: &PartStore,
    topic: &str,
    partition: i32,
    log: &dyn LabelledLog,
    both: &mut Both,
) -> Result<PartitionReport, StageError> {
    let mut r = PartitionReport { partition, ..Default::default() };
    let chain = Chain { parts: store, topic, partition };
    let mut links = match chain.walk() {
        Ok(links) => links,
        Err(ChainError::Store(s)) if s.is_retry() => return Err(s.into()),
        Err(broken) => {
            r.problems.push(broken.to_string());
            return Ok(r);
        }
    };
    // A running stage seals meanwhile: after the last posts part comes its rollup part, which here counts as not
    // sealed yet; and the log is asked for its end only now, so that it cannot be older than the chain.
    links.pop_if(|last| last.rollup.is_none());
    let e = log.extent(partition)?;
    r.parts = links.len();
    r.first = links.first().map(|l| l.commit().first.0);
    r.tip = links.last().map(|l| l.commit().next.0);
    if links.last().is_some_and(|l| l.commit().next > e.high) {
        r.problems.push(format!("parts reach to {}, but the log ends at {}", r.tip.unwrap_or(0), e.high));
    }
    let confirmable = links.iter().position(|l| l.commit().first >= e.low).unwrap_or(links.len());
    r.parts_older_than_log = confirmable;
    for (i, link) in links.iter().enumerate() {
        let sums = match part(&chain, link) {
            Ok(sums) => sums,
            Err(ChainError::Store(s)) if s.is_retry() => return Err(s.into()),
            Err(wrong) => {
                r.problems.push(wrong.to_string());
                continue;
            }
        };
        r.posts_in_parts += link.commit().records;
        if i >= confirmable {
            sums.iter().for_each(|(k, s)| both.0.entry(k.clone()).or_default().0.add(s));
        }
    }
    recount(&links[confirmable..], e, log, both, &mut r)?;
    Ok(r)
}

/// One link: rollup rows, after they were checked against footer and archive.
fn part(chain: &Chain<'_>, link: &Link) -> Result<Vec<(Key, Sums)>, ChainError> {
    let id = link.id().of_kind(Kind::Rollups);
    let file = chain.parts.name(&id);
    let gone = || ChainError::Gone { file: file.clone() };
    if link.rollup.is_none() {
        return Err(gone());
    }
    let bytes = chain.parts.read(&id)?.ok_or_else(gone)?;
    let (footer, rows) =
        decode_rollup(bytes.clone()).map_err(|source| ChainError::Codec { file: file.clone(), source })?;
    let counted: i64 = rows.iter().filter(|(k, _)| &*k.brand == ALL_BRANDS).map(|(_, s)| s.posts).sum();
    let disagree =
        |other: String, what: String| ChainError::Disagree { posts: other, rollup: file.clone(), what };
    if u64::try_from(counted) != Ok(footer.records) {
        return Err(disagree(
            "its footer".into(),
            format!("{} records against {counted} in its rows", footer.records),
        ));
    }
    if link.posts.is_some() {
        let posts = id.of_kind(Kind::Posts);
        let archive = chain.parts.name(&posts);
        let whole = chain.parts.read(&posts)?.ok_or_else(|| ChainError::Gone { file: archive.clone() })?;
        let (f, archived) =
            decode_posts(whole).map_err(|source| ChainError::Codec { file: archive.clone(), source })?;
        if f.records != archived.len() as u64 {
            return Err(disagree(
                archive,
                format!("its footer says {} records, it has {}", f.records, archived.len()),
            ));
        }
        if let Some(a) = archived.iter().find(|a| a.offset.0 < f.first.0 || a.offset.0 >= f.next.0) {
            return Err(disagree(archive, format!("offset {} is outside its range", a.offset)));
        }
        let mut deltas = Deltas::new(f.window_s);
        archived.iter().for_each(|a| deltas.add(&a.post));
        if deltas.sorted() != rows {
            return Err(disagree(archive, "the sums of its posts are not the rollup's".to_owned()));
        }
    }
    Ok(rows)
}

/// Counts the log again, in the range of `links`, and what comes after it.
fn recount(
    links: &[Link],
    e: Extent,
    log: &dyn LabelledLog,
    both: &mut Both,
    r: &mut PartitionReport,
) -> Result<(), StageError> {
    let tip = r.tip.map(NextOffset);
    let from = links.first().map(|l| l.commit().first).or(tip).unwrap_or(e.low).max(e.low);
    if from >= e.high {
        return Ok(());
    }
    let mut by_width: BTreeMap<i64, Deltas> = BTreeMap::new();
    let (mut at, mut newer) = (0, None);
    let mut counts = vec![(0u64, 0u64); links.len()];
    log.scan(e.partition, from, &mut |offset, value| {
        while at < links.len() && offset.0 >= links[at].commit().next.0 {
            at += 1;
        }
        let Some(link) = links.get(at) else {
            r.unsealed += 1;
            return;
        };
        match decode(value) {
            Ok(post) => {
                counts[at].0 += 1;
                let width = link.commit().window_s;
                by_width.entry(width).or_insert_with(|| Deltas::new(width)).add(&post);
            }
            Err(why) => {
                counts[at].1 += 1;
                newer = newer.or(why.newer().map(|found| (offset, found)));
            }
        }
    })?;
    if let Some((offset, found)) = newer {
        let ours = crate::record::Labelled::SCHEMA;
        r.problems.push(format!(
            "offset {offset}: schema version {found}, this sentistream reads up to {ours}. Verify with the version that \
             labels the posts"
        ));
    }
    for (link, (posts, skipped)) in links.iter().zip(counts) {
        r.posts_in_log += posts;
        r.skipped += skipped;
        let f = link.commit();
        if (f.records, f.skipped) != (posts, skipped) && r.problems.len() < LISTED {
            let said = format!("{} posts and {} others", f.records, f.skipped);
            let what = format!(
                "part [{}, {}) holds {said}, the log has {posts} and {skipped} there",
                f.first, f.next
            );
            r.problems.push(what);
        }
    }
    for deltas in by_width.values() {
        deltas.sorted().into_iter().for_each(|(k, s)| both.0.entry(k).or_default().1.add(&s));
    }
    Ok(())
}

fn differences(key: &Key, parts: &Sums, log: &Sums) -> Vec<Difference> {
    let columns = [
        ("posts", parts.posts.into(), log.posts.into()),
        ("negative", parts.negative.into(), log.negative.into()),
        ("neutral", parts.neutral.into(), log.neutral.into()),
        ("positive", parts.positive.into(), log.positive.into()),
        ("uncertain", parts.uncertain.into(), log.uncertain.into()),
        ("score_sum × 10000", parts.score_units.into(), log.score_units.into()),
        ("reach_sum", parts.reach, log.reach),
    ];
    let differ = columns.into_iter().filter(|(_, a, b): &(_, i128, i128)| a != b);
    differ
        .map(|(column, a, b)| Difference {
            window_start: key.window_start.to_string(),
            brand: key.brand.to_string(),
            channel: key.channel.to_string(),
            lang: key.lang.to_string(),
            model: format!("{}@{}", key.model, key.model_hash),
            column,
            parts: a.to_string(),
            log: b.to_string(),
        })
        .collect()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
