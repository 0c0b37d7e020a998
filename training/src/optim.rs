//! AdamW in one pass over all parameters, the learning rate's course, and gradient clipping.

use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

use crate::native::{values, values_mut};

/// Constants of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// AdamW's state over a model's flat parameters.
pub struct Optimizer {
    rule: AdamW,
    /// First moments.
    m: Tensor,
    /// Second moments.
    v: Tensor,
    decayed: usize,
    threads: usize,
}

/// What one step multiplies with, the same for every parameter of a group.
#[derive(Clone, Copy)]
struct Step {
    beta1: f32,
    beta2: f32,
    /// 1 − beta1 and 1 − beta2, taken before rounding to `f32`.
    new1: f32,
    new2: f32,
    /// Learning rate over the first moment's bias correction.
    rate: f32,
    /// One over the root of the second moment's bias correction.
    root: f32,
    eps: f32,
    /// Factor on the parameter before the step: 1 − learning rate × weight decay.
    keep: f32,
    /// Factor on the gradient (clipping).
    scale: f32,
}

impl Optimizer {
    /// Fresh moments for `len` parameters, of which the first `decayed` are decayed.
    pub fn new(rule: AdamW, len: usize, decayed: usize, device: Device, threads: usize) -> Self {
        let zeros = || Tensor::zeros([len as i64], (Kind::Float, device));
        Self { rule, m: zeros(), v: zeros(), decayed, threads: threads.max(1) }
    }

    /// First and second moments, for the state file.
    pub fn moments(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        let copy = |t: &Tensor| Vec::<f32>::try_from(t.to_device(Device::Cpu));
        Ok((copy(&self.m)?, copy(&self.v)?))
    }

    /// Puts saved moments back.
    pub fn set_moments(&mut self, m: &[f32], v: &[f32]) -> Result<()> {
        for (tensor, saved) in [(&mut self.m, m), (&mut self.v, v)] {
            if saved.len() != tensor.numel() {
                bail!("the state holds {} moments, the model has {} parameters", saved.len(), tensor.numel());
            }
            tensor.f_copy_(&Tensor::from_slice(saved))?;
        }
        Ok(())
    }

    /// One step. `flat` holds the parameters, `grads` their gradients in order and piecewise, `scale`
    /// multiplies the gradients, `step` counts from 1.
    pub fn step(
        &mut self,
        flat: &mut Tensor,
        grads: &[Tensor],
        scale: f64,
        lr: f64,
        step: u64,
    ) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let given: usize = grads.iter().map(Tensor::numel).sum();
        if given != flat.numel() {
            bail!("{given} gradients for {} parameters", flat.numel());
        }
        let decay = self.rule.weight_decay;
        let (with, without) = (self.constants(scale, lr, step, decay), self.constants(scale, lr, step, 0.0));
        if flat.device() != Device::Cpu {
            return self.step_by_tensors(flat, grads, with, without);
        }
        let mut p = values_mut(flat)?;
        let (mut m, mut v) = (values_mut(&mut self.m)?, values_mut(&mut self.v)?);
        let mut at = 0;
        for grad in grads {
            let grad = grad.contiguous();
            let g = values(&grad)?;
            let (p_now, p_rest) = p.split_at_mut(g.len());
            let (m_now, m_rest) = m.split_at_mut(g.len());
            let (v_now, v_rest) = v.split_at_mut(g.len());
            (p, m, v) = (p_rest, m_rest, v_rest);
            let s = if at < self.decayed { with } else { without };
            update(p_now, m_now, v_now, g, s, self.threads);
            at += g.len();
        }
        Ok(())
    }

    fn constants(&self, scale: f64, lr: f64, step: u64, decay: f64) -> Step {
        let r = self.rule;
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        Step {
            beta1: r.beta1 as f32,
            beta2: r.beta2 as f32,
            new1: (1.0 - r.beta1) as f32,
            new2: (1.0 - r.beta2) as f32,
            rate: (lr / (1.0 - r.beta1.powi(power))) as f32,
            root: (1.0 / (1.0 - r.beta2.powi(power)).sqrt()) as f32,
            eps: r.eps as f32,
            keep: (1.0 - lr * decay) as f32,
            scale: scale as f32,
        }
    }

    /// The same by tensor operations, for devices whose memory is not ours.
    fn step_by_tensors(
        &mut self,
        flat: &mut Tensor,
        grads: &[Tensor],
        with: Step,
        without: Step,
    ) -> Result<()> {
        let pieces: Vec<Tensor> = grads.iter().map(|g| g.reshape([-1])).collect();
        let g = Tensor::cat(&pieces, 0) * f64::from(with.scale);
        let _ = self.m.lerp_(&g, f64::from(with.new1));
        self.v *= f64::from(with.beta2);
        self.v += g.square() * f64::from(with.new2);
        let (decayed, rest) = (self.decayed as i64, (flat.numel() - self.decayed) as i64);
        for (from, len, s) in [(0, decayed, with), (decayed, rest, without)] {
            let mut p = flat.narrow(0, from, len);
            let (m, v) = (self.m.narrow(0, from, len), self.v.narrow(0, from, len));
            p *= f64::from(s.keep);
            p -= m / (v.sqrt() * f64::from(s.root) + f64::from(s.eps)) * f64::from(s.rate);
        }
        Ok(())
    }
}

/// AdamW over slices, in as many threads as pay for themselves.
fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: Step, threads: usize) {
    const WORTH_A_THREAD: usize = 1 << 18;
    let share = p.len().div_ceil(threads).max(WORTH_A_THREAD);
    if p.len() <= share {
        return update_share(p, m, v, g, s);
    }
    std::thread::scope(|scope| {
        let shares =
            p.chunks_mut(share).zip(m.chunks_mut(share)).zip(v.chunks_mut(share)).zip(g.chunks(share));
        for (((p, m), v), g) in shares {
            scope.spawn(move || update_share(p, m, v, g, s));
        }
    });
}

fn update_share(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: Step) {
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * s.scale;
        *m = s.beta1 * *m + s.new1 * g;
        *v = s.beta2 * *v + s.new2 * g * g;
        *p = *p * s.keep - s.rate * *m / (v.sqrt() * s.root + s.eps);
    }
}

/// The factor that brings the gradients' global norm down to `max_norm`, and that norm. A norm that is
/// not finite is an error: the step would spoil every parameter.
pub fn clip(grads: &[Tensor], max_norm: f64, step: u64) -> Result<(f64, f64)> {
    let _no_grad = tch::no_grad_guard();
    let norms: Vec<Tensor> = grads.iter().map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
    if !norm.is_finite() {
        bail!(
            "step {step}: the gradient's norm is {norm}. Resume from the last state with a lower --lr, or with --precision fp32"
        );
    }
    Ok(((max_norm / (norm + 1e-6)).min(1.0), norm))
}

/// The learning rate of a step that counts from 1: linear up over `warmup` steps, then linear down to
/// 0 just after `total`.
pub fn learning_rate(peak: f64, step: u64, warmup: u64, total: u64) -> f64 {
    if step <= warmup {
        return peak * step as f64 / warmup as f64;
    }
    let left = (total + 1).saturating_sub(step) as f64;
    peak * left / (total + 1).saturating_sub(warmup).max(1) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RULE: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

    #[test]
    fn three_steps_of_adamw_worked_by_hand() {
        // Gradients 0.5, -0.25, 2 at rate 0.1; the first parameter is decayed, the second is not.
        let expected = [[0.899, 0.9], [0.871_467_3, 0.873_366_3], [0.803_531_07, 0.806_301_55]];
        let mut flat = Tensor::from_slice(&[1f32, 1.0]);
        let mut optimizer = Optimizer::new(RULE, 2, 1, Device::Cpu, 1);
        for (i, g) in [0.5f32, -0.25, 2.0].into_iter().enumerate() {
            let grads = [Tensor::from_slice(&[g]), Tensor::from_slice(&[g])];
            optimizer.step(&mut flat, &grads, 1.0, 0.1, i as u64 + 1).unwrap();
            for (got, want) in values(&flat).unwrap().iter().zip(expected[i]) {
                assert!((f64::from(*got) - want).abs() < 1e-6, "step {}: {got}, {want}", i + 1);
            }
        }
    }

    #[test]
    fn the_path_by_tensors_and_threads_agrees_with_one_pass() {
        let n = 700_000;
        let start = Tensor::randn([n], (Kind::Float, Device::Cpu));
        let [mut one, mut many, mut tensors] = [0, 1, 2].map(|_| start.copy());
        let new = |threads| Optimizer::new(RULE, n as usize, 600_000, Device::Cpu, threads);
        let (mut a, mut b, mut c) = (new(1), new(3), new(1));
        for step in 1..=3 {
            let g = Tensor::randn([n], (Kind::Float, Device::Cpu));
            let grads = [g.narrow(0, 0, 600_000), g.narrow(0, 600_000, 100_000)];
            a.step(&mut one, &grads, 0.5, 0.01, step).unwrap();
            b.step(&mut many, &grads, 0.5, 0.01, step).unwrap();
            let (with, without) = (c.constants(0.5, 0.01, step, 0.01), c.constants(0.5, 0.01, step, 0.0));
            c.step_by_tensors(&mut tensors, &grads, with, without).unwrap();
        }
        assert!(one.equal(&many));
        let difference = (&one - &tensors).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");
        assert!((&one - &start).abs().mean(Kind::Float).double_value(&[]) > 0.005);
    }

    #[test]
    fn gradients_of_the_wrong_number_are_refused() {
        let mut flat = Tensor::from_slice(&[1f32, 1.0]);
        let mut optimizer = Optimizer::new(RULE, 2, 1, Device::Cpu, 1);
        for n in [1, 3] {
            let grads = [Tensor::zeros([n], (Kind::Float, Device::Cpu))];
            let error = optimizer.step(&mut flat, &grads, 1.0, 0.1, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("{n} gradients for 2 parameters")), "{error}");
        }
    }

    #[test]
    fn clipping_scales_to_the_norm_and_stops_at_nan() {
        let grads = |x: f32| [Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[x])];
        let (scale, norm) = clip(&grads(4.0), 1.0, 1).unwrap();
        assert!((norm - 5.0).abs() < 1e-6 && (scale - 0.2).abs() < 1e-6);
        assert_eq!(clip(&grads(4.0), 10.0, 1).unwrap().0, 1.0);
        for bad in [f32::NAN, f32::INFINITY] {
            let error = clip(&grads(bad), 1.0, 17).unwrap_err().to_string();
            assert!(error.contains("step 17") && error.contains("--precision fp32"), "{error}");
        }
    }

    #[test]
    fn the_rate_rises_and_falls_in_straight_lines() {
        let at = |step| learning_rate(1.0, step, 4, 12);
        assert_eq!([at(1), at(2), at(4)], [0.25, 0.5, 1.0]);
        assert!((at(5) - 8.0 / 9.0).abs() < 1e-12 && (at(12) - 1.0 / 9.0).abs() < 1e-12);
        assert_eq!(learning_rate(1.0, 1, 0, 2), 2.0 / 3.0 * 1.0);
    }
}
