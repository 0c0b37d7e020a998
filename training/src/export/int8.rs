//! Static int8: bytes for activations and weights, with every scale fixed at export.
//!
//! Fixed scales make a post's result independent of its neighbours in the batch, which one scale per
//! tensor measured at run time does not. Three things keep the accuracy:
//!
//! - **Smoothing** (SmoothQuant): a few channels of an encoder's activations are a hundred times larger
//!   than the rest. Dividing channel `c` by `s_c = max|x_c|^α / max|w_c|^(1-α)` and multiplying the
//!   weights' row by it moves that spread into the weights, which have a scale per column. Attention is
//!   linear in the values, so behind it the division is folded into the value projection and is free.
//! - **An asymmetric range**: GELU's output is never below -0.17; a symmetric byte would waste half.
//! - **Bias correction**: the mean error that rounding leaves in each output is subtracted.
//!
//! Exponent and clipping are chosen by site: those with the least squared error of the product on
//! calibration tokens.

use std::collections::BTreeMap;

use anyhow::Result;
use ndarray::{Array2, ArrayView2, Axis};

use super::{
    calibrate::{Calibration, Observed},
    encoder::{Linear, Site, linears},
};
use crate::{config::EncoderConfig, weights::Weights};

/// How the scales are chosen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Smoothing exponents to try; one fixes it.
    pub exponents: Vec<f32>,
    /// Shares of the observed range to try; values beyond are clipped.
    pub clips: Vec<f32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { exponents: vec![0.5, 0.65, 0.75, 0.85, 0.95], clips: vec![1.0, 0.9, 0.8, 0.7, 0.6] }
    }
}

/// Every quantised site, by layer.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sites that are absent stay in single precision.
    pub sites: BTreeMap<(usize, Site), SitePlan>,
}

/// A quantised site.
#[derive(Clone, Debug)]
pub struct SitePlan {
    /// What each input channel is multiplied by first, where that is not folded into what made it.
    pub multiplier: Option<Vec<f32>>,
    /// Width of one step of the input.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero_point: u8,
    /// The weights.
    pub matrices: Vec<ByteMatrix>,
    /// The exponent and clip that were chosen.
    pub chosen: (f32, f32),
    /// Squared error of the product over the squared product.
    pub relative_error: f64,
}

/// Weights in bytes: `weight[i, o] * scale[o]`.
#[derive(Clone, Debug)]
pub struct ByteMatrix {
    /// Rows.
    pub inputs: usize,
    /// Columns.
    pub outputs: usize,
    /// Row-major.
    pub weight: Vec<i8>,
    /// By column.
    pub scale: Vec<f32>,
    /// Corrected bias.
    pub bias: Vec<f32>,
}

/// Bytes and a scale for each row of a table.
pub fn quantise_rows(table: &[f32], width: usize) -> (Vec<i8>, Vec<f32>) {
    let mut bytes = Vec::with_capacity(table.len());
    let mut scales = Vec::with_capacity(table.len() / width);
    for row in table.chunks_exact(width) {
        let scale = step(row.iter().fold(0f32, |m, x| m.max(x.abs())));
        bytes.extend(row.iter().map(|x| to_byte(*x, scale)));
        scales.push(scale);
    }
    (bytes, scales)
}

/// The width of a signed byte's step that reaches `max`.
fn step(max: f32) -> f32 {
    if max > 0.0 { max / 127.0 } else { 1.0 }
}

fn to_byte(x: f32, scale: f32) -> i8 {
    // Clamped to the range of a byte before the cast.
    (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8
}

/// Chooses scales for every site of every layer.
pub fn plan(
    config: &EncoderConfig,
    weights: &Weights,
    calibration: &Calibration,
    settings: &Settings,
) -> Result<Plan> {
    let mut plan = Plan::default();
    for i in 0..config.layers {
        // Attention's site first: its smoothing is folded into the value projection that Qkv quantises.
        let context = linears(config, weights, i, Site::Context)?;
        let (site, fold) = best(&context, calibration.at(i, Site::Context), settings, true);
        plan.sites.insert((i, Site::Context), site);
        let mut qkv = linears(config, weights, i, Site::Qkv)?;
        scale_columns(&mut qkv[2], &fold);
        let (site, _) = best(&qkv, calibration.at(i, Site::Qkv), settings, false);
        plan.sites.insert((i, Site::Qkv), site);
        for s in [Site::Up, Site::Down] {
            let matrices = linears(config, weights, i, s)?;
            let (site, _) = best(&matrices, calibration.at(i, s), settings, false);
            plan.sites.insert((i, s), site);
        }
    }
    Ok(plan)
}

fn scale_columns(m: &mut Linear, by: &[f32]) {
    for row in m.weight.chunks_exact_mut(m.outputs) {
        row.iter_mut().zip(by).for_each(|(w, s)| *w *= s);
    }
    m.bias.iter_mut().zip(by).for_each(|(b, s)| *b *= s);
}

/// The site with the least error over the settings, and its input multiplier (which the site does not
/// hold when it is `folded`).
fn best(matrices: &[Linear], seen: &Observed, settings: &Settings, folded: bool) -> (SitePlan, Vec<f32>) {
    let inputs = matrices[0].inputs;
    let x = seen.sample(inputs);
    let joined = join(matrices);
    let exact = x.dot(&joined);
    let energy = exact.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>().max(f64::MIN_POSITIVE);
    let mut found: Option<(f64, Candidate)> = None;
    for &exponent in &settings.exponents {
        let multiplier = smoothing(&joined, seen, exponent);
        let (bytes, scale) = quantise_columns(&joined, &multiplier);
        let restored = restore(&bytes, &scale, joined.dim());
        for &clip in &settings.clips {
            let (step, zero) = input_range(seen, &multiplier, clip);
            let rounded = round_trip(&x, &multiplier, step, zero).dot(&restored);
            let mut error = &exact - &rounded;
            let bias = error.mean_axis(Axis(0)).map(|m| m.to_vec()).unwrap_or_default();
            error.rows_mut().into_iter().for_each(|mut r| {
                r.iter_mut().zip(&bias).for_each(|(e, b)| *e -= b);
            });
            let relative = error.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>() / energy;
            if found.as_ref().is_none_or(|(least, _)| relative < *least) {
                let (multiplier, bytes, scale) = (multiplier.clone(), bytes.clone(), scale.clone());
                let chosen = (exponent, clip);
                found = Some((relative, Candidate { multiplier, bytes, scale, step, zero, bias, chosen }));
            }
        }
    }
    // Settings hold at least one exponent and clip, and an error compares below nothing.
    let (relative_error, c) = found.expect("one candidate at least");
    let site = SitePlan {
        multiplier: (!folded).then(|| c.multiplier.clone()),
        scale: c.step,
        zero_point: c.zero,
        matrices: split(matrices, &c),
        chosen: c.chosen,
        relative_error,
    };
    (site, c.multiplier)
}

struct Candidate {
    multiplier: Vec<f32>,
    bytes: Vec<i8>,
    scale: Vec<f32>,
    step: f32,
    zero: u8,
    bias: Vec<f32>,
    chosen: (f32, f32),
}

/// Matrices side by side: they share their input, so they share its scale.
fn join(matrices: &[Linear]) -> Array2<f32> {
    let (inputs, outputs) = (matrices[0].inputs, matrices.iter().map(|m| m.outputs).sum());
    let mut all = Array2::zeros((inputs, outputs));
    let mut at = 0;
    for m in matrices {
        for (i, row) in m.weight.chunks_exact(m.outputs).enumerate() {
            row.iter().enumerate().for_each(|(o, w)| all[[i, at + o]] = *w);
        }
        at += m.outputs;
    }
    all
}

fn split(matrices: &[Linear], c: &Candidate) -> Vec<ByteMatrix> {
    let width = c.scale.len();
    let mut at = 0;
    let mut parts = Vec::with_capacity(matrices.len());
    for m in matrices {
        let columns = at..at + m.outputs;
        let weight = c.bytes.chunks_exact(width).flat_map(|r| r[columns.clone()].iter().copied());
        let bias = m.bias.iter().zip(&c.bias[columns.clone()]).map(|(b, e)| b + e).collect();
        parts.push(ByteMatrix {
            inputs: m.inputs,
            outputs: m.outputs,
            weight: weight.collect(),
            scale: c.scale[columns].to_vec(),
            bias,
        });
        at += m.outputs;
    }
    parts
}

/// `1 / s_c` by input channel.
fn smoothing(weights: &Array2<f32>, seen: &Observed, exponent: f32) -> Vec<f32> {
    weights
        .rows()
        .into_iter()
        .enumerate()
        .map(|(c, row)| {
            let w = row.iter().fold(1e-5f32, |m, x| m.max(x.abs()));
            let x = seen.max[c].abs().max(seen.min[c].abs()).max(1e-5);
            w.powf(1.0 - exponent) / x.powf(exponent)
        })
        .collect()
}

/// Bytes and scales by column of `weights[c, o] / multiplier[c]`.
fn quantise_columns(weights: &Array2<f32>, multiplier: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let mut max = vec![0f32; weights.ncols()];
    for (row, m) in weights.rows().into_iter().zip(multiplier) {
        max.iter_mut().zip(row).for_each(|(most, w)| *most = most.max((w / m).abs()));
    }
    let scale: Vec<f32> = max.into_iter().map(step).collect();
    let mut bytes = Vec::with_capacity(weights.len());
    for (row, m) in weights.rows().into_iter().zip(multiplier) {
        bytes.extend(row.iter().zip(&scale).map(|(w, s)| to_byte(w / m, *s)));
    }
    (bytes, scale)
}

fn restore(bytes: &[i8], scale: &[f32], dim: (usize, usize)) -> Array2<f32> {
    Array2::from_shape_fn(dim, |(i, o)| f32::from(bytes[i * dim.1 + o]) * scale[o])
}

/// Step and zero point of an unsigned byte over the smoothed range, which always holds 0.
fn input_range(seen: &Observed, multiplier: &[f32], clip: f32) -> (f32, u8) {
    let reach = |values: &[f32], pick: fn(f32, f32) -> f32| {
        values.iter().zip(multiplier).fold(0f32, |r, (x, m)| pick(r, x * m)) * clip
    };
    let (low, high) = (reach(&seen.min, f32::min), reach(&seen.max, f32::max));
    let step = if high > low { (high - low) / 255.0 } else { 1.0 };
    // Between 0 and 255, because the range holds 0.
    (step, (-low / step).round_ties_even() as u8)
}

/// What the smoothed input is after rounding to a byte and back.
fn round_trip(x: &ArrayView2<'_, f32>, multiplier: &[f32], step: f32, zero: u8) -> Array2<f32> {
    let zero = f32::from(zero);
    let mut out = x.to_owned();
    for mut row in out.rows_mut() {
        for (v, m) in row.iter_mut().zip(multiplier) {
            let byte = ((*v * m / step).round_ties_even() + zero).clamp(0.0, 255.0);
            *v = (byte - zero) * step;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rows: &[[f32; 2]]) -> Observed {
        let mut o = Observed::new(2, 100);
        rows.iter().for_each(|r| o.add(r, 0));
        o
    }

    #[test]
    fn rows_keep_their_sign_and_size() {
        let (bytes, scales) = quantise_rows(&[1.27, -0.635, 0.0, 0.0], 2);
        assert_eq!(bytes, [127, -64, 0, 0]);
        assert!((scales[0] - 0.01).abs() < 1e-7);
    }

    #[test]
    fn an_outlier_channel_is_smoothed_away() {
        // Channel 1 is a thousand times larger than channel 0, which falls below one step without smoothing.
        let rows: Vec<[f32; 2]> =
            (0..50).map(|i| [i as f32 / 25.0 - 1.0, (i % 7) as f32 * 300.0 - 900.0]).collect();
        let m = Linear { inputs: 2, outputs: 2, weight: vec![1.0, -1.0, 0.001, 0.002], bias: vec![0.0; 2] };
        let o = seen(&rows);
        let (step, zero) = input_range(&o, &[1.0, 1.0], 1.0);
        let exact = o.sample(2).dot(&join(std::slice::from_ref(&m)));
        let plain = round_trip(&o.sample(2), &[1.0, 1.0], step, zero).dot(&join(std::slice::from_ref(&m)));
        let energy = |x: Array2<f32>| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let without = energy(&exact - &plain) / energy(exact);
        let (smoothed, _) = best(std::slice::from_ref(&m), &o, &Settings::default(), false);
        assert!(without > 0.1 && smoothed.relative_error < 1e-4, "{without} {}", smoothed.relative_error);
    }

    #[test]
    fn gelu_like_input_uses_the_whole_byte() {
        let o = seen(&[[-0.17, 0.0], [3.0, 2.0]]);
        let (step, zero) = input_range(&o, &[1.0, 1.0], 1.0);
        assert!((step - 3.17 / 255.0).abs() < 1e-6);
        assert_eq!(zero, 14);
    }

    #[test]
    fn the_bias_takes_up_the_mean_error() {
        let m = Linear { inputs: 2, outputs: 1, weight: vec![1.0, 0.3], bias: vec![2.0] };
        let rows: Vec<[f32; 2]> = (0..64).map(|i| [1.0, (i % 7) as f32 * 0.013]).collect();
        let o = seen(&rows);
        let (site, multiplier) = best(std::slice::from_ref(&m), &o, &Settings::default(), false);
        let q = &site.matrices[0];
        let w: Vec<f32> = q.weight.iter().map(|b| f32::from(*b) * q.scale[0]).collect();
        let x = round_trip(&o.sample(2), &multiplier, site.scale, site.zero_point);
        let mean: f32 = x
            .rows()
            .into_iter()
            .zip(&rows)
            .map(|(r, raw)| (r[0] * w[0] + r[1] * w[1] + q.bias[0]) - (raw[0] + 0.3 * raw[1] + 2.0))
            .sum::<f32>()
            / rows.len() as f32;
        assert!(mean.abs() < 1e-5, "{mean}");
    }
}
