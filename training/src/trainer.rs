//! One training step and one evaluation, whatever loop they stand in.

use std::time::Instant;

use anyhow::{Context, Result};
use sentistream::evaluation::Evaluation;
use tch::{Device, Kind, Reduction, Tensor};

use crate::{
    args::{Args, ClassWeights, Precision},
    batches::mix,
    data::Example,
    device::processor_computes_bf16,
    finetune::evaluation,
    model::{Batch, Model},
    optim::{AdamW, Optimizer, clip, learning_rate},
    state::State,
};

/// Texts a forward pass of an evaluation.
const EVALUATION_BATCH: usize = 64;

/// A model with its optimizer and loss.
pub struct Trainer {
    /// The model.
    pub model: Model,
    optimizer: Optimizer,
    class_weights: Option<Tensor>,
    label_smoothing: f64,
    peak: f64,
    clip: f64,
    warmup: u64,
    total: u64,
    seed: u64,
}

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Loss before the step.
    pub loss: f64,
    /// Gradient norm before clipping.
    pub norm: f64,
    /// Learning rate used.
    pub lr: f64,
}

impl Trainer {
    /// A trainer for `total` steps; `by_label` counts the training rows, for the class weights.
    pub fn new(model: Model, args: &Args, total: u64, by_label: &[usize]) -> Self {
        let rule = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: args.weight_decay };
        let optimizer = Optimizer::new(rule, model.len(), model.decayed(), model.device, args.threads());
        let class_weights = class_weights(args.class_weights, by_label)
            .map(|w| Tensor::from_slice(&w).to_device(model.device));
        Self {
            optimizer,
            class_weights,
            label_smoothing: args.label_smoothing,
            peak: args.lr,
            clip: args.clip,
            warmup: (args.warmup * total as f64).ceil() as u64,
            total,
            seed: args.seed,
            model,
        }
    }

    /// Step number `step`, counted from 1. Dropout is seeded by the step, so a resumed run draws what
    /// an unbroken one would have drawn.
    pub fn step(&mut self, examples: &[&Example], step: u64) -> Result<Done> {
        let (loss, grads) = self.gradients(examples, step)?;
        let (scale, norm) = clip(&grads, self.clip, step)?;
        let lr = learning_rate(self.peak, step, self.warmup, self.total);
        self.optimizer.step(self.model.flat(), &grads, scale, lr, step)?;
        Ok(Done { loss, norm, lr })
    }

    fn gradients(&self, examples: &[&Example], step: u64) -> Result<(f64, Vec<Tensor>)> {
        tch::manual_seed((mix(self.seed, step) >> 1) as i64);
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let targets: Vec<i64> = examples.iter().map(|e| e.label as i64).collect();
        let targets = Tensor::from_slice(&targets).to_device(self.model.device);
        let batch = Batch::new(&ids, self.model.config.pad_token_id, self.model.device);
        let logits = self.model.forward(&batch, true);
        let loss = logits.cross_entropy_loss(
            &targets,
            self.class_weights.as_ref(),
            Reduction::Mean,
            -100,
            self.label_smoothing,
        );
        let grads = Tensor::f_run_backward(&[&loss], &self.model.leaves(), false, false)
            .with_context(|| format!("step {step}: backward"))?;
        Ok((loss.double_value(&[]), grads))
    }

    /// What to multiply matrices in. `auto` takes bf16 on CUDA; on a processor that has bf16 it times
    /// both, because some are slower at it.
    pub fn choose_compute(
        &mut self,
        asked: Precision,
        examples: &[Example],
        batch_size: usize,
    ) -> Result<Kind> {
        let on_cpu = self.model.device == Device::Cpu;
        match asked {
            Precision::Fp32 => return Ok(Kind::Float),
            Precision::Bf16 => return Ok(Kind::BFloat16),
            Precision::Auto if !on_cpu => return Ok(Kind::BFloat16),
            Precision::Auto if !processor_computes_bf16() => return Ok(Kind::Float),
            Precision::Auto => {}
        }
        let mut best = (f64::INFINITY, Kind::Float);
        for kind in [Kind::Float, Kind::BFloat16] {
            self.model.compute = kind;
            let mut seconds = f64::INFINITY;
            // Batches of several widths, as in training: a new shape can cost more than its arithmetic.
            for (i, batch) in examples.chunks(batch_size).take(4).enumerate() {
                let batch: Vec<&Example> = batch.iter().collect();
                let started = Instant::now();
                self.gradients(&batch, 0)?;
                let tokens: usize = batch.iter().map(|e| e.ids.len()).max().unwrap_or(1) * batch.len();
                if i > 0 {
                    seconds = seconds.min(started.elapsed().as_secs_f64() / tokens as f64);
                }
            }
            if seconds < best.0 {
                best = (seconds, kind);
            }
        }
        Ok(best.1)
    }

    /// Metrics on `examples`, computed in `f32` as the exported model will compute.
    pub fn evaluate(&mut self, examples: &[Example], labels: &[String]) -> Result<Evaluation> {
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let compute = std::mem::replace(&mut self.model.compute, Kind::Float);
        let logits = self.model.logits(&ids, EVALUATION_BATCH);
        self.model.compute = compute;
        Ok(evaluation(labels, examples.iter().map(|e| e.label), &logits?))
    }

    /// Parameters and moments with a position.
    pub fn state<P>(&self, position: P) -> Result<State<P>> {
        let (m, v) = self.optimizer.moments()?;
        Ok(State { position, values: self.model.flat_copy()?, m, v })
    }

    /// Puts parameters and moments back.
    pub fn restore<P>(&mut self, state: &State<P>) -> Result<()> {
        self.model.set_flat(&state.values)?;
        self.optimizer.set_moments(&state.m, &state.v)
    }
}

/// Loss weights by label, their mean over the training rows being 1.
fn class_weights(choice: ClassWeights, by_label: &[usize]) -> Option<Vec<f32>> {
    let power = match choice {
        ClassWeights::None => return None,
        ClassWeights::Sqrt => 0.5,
        ClassWeights::Balanced => 1.0,
    };
    let raw: Vec<f64> = by_label.iter().map(|n| (*n as f64).powf(-power)).collect();
    let rows: usize = by_label.iter().sum();
    let sum: f64 = raw.iter().zip(by_label).map(|(w, n)| w * *n as f64).sum();
    Some(raw.iter().map(|w| (w * rows as f64 / sum) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_labels_weigh_more_and_rows_weigh_one_on_average() {
        assert_eq!(class_weights(ClassWeights::None, &[1, 2, 3]), None);
        for (choice, ratio) in [(ClassWeights::Sqrt, 2.0), (ClassWeights::Balanced, 4.0)] {
            let w = class_weights(choice, &[100, 400, 100]).expect("weights");
            assert!((w[0] / w[1] - ratio).abs() < 1e-5);
            let mean = (w[0] * 100.0 + w[1] * 400.0 + w[2] * 100.0) / 600.0;
            assert!((mean - 1.0).abs() < 1e-5);
        }
    }
}
