//! Classification metrics from true and predicted labels. Shared by `evaluate` and by training.

use serde::{Deserialize, Serialize};

use crate::record::Map;

/// Counts and metrics; every ratio is in `0..=1`, and 0 where its denominator is 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Rows.
    pub rows: usize,
    /// Share of correct labels.
    pub accuracy: f64,
    /// Mean over labels of recall (the SemEval and TweetEval measure for sentiment).
    pub macro_recall: f64,
    /// Mean over labels of F1.
    pub macro_f1: f64,
    /// Mean over labels of F1, weighted by support.
    pub weighted_f1: f64,
    /// By label.
    pub per_class: Map<String, ClassMetrics>,
    /// Rows: truth; columns: prediction; both in `labels` order.
    pub confusion: Vec<Vec<usize>>,
    /// Label names in index order.
    pub labels: Vec<String>,
}

/// One label's metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// True positives over predicted.
    pub precision: f64,
    /// True positives over actual.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Rows that carry the label.
    pub support: usize,
}

impl Evaluation {
    /// Metrics of `(truth, prediction)` label indices. Macro means run over the labels that occur in
    /// the truth, as scikit-learn's do over `labels=unique(y_true)`.
    pub fn of(labels: &[String], pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let n = labels.len();
        let mut confusion = vec![vec![0usize; n]; n];
        for (t, p) in pairs {
            confusion[t][p] += 1;
        }
        let ratio = |a: usize, b: usize| if b == 0 { 0.0 } else { a as f64 / b as f64 };
        let rows: usize = confusion.iter().flatten().sum();
        let classes: Vec<ClassMetrics> = (0..n)
            .map(|i| {
                let tp = confusion[i][i];
                let support: usize = confusion[i].iter().sum();
                let predicted: usize = confusion.iter().map(|r| r[i]).sum();
                let (precision, recall) = (ratio(tp, predicted), ratio(tp, support));
                let f1 = ratio(2 * tp, predicted + support);
                ClassMetrics { precision, recall, f1, support }
            })
            .collect();
        let present: Vec<&ClassMetrics> = classes.iter().filter(|c| c.support > 0).collect();
        let mean = |f: fn(&ClassMetrics) -> f64| {
            if present.is_empty() {
                0.0
            } else {
                present.iter().map(|c| f(c)).sum::<f64>() / present.len() as f64
            }
        };
        let weighted_f1 = if rows == 0 {
            0.0
        } else {
            classes.iter().map(|c| c.f1 * c.support as f64).sum::<f64>() / rows as f64
        };
        Self {
            rows,
            accuracy: ratio((0..n).map(|i| confusion[i][i]).sum(), rows),
            macro_recall: mean(|c| c.recall),
            macro_f1: mean(|c| c.f1),
            weighted_f1,
            per_class: labels.iter().cloned().zip(classes).collect(),
            confusion,
            labels: labels.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_a_known_confusion() {
        // Checked by hand: class 0 has 2 of 3 right, class 1 has 1 of 1, class 2 never occurs.
        let labels: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
        let e = Evaluation::of(&labels, [(0, 0), (0, 0), (0, 1), (1, 1)]);
        assert_eq!(e.rows, 4);
        assert!((e.accuracy - 0.75).abs() < 1e-12);
        assert!((e.macro_recall - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12);
        assert!((e.per_class["a"].f1 - 0.8).abs() < 1e-12);
        assert!((e.per_class["b"].precision - 0.5).abs() < 1e-12);
        assert!((e.weighted_f1 - (0.8 * 3.0 + 2.0 / 3.0) / 4.0).abs() < 1e-12);
        assert_eq!(e.confusion, vec![vec![2, 1, 0], vec![0, 1, 0], vec![0, 0, 0]]);
    }

    #[test]
    fn nothing_gives_zeros_and_no_nan() {
        let e = Evaluation::of(&["a".into()], []);
        assert_eq!((e.rows, e.accuracy, e.macro_recall, e.weighted_f1), (0, 0.0, 0.0, 0.0));
    }
}
