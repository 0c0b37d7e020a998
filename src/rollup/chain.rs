//! The chain of a partition's parts: each covers `[first, next)` and the following one starts at its `next`.
//! The chain alone says how far the partition is rolled up.
//!
//! Where there is a posts part it is the commit point, and the rollup part of the same `first` must cover
//! the same range; where there is none (`rollup.posts = false`) the rollup part is.

use std::collections::BTreeMap;

use super::{
    store::{PartId, Parts, Put, StoreError},
    window::Deltas,
};
use crate::{
    record::NextOffset,
    sink::parquet::{CodecError, Footer, Head, Kind, decode_posts, encode_rollup},
};

/// The chain is broken, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Records between two parts are in neither.
    #[error(
        "gap in the chain: {before} ends at {ends}, but the next part {after} starts at {starts}. Was a part deleted?"
    )]
    Gap {
        /// File before the gap.
        before: String,
        /// Its `next`.
        ends: NextOffset,
        /// File after the gap.
        after: String,
        /// Its `first`.
        starts: NextOffset,
    },
    /// Records are in two parts.
    #[error(
        "overlap in the chain: {before} ends at {ends}, but {after} starts at {starts} already. Was a part copied \
             here from another store?"
    )]
    Overlap {
        /// The earlier file.
        before: String,
        /// Its `next`.
        ends: NextOffset,
        /// The file that starts too early.
        after: String,
        /// Its `first`.
        starts: NextOffset,
    },
    /// The group is further than the parts.
    #[error(
        "the group has committed {committed}, but the last part {last} ends at {tip}. Was a part deleted, or does \
             another store belong to this group?"
    )]
    Ahead {
        /// The committed offset.
        committed: NextOffset,
        /// The last file.
        last: String,
        /// Its `next`.
        tip: NextOffset,
    },
    /// Posts part and rollup part of one `first` differ.
    #[error("{posts} and {rollup} disagree: {what}. Did instances with different rollup.posts run together?")]
    Disagree {
        /// The posts part.
        posts: String,
        /// The rollup part.
        rollup: String,
        /// In what.
        what: String,
    },
    /// The footer says that the file belongs elsewhere.
    #[error("{file} does not belong here: its footer says {found}, expected {expected}")]
    Stranger {
        /// The file.
        file: String,
        /// What its footer says.
        found: String,
        /// What its place says.
        expected: String,
    },
    /// A part vanished between two looks.
    #[error("{file} was there and is gone. Parts must never be deleted while a group uses them")]
    Gone {
        /// The file.
        file: String,
    },
    /// A part cannot be decoded or encoded.
    #[error("{file}: {source}")]
    Codec {
        /// The file.
        file: String,
        /// Why not.
        source: CodecError,
    },
    /// The store says no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ChainError {
    /// Whether trying again may help.
    pub fn is_retry(&self) -> bool {
        matches!(self, Self::Store(e) if e.is_retry())
    }
}

/// One link: the footers of the parts that start at one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The posts part, where posts are archived.
    pub posts: Option<Footer>,
    /// The rollup part; missing only when a crash came between the two writes.
    pub rollup: Option<Footer>,
}

impl Link {
    /// The commit point.
    pub fn commit(&self) -> &Footer {
        self.posts.as_ref().or(self.rollup.as_ref()).expect("a link has at least one part")
    }

    /// The commit point's name.
    pub fn id(&self) -> PartId {
        let f = self.commit();
        PartId { kind: f.kind, partition: f.partition, first: f.first }
    }
}

/// Where the chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Where it goes on.
    pub next: NextOffset,
    /// Posts parts whose rollup part is missing.
    pub unfinished: Vec<PartId>,
}

/// Parts that are joined at least when the group has lost its offset. A chain of years has hundreds of thousands
/// of footers, and the poll thread cannot wait for them; `verify-rollups` reads all.
pub const RECENT: usize = 64;

/// A partition's chain in a store.
pub struct Chain<'a> {
    /// The store.
    pub parts: &'a dyn Parts,
    /// The labelled topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
}

impl Chain<'_> {
    /// Follows the chain from the part that holds `from` (over its last [`RECENT`] parts, if `None`) to its
    /// tip, and reads only the footers on the way. `None`: there are no parts.
    pub fn follow(&self, from: Option<NextOffset>) -> Result<Option<Tip>, ChainError> {
        let starts = self.starts()?;
        let all: Vec<NextOffset> = starts.keys().copied().collect();
        if all.is_empty() {
            return Ok(None);
        }
        let at = from.map_or(all.len().saturating_sub(RECENT), |f| {
            all.partition_point(|first| *first <= f).saturating_sub(1)
        });
        let mut links = Vec::new();
        for first in &all[at..] {
            let link = self.link(*first, starts[first])?;
            if let Some(before) = links.last() {
                self.join(before, &link)?;
            }
            links.push(link);
        }
        let last = links.last().expect("at least one part was listed");
        let tip = last.commit().next;
        if let Some(committed) = from.filter(|f| *f > tip) {
            return Err(ChainError::Ahead { committed, last: self.parts.name(&last.id()), tip });
        }
        let missing = |(first, has): (&NextOffset, &Has)| {
            (has.posts && !has.rollup).then_some(PartId {
                kind: Kind::Posts,
                partition: self.partition,
                first: *first,
            })
        };
        Ok(Some(Tip { next: tip, unfinished: starts.iter().filter_map(missing).collect() }))
    }

    /// All links in order, every footer read, each joined to the one before.
    pub fn walk(&self) -> Result<Vec<Link>, ChainError> {
        let mut links: Vec<Link> = Vec::new();
        for (first, has) in self.starts()? {
            let link = self.link(first, has)?;
            if let Some(before) = links.last() {
                self.join(before, &link)?;
            }
            links.push(link);
        }
        Ok(links)
    }

    /// The part that took `id`'s place first: its end, once its rollup part stands beside it.
    pub fn adopt(&self, id: PartId) -> Result<NextOffset, ChainError> {
        let footer = self.winner(id)?;
        if id.kind == Kind::Posts {
            self.finish(id)?;
        }
        Ok(footer.next)
    }

    /// Sees to it that the rollup part stands beside the posts part `posts`: derived from it if it is missing.
    pub fn finish(&self, posts: PartId) -> Result<(), ChainError> {
        let rollup = posts.of_kind(Kind::Rollups);
        let posts_footer =
            self.footer(posts)?.ok_or_else(|| ChainError::Gone { file: self.parts.name(&posts) })?;
        if let Some(footer) = self.footer(rollup)? {
            return self.agree(&posts_footer, &footer);
        }
        let bytes = self.derive(posts)?;
        match self.parts.put(&rollup, bytes)? {
            Put::Created => Ok(()),
            Put::Exists => self.agree(&posts_footer, &self.winner(rollup)?),
        }
    }

    /// The footer of a part whose put was just answered with [`Put::Exists`]. S3 answers so too while another
    /// conditional put of the key is under way (409), which may yet come to nothing: no part, try again.
    fn winner(&self, id: PartId) -> Result<Footer, ChainError> {
        self.footer(id)?.ok_or_else(|| {
            ChainError::Store(StoreError::Retry {
                operation: "read the footer",
                object: self.parts.name(&id),
                message: "the store says that the part exists, but does not show it yet".to_owned(),
            })
        })
    }

    /// The bytes of the rollup part that belongs to a posts part: a pure function of it.
    pub fn derive(&self, posts: PartId) -> Result<bytes::Bytes, ChainError> {
        let file = self.parts.name(&posts);
        let codec = |source| ChainError::Codec { file: file.clone(), source };
        let bytes = self.parts.read(&posts)?.ok_or_else(|| ChainError::Gone { file: file.clone() })?;
        let (footer, rows) = decode_posts(bytes).map_err(codec)?;
        let mut deltas = Deltas::new(footer.window_s);
        rows.iter().for_each(|a| deltas.add(&a.post));
        encode_rollup(&Head::from(&footer), &deltas.sorted()).map_err(codec)
    }

    fn starts(&self) -> Result<BTreeMap<NextOffset, Has>, ChainError> {
        let mut starts: BTreeMap<NextOffset, Has> = BTreeMap::new();
        for first in self.parts.list(Kind::Posts, self.partition)? {
            starts.entry(first).or_default().posts = true;
        }
        for first in self.parts.list(Kind::Rollups, self.partition)? {
            starts.entry(first).or_default().rollup = true;
        }
        Ok(starts)
    }

    fn link(&self, first: NextOffset, has: Has) -> Result<Link, ChainError> {
        let get = |kind, there: bool| -> Result<Option<Footer>, ChainError> {
            let id = PartId { kind, partition: self.partition, first };
            if !there {
                return Ok(None);
            }
            self.footer(id)?.map(Some).ok_or_else(|| ChainError::Gone { file: self.parts.name(&id) })
        };
        let link = Link { posts: get(Kind::Posts, has.posts)?, rollup: get(Kind::Rollups, has.rollup)? };
        if let (Some(p), Some(r)) = (&link.posts, &link.rollup) {
            self.agree(p, r)?;
        }
        Ok(link)
    }

    /// The footer of a part, if there is one; it must say what the part's place says.
    pub fn footer(&self, id: PartId) -> Result<Option<Footer>, ChainError> {
        let Some(f) = self.parts.footer(&id)? else { return Ok(None) };
        let found = (f.kind, &*f.topic, f.partition, f.first);
        let expected = (id.kind, self.topic, self.partition, id.first);
        if found != expected {
            let say = |(kind, topic, partition, first): (Kind, &str, i32, NextOffset)| {
                format!("{} of {topic}[{partition}] from {first}", kind.as_str())
            };
            let file = self.parts.name(&id);
            return Err(ChainError::Stranger { file, found: say(found), expected: say(expected) });
        }
        Ok(Some(f))
    }

    fn agree(&self, posts: &Footer, rollup: &Footer) -> Result<(), ChainError> {
        let say = |f: &Footer| format!("[{}, {}) with {} records", f.first, f.next, f.records);
        if (posts.next, posts.records) == (rollup.next, rollup.records) {
            return Ok(());
        }
        let id = PartId { kind: Kind::Posts, partition: self.partition, first: posts.first };
        Err(ChainError::Disagree {
            posts: self.parts.name(&id),
            rollup: self.parts.name(&id.of_kind(Kind::Rollups)),
            what: format!("{} against {}", say(posts), say(rollup)),
        })
    }

    fn join(&self, before: &Link, after: &Link) -> Result<(), ChainError> {
        let (ends, starts) = (before.commit().next, after.commit().first);
        let name = |l: &Link| self.parts.name(&l.id());
        match starts.cmp(&ends) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => {
                Err(ChainError::Gap { before: name(before), ends, after: name(after), starts })
            }
            std::cmp::Ordering::Less => {
                Err(ChainError::Overlap { before: name(before), ends, after: name(after), starts })
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Has {
    posts: bool,
    rollup: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::rollup::{store::PartStore, testing::rollup_part};

    fn store(parts: &[(i64, i64)]) -> PartStore {
        let s = PartStore::from_store(Arc::new(InMemory::new()), "memory://t").unwrap();
        for (first, next) in parts {
            let id = PartId { kind: Kind::Rollups, partition: 0, first: NextOffset(*first) };
            s.put(&id, rollup_part(0, *first, *next)).unwrap();
        }
        s
    }

    fn chain(parts: &dyn Parts) -> Chain<'_> {
        Chain { parts, topic: "posts.labelled", partition: 0 }
    }

    #[test]
    fn the_tip_is_found_from_anywhere() {
        let s = store(&[(5, 10), (10, 12), (12, 40)]);
        for from in [None, Some(0), Some(5), Some(7), Some(12), Some(40)] {
            let tip = chain(&s).follow(from.map(NextOffset)).unwrap().unwrap();
            assert_eq!((tip.next, tip.unfinished.len()), (NextOffset(40), 0), "from {from:?}");
        }
        assert_eq!(chain(&store(&[])).follow(Some(NextOffset(7))).unwrap(), None);
        assert_eq!(chain(&s).walk().unwrap().len(), 3);
    }

    #[test]
    fn gaps_overlaps_and_strangers_name_both_files() {
        let e = chain(&store(&[(0, 10), (11, 12)])).follow(None).unwrap_err();
        assert!(matches!(e, ChainError::Gap { .. }), "{e}");
        let text = e.to_string();
        assert!(
            text.contains("part-00000000000000000000.parquet") && text.contains("part-00000000000000000011"),
            "{e}"
        );
        let e = chain(&store(&[(0, 10), (9, 12)])).walk().unwrap_err();
        assert!(matches!(e, ChainError::Overlap { .. }), "{e}");
        let e = chain(&store(&[(0, 10)])).follow(Some(NextOffset(11))).unwrap_err();
        assert!(matches!(e, ChainError::Ahead { .. }), "{e}");
        let s = store(&[]);
        let id = PartId { kind: Kind::Rollups, partition: 0, first: NextOffset(3) };
        s.put(&id, rollup_part(0, 4, 9)).unwrap();
        let e = chain(&s).follow(None).unwrap_err().to_string();
        assert!(e.contains("does not belong here") && e.contains("from 4") && e.contains("from 3"), "{e}");
    }
}
