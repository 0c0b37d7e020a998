//! Which examples form which batch: shuffled, and of similar length within a batch.

use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Batches whose examples are drawn from a window of this many batches and sorted by length in it:
/// little padding, and still a different company for each example in every epoch.
const WINDOW: usize = 50;

/// The batches of one epoch as indices into `lengths`. The same arguments give the same batches.
pub fn of_epoch(lengths: &[usize], batch_size: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut rng = StdRng::seed_from_u64(mix(seed, epoch));
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.shuffle(&mut rng);
    let mut batches = Vec::with_capacity(lengths.len().div_ceil(batch_size));
    for window in order.chunks_mut(batch_size * WINDOW) {
        window.sort_by_key(|i| lengths[*i]);
        batches.extend(window.chunks(batch_size).map(<[usize]>::to_vec));
    }
    batches.shuffle(&mut rng);
    batches
}

/// A seed of two numbers (SplitMix64's finaliser), so that neighbours give unrelated streams.
pub fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_example_once_an_epoch_in_another_order_and_of_similar_length() {
        let lengths: Vec<usize> = (0..10_001).map(|i| 3 + i * 7919 % 60).collect();
        let (a, b) = (of_epoch(&lengths, 16, 1, 0), of_epoch(&lengths, 16, 1, 1));
        for batches in [&a, &b] {
            let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        }
        assert_ne!(a, b);
        assert_eq!(a, of_epoch(&lengths, 16, 1, 0));
        assert_ne!(a, of_epoch(&lengths, 16, 2, 0));
        let padded: usize =
            a.iter().map(|b| b.len() * b.iter().map(|i| lengths[*i]).max().unwrap_or(0)).sum();
        let own: usize = lengths.iter().sum();
        assert!((padded as f64) < 1.05 * own as f64, "padding: {padded} for {own} tokens");
    }
}
