//! Encoding lengths → micro-batches (pure).

use crate::config;

/// Bounds of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Padded tokens: rows × padded width.
    pub max_tokens: usize,
    /// Rows.
    pub max_rows: usize,
}

impl From<&config::Batch> for Limits {
    fn from(b: &config::Batch) -> Self {
        Self { max_tokens: b.max_tokens, max_rows: b.max_rows }
    }
}

/// Rows are padded to a multiple of this many tokens.
pub const WIDTH_STEP: usize = 4;

/// The width that a row of `length` tokens is padded to: a function of the row alone, never of its
/// neighbours, so that a post's arithmetic is the same in every micro-batch. At most `longest`, the
/// model's limit, where that is larger than the row.
pub fn padded(length: usize, longest: usize) -> usize {
    length.next_multiple_of(WIDTH_STEP).min(longest.max(length)).max(1)
}

/// Cuts rows into micro-batches: indices into `lengths`, every one exactly once. Each micro-batch
/// holds rows of one padded width and at most `max_rows` rows and `max_tokens` padded tokens, except
/// that a row which alone is wider than `max_tokens` has a micro-batch of its own. Widest first, so
/// that the last ones, for which other sessions wait, are short.
pub fn plan(lengths: &[usize], limits: &Limits, longest: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(padded(lengths[i], longest)), i));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut width = 0;
    for i in order {
        let w = padded(lengths[i], longest);
        match batches.last_mut() {
            Some(b) if w == width && b.len() < limits.max_rows && (b.len() + 1) * w <= limits.max_tokens => {
                b.push(i);
            }
            _ => batches.push(vec![i]),
        }
        width = w;
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_of_one_width_go_together_widest_first() {
        let limits = Limits { max_tokens: 24, max_rows: 8 };
        let plan = plan(&[3, 9, 4, 11, 2, 12, 1], &limits, 128);
        assert_eq!(plan, vec![vec![1, 3], vec![5], vec![0, 2, 4, 6]]);
    }

    #[test]
    fn width_is_bounded_by_the_model() {
        assert_eq!(padded(125, 126), 126);
        assert_eq!(padded(0, 128), 1);
        assert_eq!(padded(5, 128), 8);
        assert_eq!(padded(130, 128), 130);
    }

    proptest! {
        #[test]
        fn every_row_once_within_the_limits(
            lengths in prop::collection::vec(0usize..200, 0..300),
            max_tokens in 1usize..3000,
            max_rows in 1usize..64,
            longest in 1usize..200,
        ) {
            let limits = Limits { max_tokens, max_rows };
            let plan = plan(&lengths, &limits, longest);
            let mut seen: Vec<usize> = plan.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for b in &plan {
                let widths: Vec<usize> = b.iter().map(|&i| padded(lengths[i], longest)).collect();
                prop_assert!(widths.iter().all(|w| *w == widths[0]));
                prop_assert!(b.iter().all(|&i| widths[0] >= lengths[i]));
                prop_assert!(b.len() <= max_rows);
                prop_assert!(b.len() == 1 || b.len() * widths[0] <= max_tokens);
            }
        }

        #[test]
        fn a_row_is_as_wide_alone_as_among_others(
            lengths in prop::collection::vec(1usize..128, 1..100),
            pick in any::<prop::sample::Index>(),
        ) {
            let limits = Limits { max_tokens: 512, max_rows: 16 };
            let i = pick.index(lengths.len());
            let of = |lengths: &[usize], i: usize| {
                let all = plan(lengths, &limits, 128);
                let batch = all.iter().find(|b| b.contains(&i)).expect("every row is planned").clone();
                batch.iter().map(|&j| padded(lengths[j], 128)).max()
            };
            prop_assert_eq!(of(&lengths, i), of(&lengths[i..=i], 0));
        }
    }
}
