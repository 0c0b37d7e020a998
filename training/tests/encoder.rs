//! The encoder in libtorch against an independent forward pass in plain `f64` loops, written from the
//! families' papers for one text at a time.

#![allow(clippy::unwrap_used)]

mod common;

use serde_json::json;
use tch::{Device, Kind};
use training::{
    config::{EncoderConfig, Family, Pooling},
    model::{Batch, Model},
    weights::Weights,
};

type Rows = Vec<Vec<f64>>;

struct Reference<'a> {
    w: &'a Weights,
    c: &'a EncoderConfig,
}

impl Reference<'_> {
    fn vector(&self, name: &str) -> Vec<f64> {
        self.w.tensors[name].data.iter().map(|x| f64::from(*x)).collect()
    }

    fn row(&self, name: &str, i: usize) -> Vec<f64> {
        let a = &self.w.tensors[name];
        let width = a.shape[1];
        a.data[i * width..(i + 1) * width].iter().map(|x| f64::from(*x)).collect()
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let bias = self.vector(&format!("{name}.bias"));
        let weight: Rows = (0..bias.len()).map(|o| self.row(&format!("{name}.weight"), o)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        x.iter().map(|x| weight.iter().zip(&bias).map(|(w, b)| dot(x, w) + b).collect()).collect()
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        let (w, b) = (self.vector(&format!("{name}.weight")), self.vector(&format!("{name}.bias")));
        let one = |x: &Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let scale = (variance + self.c.layer_norm_eps).sqrt();
            x.iter().zip(&w).zip(&b).map(|((x, w), b)| (x - mean) / scale * w + b).collect()
        };
        x.iter().map(one).collect()
    }

    fn attention(&self, x: &Rows, names: [&str; 3]) -> Rows {
        let [q, k, v] = names.map(|n| self.linear(x, n));
        let width = self.c.hidden_size / self.c.heads;
        let mut out = vec![vec![0.0; self.c.hidden_size]; x.len()];
        for h in 0..self.c.heads {
            let part = h * width..(h + 1) * width;
            for i in 0..x.len() {
                let score =
                    |j: usize| part.clone().map(|d| q[i][d] * k[j][d]).sum::<f64>() / (width as f64).sqrt();
                let e: Vec<f64> = (0..x.len()).map(|j| score(j).exp()).collect();
                let sum: f64 = e.iter().sum();
                for d in part.clone() {
                    out[i][d] = (0..x.len()).map(|j| e[j] / sum * v[j][d]).sum();
                }
            }
        }
        out
    }

    fn logits(&self, ids: &[u32]) -> Vec<f64> {
        let first = if self.c.family == Family::Roberta { 1 + self.c.pad_token_id } else { 0 };
        let mut x: Rows = ids
            .iter()
            .enumerate()
            .map(|(i, id)| {
                let mut v = add(
                    &self.row("embeddings.word_embeddings.weight", *id as usize),
                    &self.row("embeddings.position_embeddings.weight", first + i),
                );
                if self.c.family != Family::DistilBert {
                    v = add(&v, &self.row("embeddings.token_type_embeddings.weight", 0));
                }
                v
            })
            .collect();
        x = self.norm(&x, "embeddings.LayerNorm");
        for i in 0..self.c.layers {
            let at = |name: &str| match self.c.family {
                Family::DistilBert => format!("transformer.layer.{i}.{name}"),
                _ => format!("encoder.layer.{i}.{name}"),
            };
            let n: [&str; 8] = match self.c.family {
                Family::DistilBert => [
                    "attention.q_lin",
                    "attention.k_lin",
                    "attention.v_lin",
                    "attention.out_lin",
                    "sa_layer_norm",
                    "ffn.lin1",
                    "ffn.lin2",
                    "output_layer_norm",
                ],
                _ => [
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                    "attention.output.LayerNorm",
                    "intermediate.dense",
                    "output.dense",
                    "output.LayerNorm",
                ],
            };
            let n = n.map(at);
            let mixed = self.attention(&x, [&n[0], &n[1], &n[2]]);
            x = self.norm(&add_rows(&self.linear(&mixed, &n[3]), &x), &n[4]);
            let wide: Rows =
                self.linear(&x, &n[5]).iter().map(|r| r.iter().map(|x| gelu(*x)).collect()).collect();
            x = self.norm(&add_rows(&self.linear(&wide, &n[6]), &x), &n[7]);
        }
        let pooled = match self.c.pooling {
            Pooling::Cls => x[0].clone(),
            Pooling::Mean => {
                let sum = x.iter().skip(1).fold(x[0].clone(), |a, b| add(&a, b));
                sum.iter().map(|v| v / x.len() as f64).collect()
            }
        };
        self.linear(&vec![pooled], "classifier").remove(0)
    }
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn add_rows(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| add(a, b)).collect()
}

/// x Φ(x), with erf by the series whose terms all have one sign.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= 2.0 * z * z / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 * x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * (-z * z).exp() * sum)
}

/// Texts of several lengths, so that padding is there to be ignored.
fn texts() -> Vec<Vec<u32>> {
    vec![vec![2, 5, 3], vec![2, 4, 9, 11, 6, 15, 3], vec![2, 3], vec![2, 10, 10, 12, 3]]
}

fn head() -> [(&'static str, serde_json::Value); 1] {
    [("id2label", json!({"0": "negative", "1": "neutral", "2": "positive"}))]
}

#[test]
fn logits_are_those_of_plain_loops() {
    for family in [Family::Bert, Family::DistilBert, Family::Roberta] {
        for pooling in ["mean", "cls"] {
            let mut extra = head().to_vec();
            extra.push(("pooling", json!(pooling)));
            let config = common::config(family, &extra);
            let weights = common::weights(&config, 3);
            let model = Model::new(config.clone(), &weights, Device::Cpu, Kind::Float, 0).unwrap();
            let texts = texts();
            let ids: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let together = model.logits(&ids, 8).unwrap();
            let reference = Reference { w: &weights, c: &config };
            for (text, got) in texts.iter().zip(&together) {
                let expected = reference.logits(text);
                assert!(expected.iter().any(|x| x.abs() > 0.05), "{expected:?} shows little");
                for (g, e) in got.iter().zip(&expected) {
                    assert!((f64::from(*g) - e).abs() < 1e-5, "{family:?} {pooling}: {got:?}, {expected:?}");
                }
            }
        }
    }
}

#[test]
fn bf16_is_near_and_dropout_acts_in_training_only() {
    let config = common::config(Family::Bert, &head());
    let weights = common::weights(&config, 3);
    let mut model = Model::new(config, &weights, Device::Cpu, Kind::Float, 0).unwrap();
    let texts = texts();
    let ids: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let exact = model.logits(&ids, 8).unwrap();
    model.compute = Kind::BFloat16;
    let near = model.logits(&ids, 8).unwrap();
    let differences: Vec<f32> =
        exact.iter().flatten().zip(near.iter().flatten()).map(|(a, b)| (a - b).abs()).collect();
    assert!(differences.iter().all(|d| *d < 0.05), "{differences:?}");
    assert!(differences.iter().any(|d| *d > 0.0));

    model.compute = Kind::Float;
    let batch = Batch::new(&ids, 0, Device::Cpu);
    let same = |a: &tch::Tensor, b: &tch::Tensor| a.equal(b);
    assert!(same(&model.forward(&batch, false), &model.forward(&batch, false)));
    assert!(!same(&model.forward(&batch, true), &model.forward(&batch, true)));
}

#[test]
fn a_folder_written_is_read_back_with_and_without_the_prefix() {
    for family in [Family::Bert, Family::DistilBert, Family::Roberta] {
        let config = common::config(family, &head());
        let weights = common::weights(&config, 5);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.safetensors");
        let bytes = weights.to_bytes(&config).unwrap();
        let names = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let prefixed = |n: &str| n.starts_with(family.prefix()) || n.starts_with("classifier.");
        assert!(names.names().iter().all(|n| prefixed(n)));
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(Weights::load(dir.path(), &config).unwrap(), weights);
        // The same tensors as an encoder alone would have them.
        let plain: Vec<(String, safetensors::tensor::TensorView<'_>)> = names
            .tensors()
            .into_iter()
            .map(|(n, t)| (n.strip_prefix(family.prefix()).unwrap_or(&n).to_owned(), t))
            .collect();
        std::fs::write(&file, safetensors::serialize(plain, None).unwrap()).unwrap();
        assert_eq!(Weights::load(dir.path(), &config).unwrap(), weights);
    }
}

#[test]
fn a_missing_or_misshapen_tensor_is_named_with_file_and_shapes() {
    let config = common::config(Family::Bert, &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let name = "encoder.layer.1.output.dense.weight";
    let mut weights = common::weights(&config, 5);
    let array = weights.tensors.remove(name).unwrap();
    std::fs::write(&file, weights.to_bytes(&config).unwrap()).unwrap();
    let error = format!("{:#}", Weights::load(dir.path(), &config).unwrap_err());
    for part in ["model.safetensors", name, "missing", "[16, 24]"] {
        assert!(error.contains(part), "{error}");
    }
    let turned = training::weights::Array { shape: vec![24, 16], data: array.data };
    weights.tensors.insert(name.into(), turned);
    std::fs::write(&file, weights.to_bytes(&config).unwrap()).unwrap();
    let error = format!("{:#}", Weights::load(dir.path(), &config).unwrap_err());
    for part in ["model.safetensors", name, "[24, 16]", "[16, 24]"] {
        assert!(error.contains(part), "{error}");
    }
}
