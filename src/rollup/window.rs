//! Labelled posts → mergeable sums by event-time window, brand, channel, language and model. Pure.
//!
//! Every sum is an integer, so that any split of a stream into parts, read in any order, gives the same
//! numbers. A post counts once under the brand [`ALL_BRANDS`] and once under each brand it mentions.

use std::{collections::HashMap, sync::Arc};

use crate::record::{Label, Labelled, Timestamp};

/// The brand that stands for all posts.
pub const ALL_BRANDS: &str = "*";

/// Most reach that one post may add: a hundred times the people there are. With it a part's sum stays far
/// inside 64 bits however hostile the feed.
pub const MAX_REACH: i64 = 1_000_000_000_000;

/// What sums are kept by. The order of the fields is the order of rows in a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Start of the tumbling window.
    pub window_start: Timestamp,
    /// Brand, or [`ALL_BRANDS`].
    pub brand: Arc<str>,
    /// Channel.
    pub channel: Arc<str>,
    /// Language.
    pub lang: Arc<str>,
    /// Model name.
    pub model: Arc<str>,
    /// Model hash.
    pub model_hash: Arc<str>,
}

/// What is kept of the posts of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Posts.
    pub posts: i64,
    /// Of them labelled negative.
    pub negative: i64,
    /// Of them labelled neutral.
    pub neutral: i64,
    /// Of them labelled positive.
    pub positive: i64,
    /// Of them labelled uncertain.
    pub uncertain: i64,
    /// Sum of `p_positive - p_negative`, in units of `10^-4`.
    pub score_units: i64,
    /// Sum of reach, each post's cut to `0..=`[`MAX_REACH`]. Wide, so that adding up parts cannot overflow.
    pub reach: i128,
}

impl Sums {
    /// What one post adds.
    pub fn of(post: &Labelled) -> Self {
        let mut s = Self {
            posts: 1,
            score_units: post.scores.net_units(),
            reach: i128::from(post.reach.unwrap_or(0).clamp(0, MAX_REACH)),
            ..Self::default()
        };
        match post.label {
            Label::Negative => s.negative = 1,
            Label::Neutral => s.neutral = 1,
            Label::Positive => s.positive = 1,
            Label::Uncertain => s.uncertain = 1,
        }
        s
    }

    /// Adds another's sums.
    pub fn add(&mut self, other: &Self) {
        self.posts += other.posts;
        self.negative += other.negative;
        self.neutral += other.neutral;
        self.positive += other.positive;
        self.uncertain += other.uncertain;
        self.score_units += other.score_units;
        self.reach += other.reach;
    }
}

/// Strings to small numbers, so that a post costs look-ups and no allocation.
#[derive(Clone, Debug, Default)]
struct Names {
    index: HashMap<Arc<str>, u32, ahash::RandomState>,
    names: Vec<Arc<str>>,
    /// Bytes of the names.
    text: usize,
}

impl Names {
    fn id(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.index.get(name) {
            return id;
        }
        let id = u32::try_from(self.names.len()).expect("a part holds fewer than 2^32 names");
        let name: Arc<str> = name.into();
        self.text += name.len();
        self.names.push(name.clone());
        self.index.insert(name, id);
        id
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct PackedKey {
    window_start: i64,
    brand: u32,
    channel: u32,
    lang: u32,
    model: u32,
    model_hash: u32,
}

/// The sums of one part, or of many.
#[derive(Clone, Debug)]
pub struct Deltas {
    width_us: i64,
    names: Names,
    sums: HashMap<PackedKey, Sums, ahash::RandomState>,
}

impl Deltas {
    /// No posts yet; windows of `window_s` seconds.
    pub fn new(window_s: i64) -> Self {
        Self { width_us: window_s * 1_000_000, names: Names::default(), sums: HashMap::default() }
    }

    /// Counts one post. A brand that is listed twice counts once, and `*` in the list is not counted again.
    pub fn add(&mut self, post: &Labelled) {
        let sums = Sums::of(post);
        let all = PackedKey {
            window_start: post.created_at.window_start(self.width_us).0,
            brand: self.names.id(ALL_BRANDS),
            channel: self.names.id(&post.channel),
            lang: self.names.id(&post.lang),
            model: self.names.id(&post.model.name),
            model_hash: self.names.id(&post.model.hash),
        };
        self.sums.entry(all).or_default().add(&sums);
        for (i, brand) in post.brands.iter().enumerate() {
            if &**brand != ALL_BRANDS && !post.brands[..i].contains(brand) {
                let key = PackedKey { brand: self.names.id(brand), ..all };
                self.sums.entry(key).or_default().add(&sums);
            }
        }
    }

    /// Adds sums that were kept elsewhere.
    pub fn merge(&mut self, key: &Key, sums: &Sums) {
        let key = PackedKey {
            window_start: key.window_start.0,
            brand: self.names.id(&key.brand),
            channel: self.names.id(&key.channel),
            lang: self.names.id(&key.lang),
            model: self.names.id(&key.model),
            model_hash: self.names.id(&key.model_hash),
        };
        self.sums.entry(key).or_default().add(sums);
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Memory, estimated from above. Keys are as many as the feed likes: one a window and brand, and windows
    /// as far apart as the posts say.
    pub fn bytes(&self) -> usize {
        // A hash table is up to twice its entries; a name has two pointers and its counts beside its text.
        self.sums.len() * 2 * size_of::<(PackedKey, Sums)>() + self.names.names.len() * 96 + self.names.text
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// All sums in key order.
    pub fn sorted(&self) -> Vec<(Key, Sums)> {
        let name = |id: u32| self.names.names[id as usize].clone();
        let unpack = |k: &PackedKey| Key {
            window_start: Timestamp(k.window_start),
            brand: name(k.brand),
            channel: name(k.channel),
            lang: name(k.lang),
            model: name(k.model),
            model_hash: name(k.model_hash),
        };
        let mut rows: Vec<_> = self.sums.iter().map(|(k, s)| (unpack(k), *s)).collect();
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        rows
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::rollup::testing::{any_post, post};

    #[test]
    fn a_post_counts_once_under_all_and_once_under_each_brand() {
        let mut d = Deltas::new(60);
        let mut p = post(1);
        p.created_at = "2026-03-01T10:00:59.999Z".parse().unwrap();
        p.brands = vec!["Acme".into(), "Acme".into(), "*".into(), "Zed".into()];
        d.add(&p);
        let rows = d.sorted();
        assert_eq!(rows.iter().map(|(k, _)| &*k.brand).collect::<Vec<_>>(), ["*", "Acme", "Zed"]);
        assert!(
            rows.iter().all(|(k, s)| s.posts == 1 && k.window_start.to_string() == "2026-03-01T10:00:00Z")
        );
    }

    #[test]
    fn windows_before_1970_start_before_their_posts() {
        let mut d = Deltas::new(60);
        let mut p = post(1);
        p.created_at = Timestamp(-1);
        d.add(&p);
        assert_eq!(d.sorted()[0].0.window_start, Timestamp(-60_000_000));
    }

    #[test]
    fn hostile_reach_is_cut() {
        let mut p = post(1);
        p.reach = Some(i64::MAX);
        assert_eq!(Sums::of(&p).reach, i128::from(MAX_REACH));
        p.reach = Some(-5);
        assert_eq!(Sums::of(&p).reach, 0);
    }

    proptest! {
        #[test]
        fn any_split_into_parts_in_any_order_sums_to_the_same(
            posts in prop::collection::vec((any_post(), 0usize..5), 0..80),
        ) {
            let mut whole = Deltas::new(60);
            let mut parts: Vec<Deltas> = (0..5).map(|_| Deltas::new(60)).collect();
            for (p, part) in &posts {
                whole.add(p);
                parts[*part].add(p);
            }
            let mut merged = Deltas::new(60);
            for part in parts.iter().rev() {
                for (k, s) in part.sorted() {
                    merged.merge(&k, &s);
                }
            }
            prop_assert_eq!(merged.sorted(), whole.sorted());
            let all: i64 = whole.sorted().iter().filter(|(k, _)| &*k.brand == ALL_BRANDS).map(|(_, s)| s.posts).sum();
            prop_assert_eq!(all, posts.len() as i64);
            for (_, s) in whole.sorted() {
                prop_assert_eq!(s.posts, s.negative + s.neutral + s.positive + s.uncertain);
            }
        }
    }
}
