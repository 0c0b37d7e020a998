//! The encoder and its classification head in libtorch: one forward pass for all families.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tch::{Device, Kind, Tensor};

use crate::{
    config::{EncoderConfig, Pooling},
    weights::{Array, CLASSIFIER_BIAS, CLASSIFIER_WEIGHT, Weights},
};

/// A trainable tensor: a view into [`Model::flat`].
struct Param {
    name: String,
    shape: Vec<i64>,
    offset: i64,
    len: i64,
    tensor: Tensor,
}

/// An encoder with a classification head.
///
/// All parameters are views into one flat `f32` tensor, those with weight decay first, so that the
/// optimizer passes over them once and a checkpoint is one copy.
pub struct Model {
    /// Dimensions, pooling and labels.
    pub config: EncoderConfig,
    /// Where it computes.
    pub device: Device,
    /// Kind that matrices are multiplied in: `Float` or `BFloat16`.
    pub compute: Kind,
    params: Vec<Param>,
    index: HashMap<String, usize>,
    flat: Tensor,
    decayed: i64,
}

/// Texts of one batch, padded to the longest.
pub struct Batch {
    /// Token ids `[texts, tokens]`, int64.
    pub ids: Tensor,
    /// 1 for a text's own tokens and 0 for padding, `[texts, tokens]`, float.
    pub mask: Tensor,
}

impl Batch {
    /// Pads `rows` with `pad_id` to the longest of them.
    pub fn new(rows: &[&[u32]], pad_id: usize, device: Device) -> Self {
        let (n, longest) = (rows.len(), rows.iter().map(|r| r.len()).max().unwrap_or(0));
        let mut ids = vec![pad_id as i64; n * longest];
        let mut mask = vec![0f32; n * longest];
        for (i, row) in rows.iter().enumerate() {
            for (j, id) in row.iter().enumerate() {
                ids[i * longest + j] = i64::from(*id);
                mask[i * longest + j] = 1.0;
            }
        }
        let shape = [n as i64, longest as i64];
        Self {
            ids: Tensor::from_slice(&ids).view(shape).to_device(device),
            mask: Tensor::from_slice(&mask).view(shape).to_device(device),
        }
    }
}

impl Model {
    /// A model of `weights`. Without a head in them, one is drawn from `seed` (normal, 0.02).
    pub fn new(
        config: EncoderConfig,
        weights: &Weights,
        device: Device,
        compute: Kind,
        seed: u64,
    ) -> Result<Self> {
        if config.labels.len() < 2 {
            bail!("the model has {} labels, expected 2 or more", config.labels.len());
        }
        let mut named: Vec<(String, Array)> = Vec::new();
        for (name, _) in config.tensors() {
            let array = weights.get(&name)?.clone();
            named.push((name, array));
        }
        let (weight, bias) = match weights.head() {
            Ok((w, b)) => (w.clone(), b.clone()),
            Err(_) => new_head(config.labels.len(), config.hidden_size, seed),
        };
        named.push((CLASSIFIER_WEIGHT.into(), weight));
        named.push((CLASSIFIER_BIAS.into(), bias));
        // LayerNorm's weights and all biases are vectors, and nothing else is.
        named.sort_by_key(|(_, a)| a.shape.len() == 1);
        let decayed: usize = named.iter().filter(|(_, a)| a.shape.len() > 1).map(|(_, a)| a.data.len()).sum();
        let all: Vec<f32> = named.iter().flat_map(|(_, a)| a.data.iter().copied()).collect();
        let flat = Tensor::from_slice(&all).to_device(device);
        let mut offset = 0;
        let mut params = Vec::with_capacity(named.len());
        for (name, array) in named {
            let shape: Vec<i64> = array.shape.iter().map(|n| *n as i64).collect();
            let len = array.data.len() as i64;
            let tensor = flat.narrow(0, offset, len).view(shape.as_slice()).detach().set_requires_grad(true);
            params.push(Param { name, shape, offset, len, tensor });
            offset += len;
        }
        let index = params.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect();
        Ok(Self { config, device, compute, params, index, flat, decayed: decayed as i64 })
    }

    /// Logits `[texts, labels]`, `f32`. With `train`, dropout draws from libtorch's generator.
    pub fn forward(&self, batch: &Batch, train: bool) -> Tensor {
        let pooled = self.pooled(batch, train).dropout(self.config.hidden_dropout, train);
        pooled.linear(self.p(CLASSIFIER_WEIGHT), Some(self.p(CLASSIFIER_BIAS)))
    }

    /// The texts' vectors `[texts, hidden]`, `f32`.
    pub fn pooled(&self, batch: &Batch, train: bool) -> Tensor {
        let mut x = self.embed(batch, train);
        let blocked = ((&batch.mask - 1.0) * 1e30).unsqueeze(1).unsqueeze(1);
        for i in 0..self.config.layers {
            x = self.layer(i, &x, &blocked, train);
        }
        match self.config.pooling {
            Pooling::Cls => x.select(1, 0),
            Pooling::Mean => {
                let mask = batch.mask.unsqueeze(-1);
                let counts = mask.sum_dim_intlist(1i64, false, Kind::Float).clamp_min(1.0);
                (x * mask).sum_dim_intlist(1i64, false, Kind::Float) / counts
            }
        }
    }

    /// Logits of each text, computed in batches of `batch_size` without dropout, in input order.
    pub fn logits(&self, texts: &[&[u32]], batch_size: usize) -> Result<Vec<Vec<f32>>> {
        let _no_grad = tch::no_grad_guard();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i].len());
        let mut out = vec![Vec::new(); texts.len()];
        for rows in order.chunks(batch_size.max(1)) {
            let ids: Vec<&[u32]> = rows.iter().map(|i| texts[*i]).collect();
            let batch = Batch::new(&ids, self.config.pad_token_id, self.device);
            let logits: Vec<Vec<f32>> = self.forward(&batch, false).to_device(Device::Cpu).try_into()?;
            for (row, logits) in rows.iter().zip(logits) {
                if logits.iter().any(|x| !x.is_finite()) {
                    bail!("text {row}: the model's logits are {logits:?}, expected finite numbers");
                }
                out[*row] = logits;
            }
        }
        Ok(out)
    }

    /// The model's parameters by name, copied to the CPU.
    pub fn weights(&self) -> Result<Weights> {
        let all = self.flat_copy()?;
        let tensors = self.params.iter().map(|p| {
            let shape = p.shape.iter().map(|n| *n as usize).collect();
            let data = all[p.offset as usize..(p.offset + p.len) as usize].to_vec();
            (p.name.clone(), Array { shape, data })
        });
        Ok(Weights { tensors: tensors.collect() })
    }

    /// Leaf tensors to differentiate by, in the order of the flat tensor.
    pub fn leaves(&self) -> Vec<&Tensor> {
        self.params.iter().map(|p| &p.tensor).collect()
    }

    /// All parameters in one, those with weight decay first.
    pub fn flat(&mut self) -> &mut Tensor {
        &mut self.flat
    }

    /// All parameters.
    pub fn flat_copy(&self) -> Result<Vec<f32>> {
        Ok(Vec::<f32>::try_from(self.flat.to_device(Device::Cpu))?)
    }

    /// Replaces all parameters.
    pub fn set_flat(&mut self, values: &[f32]) -> Result<()> {
        if values.len() != self.len() {
            bail!("the state holds {} parameters, the model has {}", values.len(), self.len());
        }
        let _no_grad = tch::no_grad_guard();
        self.flat.f_copy_(&Tensor::from_slice(values)).context("copying the parameters")
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.flat.numel()
    }

    /// True for a model without parameters, which cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of the parameters, from the front, weight decay applies to: all but biases and
    /// LayerNorm.
    pub fn decayed(&self) -> usize {
        self.decayed as usize
    }

    fn p(&self, name: &str) -> &Tensor {
        &self.params[self.index[name]].tensor
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let (w, b) = (self.p(&format!("{name}.weight")), self.p(&format!("{name}.bias")));
        x.layer_norm([self.config.hidden_size as i64], Some(w), Some(b), self.config.layer_norm_eps, false)
    }

    /// `x` (already in the compute kind) through the matrices `names`, their outputs side by side.
    fn linear(&self, x: &Tensor, names: &[&str]) -> Tensor {
        let all = |suffix: &str| {
            let parts: Vec<&Tensor> = names.iter().map(|n| self.p(&format!("{n}.{suffix}"))).collect();
            match parts.as_slice() {
                [one] => one.to_kind(self.compute),
                more => Tensor::cat(more, 0).to_kind(self.compute),
            }
        };
        x.linear(&all("weight"), Some(&all("bias")))
    }

    fn embed(&self, batch: &Batch, train: bool) -> Tensor {
        let tokens = batch.ids.size()[1];
        let mut x =
            Tensor::embedding(self.p("embeddings.word_embeddings.weight"), &batch.ids, -1, false, false);
        let from = self.config.position_offset() as i64;
        x += self.p("embeddings.position_embeddings.weight").narrow(0, from, tokens);
        if self.config.type_vocab_size > 0 {
            x += self.p("embeddings.token_type_embeddings.weight").select(0, 0);
        }
        self.norm(&x, "embeddings.LayerNorm").dropout(self.config.hidden_dropout, train)
    }

    /// One transformer layer; `blocked` is added to attention scores, `[texts, 1, 1, tokens]`.
    fn layer(&self, i: usize, x: &Tensor, blocked: &Tensor, train: bool) -> Tensor {
        let c = &self.config;
        let n = c.layer_names(i);
        let low = x.to_kind(self.compute);
        let (texts, tokens) = (x.size()[0], x.size()[1]);
        let (heads, width) = (c.heads as i64, c.head_size() as i64);
        let qkv = self
            .linear(&low, &[&n.query, &n.key, &n.value])
            .view([texts, tokens, 3, heads, width])
            .permute([2, 0, 3, 1, 4]);
        let (q, k, v) = (qkv.select(0, 0), qkv.select(0, 1), qkv.select(0, 2));
        let scores = (q * (width as f64).powf(-0.5)).matmul(&k.transpose(-2, -1)).to_kind(Kind::Float);
        let attention = (scores + blocked)
            .softmax(-1, Kind::Float)
            .dropout(c.attention_dropout, train)
            .to_kind(self.compute);
        let mixed = attention.matmul(&v).transpose(1, 2).reshape([texts, tokens, heads * width]);
        let attended = self.linear(&mixed, &[&n.attention_output]).dropout(c.hidden_dropout, train);
        let x = self.norm(&(attended + x), &n.attention_norm);
        let wide = self.linear(&x.to_kind(self.compute), &[&n.intermediate]).gelu("none");
        let out = self.linear(&wide, &[&n.output]).dropout(c.hidden_dropout, train);
        self.norm(&(out + x), &n.output_norm)
    }
}

/// A head drawn from `seed`: weight normal with deviation 0.02 (Box–Muller), bias 0.
fn new_head(labels: usize, hidden: usize, seed: u64) -> (Array, Array) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut normal = || {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        (0.02 * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    let weight =
        Array { shape: vec![labels, hidden], data: (0..labels * hidden).map(|_| normal()).collect() };
    (weight, Array { shape: vec![labels], data: vec![0.0; labels] })
}
