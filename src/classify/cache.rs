//! Exact repeats (reposts) answered without inference.

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::record::{Logits, ModelId};

/// Names a prepared text under one model: the first 128 bits of a SHA-256. People who write posts
/// choose the texts, so the hash is a cryptographic one: nobody can make two texts share an entry.
pub type Key = [u8; 16];

/// A bounded cache from prepared text to logits, for one model; safe to share between threads. What is
/// seldom asked for goes first.
pub struct RepeatCache {
    model: Vec<u8>,
    entries: Option<Cache<Key, Logits>>,
}

impl RepeatCache {
    /// A cache of at most `entries` texts; 0 keeps nothing.
    pub fn new(entries: usize, model: &ModelId) -> Self {
        let mut bytes = model.hash.as_bytes().to_vec();
        bytes.push(0);
        Self { model: bytes, entries: (entries > 0).then(|| Cache::new(entries)) }
    }

    /// The key of a prepared text.
    pub fn key(&self, prepared: &str) -> Key {
        let digest = Sha256::new_with_prefix(&self.model).chain_update(prepared).finalize();
        let mut key = Key::default();
        key.copy_from_slice(&digest[..16]);
        key
    }

    /// What the model said of this text, if it is still known. Counts a hit or a miss.
    pub fn get(&self, key: &Key) -> Option<Logits> {
        let found = self.entries.as_ref()?.get(key);
        match found {
            Some(_) => metrics::counter!("sentistream_cache_hits_total").increment(1),
            None => metrics::counter!("sentistream_cache_misses_total").increment(1),
        }
        found
    }

    /// Keeps what the model said.
    pub fn insert(&self, key: Key, logits: Logits) {
        if let Some(entries) = &self.entries {
            entries.insert(key, logits);
        }
    }

    /// Texts in the cache.
    pub fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, Cache::len)
    }

    /// True when nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(hash: &str) -> ModelId {
        ModelId { name: "m".into(), hash: hash.into() }
    }

    #[test]
    fn a_repeat_is_known_and_another_text_is_not() {
        let cache = RepeatCache::new(10, &model("aa"));
        cache.insert(cache.key("so good"), vec![1.0, 2.0]);
        assert_eq!(cache.get(&cache.key("so good")), Some(vec![1.0, 2.0]));
        assert_eq!(cache.get(&cache.key("so good ")), None);
    }

    #[test]
    fn another_model_has_other_keys() {
        let (a, b) = (RepeatCache::new(1, &model("aa")), RepeatCache::new(1, &model("ab")));
        assert_ne!(a.key("x"), b.key("x"));
        assert_ne!(a.key(""), a.key("\0"));
    }

    #[test]
    fn the_cache_is_bounded_and_can_be_off() {
        let cache = RepeatCache::new(100, &model("aa"));
        for i in 0..10_000 {
            cache.insert(cache.key(&i.to_string()), vec![0.0]);
        }
        assert!(cache.len() <= 100 && !cache.is_empty(), "{}", cache.len());
        let off = RepeatCache::new(0, &model("aa"));
        off.insert(off.key("x"), vec![0.0]);
        assert!(off.is_empty() && off.get(&off.key("x")).is_none());
    }
}
