//! Logits → verdict: calibrated softmax, label, confidence, the `uncertain` band.

use crate::{
    classify::artifact::Artifact,
    record::{Label, Scores, Sentiment, Verdict},
};

/// Decides for one model.
#[derive(Clone, Debug)]
pub struct Decider {
    labels: Vec<Sentiment>,
    temperature: f64,
    uncertain_below: f64,
}

impl Decider {
    /// A decider with the model's labels and temperature. A confidence below `uncertain_below`
    /// (`0..=1`) makes the label `uncertain`.
    pub fn new(artifact: &Artifact, uncertain_below: f64) -> Self {
        Self::of(artifact.labels.clone(), artifact.temperature, uncertain_below)
    }

    /// As [`Decider::new`], from the model's labels in output order and its temperature.
    pub fn of(labels: Vec<Sentiment>, temperature: f64, uncertain_below: f64) -> Self {
        Self { labels, temperature, uncertain_below }
    }

    /// The verdict on one post. The label is that of the largest logit, of the first one among equals;
    /// a model without a neutral label gives neutral a probability of 0. Scores and confidence are
    /// rounded to four decimals; the band looks at the rounded confidence, which is what the record
    /// shows.
    pub fn decide(&self, logits: &[f32]) -> Verdict {
        debug_assert_eq!(logits.len(), self.labels.len());
        let best = argmax(logits);
        let p = softmax(logits, self.temperature);
        let mut by_sentiment = [0.0; 3];
        for (label, p) in self.labels.iter().zip(&p) {
            by_sentiment[*label as usize] = *p;
        }
        let scores = Scores::rounded(by_sentiment);
        let sentiment = self.labels[best];
        let confidence = match sentiment {
            Sentiment::Negative => scores.negative,
            Sentiment::Neutral => scores.neutral,
            Sentiment::Positive => scores.positive,
        };
        let label = if confidence < self.uncertain_below { Label::Uncertain } else { sentiment.into() };
        Verdict { label, confidence, scores }
    }
}

/// Index of the largest value, the first among equals. 0 for an empty slice.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        if *v > values[best] {
            best = i;
        }
    }
    best
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = logits.iter().map(|&x| ((f64::from(x) - f64::from(max)) / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|x| x / sum).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Sentiment::{Negative, Neutral, Positive};

    fn decider(labels: &[Sentiment], temperature: f64, uncertain_below: f64) -> Decider {
        Decider::of(labels.to_vec(), temperature, uncertain_below)
    }

    #[test]
    fn labels_may_stand_in_any_order() {
        let v = decider(&[Positive, Negative, Neutral], 1.0, 0.0).decide(&[0.0, 2.0, 1.0]);
        assert_eq!(v.label, Label::Negative);
        assert_eq!((v.scores.negative, v.scores.neutral, v.scores.positive), (0.6652, 0.2447, 0.09));
        assert_eq!(v.confidence, 0.6652);
    }

    #[test]
    fn two_labels_leave_neutral_at_zero() {
        let v = decider(&[Negative, Positive], 1.0, 0.0).decide(&[-1.0, 1.0]);
        assert_eq!((v.label, v.scores.neutral, v.confidence), (Label::Positive, 0.0, 0.8808));
    }

    #[test]
    fn temperature_softens_and_never_changes_the_label() {
        let v = decider(&[Negative, Neutral, Positive], 2.0, 0.0).decide(&[0.0, 2.0, 1.0]);
        assert_eq!((v.label, v.confidence), (Label::Neutral, 0.5065));
    }

    #[test]
    fn ties_go_to_the_first_and_the_label_is_decided_before_rounding() {
        let d = decider(&[Neutral, Negative, Positive], 1.0, 0.0);
        assert_eq!(d.decide(&[1.0, 1.0, 0.0]).label, Label::Neutral);
        assert_eq!(d.decide(&[1.0, 1.000_001, 0.0]).label, Label::Negative);
    }

    #[test]
    fn the_band_is_open_at_its_upper_end() {
        let labels = [Negative, Neutral, Positive];
        let confidence = decider(&labels, 1.0, 0.0).decide(&[0.0, 2.0, 1.0]).confidence;
        assert_eq!(decider(&labels, 1.0, confidence).decide(&[0.0, 2.0, 1.0]).label, Label::Neutral);
        let v = decider(&labels, 1.0, confidence + 1e-4).decide(&[0.0, 2.0, 1.0]);
        assert_eq!((v.label, v.confidence), (Label::Uncertain, confidence));
    }

    proptest! {
        #[test]
        fn scores_are_probabilities(x in prop::array::uniform3(-80f32..80.0), t in 0.1f64..5.0) {
            let v = decider(&[Negative, Neutral, Positive], t, 0.0).decide(&x);
            let s = [v.scores.negative, v.scores.neutral, v.scores.positive];
            prop_assert!(s.iter().all(|p| (0.0..=1.0).contains(p)));
            prop_assert!((s.iter().sum::<f64>() - 1.0).abs() <= 1.5e-4 + 1e-12);
            prop_assert!(s.iter().all(|p| *p <= v.confidence));
            prop_assert_eq!(v.label, Label::from(Sentiment::ALL[argmax(&x)]));
        }
    }
}
