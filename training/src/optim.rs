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
        let r = self.rule;
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let constants = |decay: f64| Step {
            beta1: r.beta1 as f32,
            beta2: r.beta2 as f32,
            rate: (lr / (1.0 - r.beta1.powi(power))) as f32,
            root: (1.0 / (1.0 - r.beta2.powi(power)).sqrt()) as f32,
            eps: r.eps as f32,
            keep: (1.0 - lr * decay) as f32,
            scale: scale as f32,
        };
        let (with, without) = (constants(r.weight_decay), constants(0.0));
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
        if !p.is_empty() {
            bail!("{at} gradients for {} parameters", at + p.len());
        }
        Ok(())
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
        let _ = self.m.lerp_(&g, 1.0 - f64::from(with.beta1));
        self.v *= f64::from(with.beta2);
        self.v += g.square() * (1.0 - f64::from(with.beta2));
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
        *m = s.beta1 * *m + (1.0 - s.beta1) * g;
        *v = s.beta2 * *v + (1.0 - s.beta2) * g * g;
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
