//! Each exported graph against libtorch on validation posts, and what it may differ by.

use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use sentistream::{classify::artifact::Measured, evaluation::Evaluation};

use super::runtime::Runner;
use crate::batches::mix;

/// Rows in each of the mixed batches.
const BATCH: usize = 16;

/// What a variant may differ by before its export fails.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest logit difference to libtorch; `None` where labels are what counts.
    pub logit_difference: Option<f64>,
    /// Least share of rows with libtorch's label.
    pub label_agreement: f64,
    /// Greatest loss of macro-recall, in points (hundredths).
    pub loss: f64,
    /// Largest logit difference between a post alone and in any batch.
    pub batch_difference: f64,
}

impl Limits {
    /// The limits of a variant.
    pub fn of(variant: &str) -> Self {
        let (logit_difference, label_agreement) = match variant {
            "fp32" => (Some(1e-4), 0.995),
            "fp16" => (None, 0.995),
            _ => (None, 0.98),
        };
        Self { logit_difference, label_agreement, loss: 0.3, batch_difference: 1e-4 }
    }
}

/// Validation rows with what libtorch says of them.
pub struct Reference {
    /// Token ids by row.
    pub rows: Vec<Vec<u32>>,
    /// True label by row.
    pub truth: Vec<usize>,
    /// libtorch's logits by row.
    pub logits: Vec<Vec<f32>>,
    /// Label names by index.
    pub labels: Vec<String>,
}

impl Reference {
    /// Metrics of some logits of these rows.
    pub fn evaluate(&self, logits: &[Vec<f32>]) -> Evaluation {
        let pairs = self.truth.iter().zip(logits).map(|(t, l)| (*t, argmax(l)));
        Evaluation::of(&self.labels, pairs)
    }
}

/// What was measured of a variant.
pub struct Report {
    /// Its name.
    pub variant: String,
    /// The numbers for the manifest.
    pub measured: Measured,
    /// Points (hundredths) of macro-recall lost against libtorch; below 0 where it won some.
    pub loss: f64,
    /// All metrics.
    pub evaluation: Evaluation,
    /// Logits by row, each row run alone.
    pub logits: Vec<Vec<f32>>,
    /// Whether a row's logits are the same to the bit alone and among rows of its own length.
    pub exact_among_equals: bool,
}

/// Index of the greatest logit; of equals the first.
pub fn argmax(logits: &[f32]) -> usize {
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |m, (i, x)| if *x > m.1 { (i, *x) } else { m }).0
}

/// Largest absolute difference; NaN anywhere makes it infinite.
pub fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |m: f64, (x, y)| {
        let d = f64::from((x - y).abs());
        if d.is_nan() { f64::INFINITY } else { m.max(d) }
    })
}

/// Runs every row alone, in random batches with rows of other lengths, and in batches of its own
/// length, and compares.
pub fn measure(variant: &str, runner: &mut Runner, reference: &Reference, seed: u64) -> Result<Report> {
    let rows = &reference.rows;
    let alone = in_batches(runner, rows, (0..rows.len()).map(|i| vec![i]))?;
    let mut shuffled: Vec<usize> = (0..rows.len()).collect();
    shuffled.sort_by_key(|i| mix(seed, *i as u64));
    let mixed = in_batches(runner, rows, shuffled.chunks(BATCH).map(<[usize]>::to_vec))?;
    let mut by_length: Vec<usize> = (0..rows.len()).collect();
    by_length.sort_by_key(|i| rows[*i].len());
    let runs = by_length.chunk_by(|a, b| rows[*a].len() == rows[*b].len());
    let equals = in_batches(runner, rows, runs.flat_map(|r| r.chunks(BATCH)).map(<[usize]>::to_vec))?;
    let evaluation = reference.evaluate(&alone);
    let agreeing = alone.iter().zip(&reference.logits).filter(|(a, b)| argmax(a) == argmax(b)).count();
    let measured = Measured {
        rows: rows.len(),
        macro_recall: evaluation.macro_recall,
        accuracy: evaluation.accuracy,
        label_agreement: agreeing as f64 / rows.len() as f64,
        max_logit_difference: largest_difference(&alone, &reference.logits),
        max_batch_difference: largest_difference(&alone, &mixed).max(largest_difference(&alone, &equals)),
    };
    let loss = 100.0 * (reference.evaluate(&reference.logits).macro_recall - evaluation.macro_recall);
    let exact_among_equals = alone == equals;
    Ok(Report { variant: variant.into(), measured, loss, evaluation, logits: alone, exact_among_equals })
}

/// Logits by row, computed batch by batch.
fn in_batches(
    runner: &mut Runner,
    rows: &[Vec<u32>],
    batches: impl Iterator<Item = Vec<usize>>,
) -> Result<Vec<Vec<f32>>> {
    let mut logits = vec![Vec::new(); rows.len()];
    for batch in batches {
        let posts: Vec<&Vec<u32>> = batch.iter().map(|i| &rows[*i]).collect();
        for (i, l) in batch.iter().zip(runner.logits(&posts)?) {
            logits[*i] = l;
        }
    }
    Ok(logits)
}

/// Fails when a report breaks a limit, and names every one that is broken.
pub fn check(reports: &[&Report]) -> Result<()> {
    let mut broken = Vec::new();
    for r in reports {
        let (limits, m) = (Limits::of(&r.variant), &r.measured);
        let mut expect = |holds: bool, what: &str, found: f64, limit: String| {
            if !holds {
                broken.push(format!("{}: {what} is {found:.6}, the limit is {limit}", r.variant));
            }
        };
        if let Some(most) = limits.logit_difference {
            let d = m.max_logit_difference;
            expect(d <= most, "largest logit difference to libtorch", d, format!("at most {most}"));
        }
        let (agree, least) = (m.label_agreement, limits.label_agreement);
        expect(agree >= least, "share of libtorch's labels", agree, format!("at least {least}"));
        let most = limits.loss;
        expect(r.loss <= most, "loss of macro-recall in points", r.loss, format!("at most {most}"));
        let (d, most) = (m.max_batch_difference, limits.batch_difference);
        expect(d <= most, "difference of a post alone and in a batch", d, format!("at most {most}"));
    }
    if !broken.is_empty() {
        bail!(
            "the export breaks its limits and nothing was written:\n  {}\nfor int8, calibrate on posts like those it will see (--calibration) or try other exponents (--smoothing)",
            broken.join("\n  ")
        );
    }
    Ok(())
}

/// The reports as a table of text.
pub fn table(reference: &Reference, reports: &[&Report]) -> Result<String> {
    let torch = reference.evaluate(&reference.logits);
    let mut t = String::new();
    writeln!(
        t,
        "{:<9}{:>14}{:>11}{:>10}{:>8}{:>13}  same length,",
        "variant", "logit diff.", "labels as", "macro-", "loss", "alone or in"
    )?;
    writeln!(
        t,
        "{:<9}{:>14}{:>11}{:>10}{:>8}{:>13}  same bits",
        "", "to libtorch", "libtorch", "recall", "points", "a batch"
    )?;
    writeln!(t, "{:<9}{:>14}{:>11}{:>10.4}{:>8}{:>13}", "libtorch", "", "", torch.macro_recall, "", "")?;
    for r in reports {
        let m = &r.measured;
        writeln!(
            t,
            "{:<9}{:>14.2e}{:>11.4}{:>10.4}{:>8.2}{:>13.1e}  {}",
            r.variant,
            m.max_logit_difference,
            m.label_agreement,
            m.macro_recall,
            r.loss,
            m.max_batch_difference,
            if r.exact_among_equals { "yes" } else { "no" }
        )?;
    }
    Ok(t)
}

/// Softmax of logits divided by a temperature, in double precision.
pub fn probabilities(logits: &[f32], temperature: f64) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|l| (f64::from(l - most) / temperature).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|p| p / sum).collect()
}

/// The temperature that gives the true labels the greatest likelihood (golden-section search over its
/// logarithm, from 0.05 to 20; the likelihood has one maximum).
pub fn fit_temperature(logits: &[Vec<f32>], truth: &[usize]) -> Result<f64> {
    ensure!(!logits.is_empty(), "no rows to fit the temperature on");
    let loss = |log_t: f64| -> f64 {
        let t = log_t.exp();
        logits.iter().zip(truth).map(|(l, y)| -probabilities(l, t)[*y].max(1e-300).ln()).sum()
    };
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (0.05f64.ln(), 20f64.ln());
    while high - low > 1e-6 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if loss(a) < loss(b) { high = b } else { low = a }
    }
    Ok(((low + high) / 2.0).exp())
}

/// Expected calibration error: the mean gap between confidence and accuracy over 15 bins of equal
/// width, weighted by their rows.
pub fn calibration_error(logits: &[Vec<f32>], truth: &[usize], temperature: f64) -> f64 {
    const BINS: usize = 15;
    let mut bins = [(0usize, 0f64, 0usize); BINS];
    for (l, y) in logits.iter().zip(truth) {
        let label = argmax(l);
        let confidence = probabilities(l, temperature)[label];
        let bin = &mut bins[((confidence * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + confidence, bin.2 + usize::from(label == *y));
    }
    let gap: f64 = bins.iter().map(|(_, confidence, right)| (confidence - *right as f64).abs()).sum();
    gap / logits.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report(variant: &str) -> Report {
        let measured = Measured {
            rows: 200,
            macro_recall: 0.7,
            accuracy: 0.7,
            label_agreement: 1.0,
            max_logit_difference: 1e-5,
            max_batch_difference: 1e-6,
        };
        let evaluation = Evaluation::of(&["a".into(), "b".into()], [(0, 0), (1, 1)]);
        let (variant, logits) = (variant.into(), vec![]);
        Report { variant, measured, loss: 0.0, evaluation, logits, exact_among_equals: true }
    }

    #[test]
    fn every_broken_limit_is_named() {
        assert!(check(&[&report("fp32"), &report("int8"), &report("fp16")]).is_ok());
        let mut r = report("fp32");
        r.measured.max_logit_difference = 2e-4;
        r.measured.max_batch_difference = f64::INFINITY;
        let e = check(&[&r]).unwrap_err().to_string();
        assert!(e.contains("fp32: largest logit difference") && e.contains("alone and in a batch"), "{e}");
        let mut r = report("int8");
        r.measured.max_logit_difference = 0.2;
        r.measured.label_agreement = 0.981;
        assert!(check(&[&r]).is_ok(), "int8 is judged by labels");
        let mut r = report("int8");
        r.measured.label_agreement = 0.979;
        r.loss = 0.31;
        let e = check(&[&r]).unwrap_err().to_string();
        assert!(e.contains("share of libtorch's labels") && e.contains("loss of macro-recall"), "{e}");
        let mut r = report("fp16");
        r.measured.label_agreement = 0.99;
        assert!(check(&[&r]).is_err());
    }

    #[test]
    fn nan_is_never_a_small_difference() {
        assert_eq!(largest_difference(&[vec![f32::NAN]], &[vec![0.0]]), f64::INFINITY);
        assert_eq!(largest_difference(&[vec![1.0, 2.0]], &[vec![1.5, 2.0]]), 0.5);
    }

    #[test]
    fn the_fitted_temperature_is_the_one_that_made_the_labels() {
        // Labels occur as softmax(logits / 2) says, so 2 is the answer and calibrates.
        let (mut logits, mut truth) = (vec![], vec![]);
        for step in 0..40 {
            let l = vec![step as f32 / 8.0, 0.0];
            let p = probabilities(&l, 2.0)[0];
            for k in 0..500 {
                logits.push(l.clone());
                truth.push(usize::from((f64::from(k) + 0.5) / 500.0 > p));
            }
        }
        let t = fit_temperature(&logits, &truth).unwrap();
        assert!((t - 2.0).abs() < 0.02, "{t}");
        assert!(calibration_error(&logits, &truth, t) < 0.005);
        assert!(calibration_error(&logits, &truth, 1.0) > 0.05);
    }
}
