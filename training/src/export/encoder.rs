//! An encoder's weights → its ONNX graph, in any of the three number formats.
//!
//! All families become one chain of ONNX Runtime's fused operators:
//!
//! ```text
//! Gather → add and normalise → per layer: product ×3 → MultiHeadAttention → product → add and normalise
//!   → product → GELU → product → add and normalise; then pooling and the classifier
//! ```
//!
//! The attention mask enters as key lengths `[batch]`, the one form that the CPU kernel and CUDA's
//! fused kernels both take; a batch is therefore padded at the end of its rows.
//!
//! Two choices are for speed on the CPU, measured with ONNX Runtime 1.31 on 28 posts of 36 tokens: Sum and
//! LayerNormalization take 0.40 ms where SkipLayerNormalization takes 2.31 ms (Sum, because Add would be
//! fused back into it), and a bias inside MatMulIntegerToFloat costs 0.07 ms where the same bias inside
//! BiasGelu costs 0.75 ms. fp16 keeps the fused forms, which are the fast ones on CUDA.

use anyhow::Result;

use super::{
    graph::{Attribute, Graph},
    int8::{Plan, quantise_rows},
    proto::data_type::{FLOAT, INT32, INT64},
};
use crate::{
    config::{EncoderConfig, Family, Pooling},
    weights::{Array, Weights},
};

/// In what numbers a graph computes.
#[derive(Clone, Copy)]
pub enum Numbers<'a> {
    /// Single precision.
    Fp32,
    /// Half precision; pooling and head in single.
    Fp16,
    /// Matrix products of the layers in bytes, the rest in single precision.
    Int8(&'a Plan),
}

/// A place in a layer whose value is multiplied by weights: what int8 quantises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// The layer's input, multiplied into queries, keys and values.
    Qkv,
    /// What attention gathered.
    Context,
    /// Input of the feed-forward block.
    Up,
    /// Inside of the feed-forward block, after GELU.
    Down,
}

impl Site {
    /// All four, in the order of the computation.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Context, Self::Up, Self::Down];

    /// Name of the value at this site of layer `i`, in every graph that [`build`] makes.
    pub fn value_name(self, i: usize) -> String {
        match self {
            Self::Qkv if i == 0 => "embedded".into(),
            Self::Qkv => format!("layer{}.out", i - 1),
            Self::Context => format!("layer{i}.context"),
            Self::Up => format!("layer{i}.attended"),
            Self::Down => format!("layer{i}.activated"),
        }
    }

    fn stem(self, i: usize) -> String {
        let site = match self {
            Self::Qkv => "qkv",
            Self::Context => "attention_output",
            Self::Up => "up",
            Self::Down => "down",
        };
        format!("layer{i}.{site}")
    }
}

/// A matrix and its bias.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Rows.
    pub inputs: usize,
    /// Columns.
    pub outputs: usize,
    /// `[inputs, outputs]`: transposed from Hugging Face's layout.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Vec<f32>,
}

/// The matrices that multiply the value at a site: query, key and value, or one.
pub fn linears(config: &EncoderConfig, weights: &Weights, i: usize, site: Site) -> Result<Vec<Linear>> {
    let n = config.layer_names(i);
    let names = match site {
        Site::Qkv => vec![n.query, n.key, n.value],
        Site::Context => vec![n.attention_output],
        Site::Up => vec![n.intermediate],
        Site::Down => vec![n.output],
    };
    names.iter().map(|name| linear(weights, name)).collect()
}

fn linear(weights: &Weights, name: &str) -> Result<Linear> {
    let w = weights.get(&format!("{name}.weight"))?;
    let (outputs, inputs) = (w.shape[0], w.shape[1]);
    let mut weight = vec![0f32; w.data.len()];
    for (o, row) in w.data.chunks_exact(inputs).enumerate() {
        for (i, x) in row.iter().enumerate() {
            weight[i * outputs + o] = *x;
        }
    }
    Ok(Linear { inputs, outputs, weight, bias: weights.get(&format!("{name}.bias"))?.data.clone() })
}

/// The graph of an encoder with its head.
pub fn build(config: &EncoderConfig, weights: &Weights, numbers: Numbers<'_>) -> Result<Graph> {
    let mut e = Emitter { g: Graph::default(), config, weights, numbers };
    e.g.input("input_ids", INT64, &["batch", "tokens"]);
    e.g.input("attention_mask", INT64, &["batch", "tokens"]);
    if config.family == Family::Bert {
        e.g.input("token_type_ids", INT64, &["batch", "tokens"]);
    }
    let mask = e.g.node("Cast", "mask32", &["attention_mask"], &[Attribute::Int("to", INT32.into())]);
    let axis1 = e.g.i64("axis1", &[1], &[1]);
    let lengths = e.g.node("ReduceSum", "lengths", &[&mask, &axis1], &[Attribute::Int("keepdims", 0)]);
    let mut x = e.embed()?;
    for i in 0..config.layers {
        x = e.layer(i, &x, &lengths)?;
    }
    e.head(&x)?;
    Ok(e.g)
}

/// [`build`] in single precision with the value at every site as a further output, for calibration.
pub fn build_observed(config: &EncoderConfig, weights: &Weights) -> Result<Graph> {
    let mut g = build(config, weights, Numbers::Fp32)?;
    for i in 0..config.layers {
        for site in Site::ALL {
            let width = if site == Site::Down { config.intermediate_size } else { config.hidden_size };
            g.output(&site.value_name(i), FLOAT, &["batch", "tokens", &width.to_string()]);
        }
    }
    Ok(g)
}

struct Emitter<'a> {
    g: Graph,
    config: &'a EncoderConfig,
    weights: &'a Weights,
    numbers: Numbers<'a>,
}

impl Emitter<'_> {
    fn half(&self) -> bool {
        matches!(self.numbers, Numbers::Fp16)
    }

    /// A float constant in the graph's own precision.
    fn float(&mut self, name: &str, dims: &[usize], data: &[f32]) -> String {
        if self.half() { self.g.f16(name, dims, data) } else { self.g.f32(name, dims, data) }
    }

    /// Sum of word, position and type vectors, normalised: `[batch, tokens, hidden]`.
    fn embed(&mut self) -> Result<String> {
        let words = self.weights.get("embeddings.word_embeddings.weight")?;
        let mut positions = self.weights.get("embeddings.position_embeddings.weight")?.clone();
        let mut x = self.rows("words", words, "input_ids");
        if self.config.type_vocab_size > 0 {
            let types = self.weights.get("embeddings.token_type_embeddings.weight")?;
            if self.config.family == Family::Bert {
                let table = self.float("types.table", &types.shape, &types.data);
                let t = self.g.node("Gather", "types", &[&table, "token_type_ids"], &[]);
                x = self.g.node("Add", "words_and_types", &[&x, &t], &[]);
            } else {
                // RoBERTa has one type, so its vector is part of every position's.
                let hidden = self.config.hidden_size;
                for row in positions.data.chunks_exact_mut(hidden) {
                    row.iter_mut().zip(&types.data[..hidden]).for_each(|(p, t)| *p += t);
                }
            }
        }
        let ids = self.position_ids();
        let p = self.rows("positions", &positions, &ids);
        self.norm("embedded", [&x, &p, ""], "embeddings.LayerNorm")
    }

    /// `[tokens]` counted from 0; RoBERTa: `[batch, tokens]`, the count of attended tokens so far plus
    /// the padding id, which padding itself keeps.
    fn position_ids(&mut self) -> String {
        let g = &mut self.g;
        if self.config.family != Family::Roberta {
            let shape = g.node("Shape", "ids_shape", &["input_ids"], &[]);
            let one = g.i64("one", &[], &[1]);
            let zero = g.i64("zero", &[], &[0]);
            let tokens = g.node("Gather", "tokens", &[&shape, &one], &[]);
            return g.node("Range", "position_ids", &[&zero, &tokens, &one], &[]);
        }
        let axis = g.i64("axis1_scalar", &[], &[1]);
        let pad = g.i64("pad_id", &[], &[self.config.pad_token_id as i64]);
        let count = g.node("CumSum", "attended_so_far", &["attention_mask", &axis], &[]);
        let own = g.node("Mul", "attended_count", &[&count, "attention_mask"], &[]);
        g.node("Add", "position_ids", &[&own, &pad], &[])
    }

    /// The rows of an embedding table that `ids` name.
    fn rows(&mut self, name: &str, table: &Array, ids: &str) -> String {
        let Numbers::Int8(_) = self.numbers else {
            let t = self.float(&format!("{name}.table"), &table.shape, &table.data);
            return self.g.node("Gather", name, &[&t, ids], &[]);
        };
        let (bytes, scales) = quantise_rows(&table.data, table.shape[1]);
        let g = &mut self.g;
        let t = g.i8(&format!("{name}.table"), &table.shape, &bytes);
        let s = g.f32(&format!("{name}.scales"), &[table.shape[0], 1], &scales);
        let row = g.node("Gather", &format!("{name}.bytes"), &[&t, ids], &[]);
        let row = g.node("Cast", &format!("{name}.float"), &[&row], &[Attribute::Int("to", FLOAT.into())]);
        let scale = g.node("Gather", &format!("{name}.scale"), &[&s, ids], &[]);
        g.node("Mul", name, &[&row, &scale], &[])
    }

    /// LayerNorm of `value + residual + bias` (the bias may be empty).
    fn norm(&mut self, name: &str, [value, residual, bias]: [&str; 3], tensor: &str) -> Result<String> {
        let hidden = [self.config.hidden_size];
        let gamma = &self.weights.get(&format!("{tensor}.weight"))?.data;
        let beta = &self.weights.get(&format!("{tensor}.bias"))?.data;
        let gamma = self.float(&format!("{name}.gamma"), &hidden, gamma);
        let beta = self.float(&format!("{name}.beta"), &hidden, beta);
        let epsilon = Attribute::Float("epsilon", self.config.layer_norm_eps as f32);
        if self.half() {
            let inputs = [value, residual, &gamma, &beta, bias];
            return Ok(self.g.fused("SkipLayerNormalization", name, &inputs, &[epsilon]));
        }
        let sum = self.g.node("Sum", &format!("{name}.sum"), &[value, residual, bias], &[]);
        let last = Attribute::Int("axis", -1);
        Ok(self.g.node("LayerNormalization", name, &[&sum, &gamma, &beta], &[last, epsilon]))
    }

    fn layer(&mut self, i: usize, x: &str, lengths: &str) -> Result<String> {
        let n = self.config.layer_names(i);
        let (qkv, bias) = self.multiply(i, Site::Qkv, x)?;
        let heads = Attribute::Int("num_heads", self.config.heads as i64);
        let inputs = [qkv[0].as_str(), &qkv[1], &qkv[2], &bias, lengths];
        let context = self.g.fused("MultiHeadAttention", &Site::Context.value_name(i), &inputs, &[heads]);
        let (out, bias) = self.multiply(i, Site::Context, &context)?;
        let attended = self.norm(&Site::Up.value_name(i), [&out[0], x, &bias], &n.attention_norm)?;
        let (up, bias) = self.multiply(i, Site::Up, &attended)?;
        let gelu = if bias.is_empty() { "Gelu" } else { "BiasGelu" };
        let activated = self.g.fused(gelu, &Site::Down.value_name(i), &[&up[0], &bias], &[]);
        let (down, bias) = self.multiply(i, Site::Down, &activated)?;
        self.norm(&Site::Qkv.value_name(i + 1), [&down[0], &attended, &bias], &n.output_norm)
    }

    /// `value` times each of the site's matrices, and the name of their biases laid end to end for the next
    /// operator to add; empty where they are added already.
    fn multiply(&mut self, i: usize, site: Site, value: &str) -> Result<(Vec<String>, String)> {
        let stem = site.stem(i);
        if let Numbers::Int8(plan) = self.numbers
            && let Some(q) = plan.sites.get(&(i, site))
        {
            return Ok((self.multiply_bytes(&stem, q, value), String::new()));
        }
        let matrices = linears(self.config, self.weights, i, site)?;
        let bias: Vec<f32> = matrices.iter().flat_map(|m| m.bias.iter().copied()).collect();
        let bias = self.float(&format!("{stem}.bias"), &[bias.len()], &bias);
        let products = matrices.iter().enumerate().map(|(k, m)| {
            let w = self.float(&format!("{stem}.weight{k}"), &[m.inputs, m.outputs], &m.weight);
            self.g.node("MatMul", &format!("{stem}.product{k}"), &[value, &w], &[])
        });
        Ok((products.collect(), bias))
    }

    fn multiply_bytes(&mut self, stem: &str, q: &super::int8::SitePlan, value: &str) -> Vec<String> {
        let g = &mut self.g;
        let mut input = value.to_owned();
        if let Some(m) = &q.multiplier {
            let m = g.f32(&format!("{stem}.smoothing"), &[m.len()], m);
            input = g.node("Mul", &format!("{stem}.smoothed"), &[value, &m], &[]);
        }
        let scale = g.f32(&format!("{stem}.scale"), &[], &[q.scale]);
        let zero = g.u8_scalar(&format!("{stem}.zero"), q.zero_point);
        let bytes = g.node("QuantizeLinear", &format!("{stem}.bytes"), &[&input, &scale, &zero], &[]);
        let products = q.matrices.iter().enumerate().map(|(k, m)| {
            let w = g.i8(&format!("{stem}.weight{k}"), &[m.inputs, m.outputs], &m.weight);
            let ws = g.f32(&format!("{stem}.weight_scale{k}"), &[m.outputs], &m.scale);
            let bias = g.f32(&format!("{stem}.bias{k}"), &[m.outputs], &m.bias);
            let inputs = [bytes.as_str(), &w, &scale, &ws, &zero, "", &bias];
            g.fused("MatMulIntegerToFloat", &format!("{stem}.product{k}"), &inputs, &[])
        });
        products.collect()
    }

    /// Pooling and classifier, always in single precision: they are a thousandth of the work.
    fn head(&mut self, x: &str) -> Result<()> {
        let (weight, bias) = self.weights.head()?;
        let half = self.half();
        let g = &mut self.g;
        let to_float = [Attribute::Int("to", FLOAT.into())];
        let x = if half { g.node("Cast", "hidden_float", &[x], &to_float) } else { x.to_owned() };
        match self.config.pooling {
            Pooling::Cls => {
                let first = g.i64("first", &[], &[0]);
                g.node("Gather", "embedding", &[&x, &first], &[Attribute::Int("axis", 1)]);
            }
            Pooling::Mean => {
                let keep = g.node("Cast", "mask_float", &["attention_mask"], &to_float);
                // A product by post, because a sum over tokens adds in another order for one post.
                let axis1 = g.i64("axis1", &[1], &[1]);
                let row = g.node("Unsqueeze", "mask_row", &[&keep, &axis1], &[]);
                let sum = g.node("MatMul", "token_sum_row", &[&row, &x], &[]);
                let sum = g.node("Squeeze", "token_sum", &[&sum, &axis1], &[]);
                let count = g.node("ReduceSum", "token_count", &[&keep, &axis1], &[]);
                let least = g.f32("least_count", &[], &[1.0]);
                let count = g.node("Max", "token_count_at_least_1", &[&count, &least], &[]);
                g.node("Div", "embedding", &[&sum, &count], &[]);
            }
        }
        // A product and a sum by row and label: a matrix product takes other kernels for one row than for
        // many, and a post's last bits would depend on its batch.
        let labels = bias.data.len();
        let w = g.f32("classifier.weight", &weight.shape, &weight.data);
        let b = g.f32("classifier.bias", &[labels], &bias.data);
        let (axis1, axis2) = (g.i64("axis1", &[1], &[1]), g.i64("axis2", &[1], &[2]));
        let row = g.node("Unsqueeze", "embedding_row", &["embedding", &axis1], &[]);
        let terms = g.node("Mul", "label_terms", &[&row, &w], &[]);
        let sums = g.node("ReduceSum", "label_sums", &[&terms, &axis2], &[Attribute::Int("keepdims", 0)]);
        g.node("Add", "logits", &[&sums, &b], &[]);
        g.output("logits", FLOAT, &["batch", &labels.to_string()]);
        g.output("embedding", FLOAT, &["batch", &self.config.hidden_size.to_string()]);
        Ok(())
    }
}
