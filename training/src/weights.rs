//! `model.safetensors`: reading with every shape checked, and writing.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::config::EncoderConfig;

/// A tensor of `f32`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// Its values.
    pub data: Vec<f32>,
}

/// Named tensors of a model: the encoder's by Hugging Face's names without the family's prefix, and
/// `classifier.weight` `[labels, hidden]` and `classifier.bias` where there is a head.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Weights {
    /// By name.
    pub tensors: BTreeMap<String, Array>,
}

/// The head's matrix, `[labels, hidden]`.
pub const CLASSIFIER_WEIGHT: &str = "classifier.weight";
/// The head's bias, `[labels]`.
pub const CLASSIFIER_BIAS: &str = "classifier.bias";

impl Weights {
    /// Reads the encoder that `config` describes from `model.safetensors` of a model folder, and the
    /// head where the file has one that fits `config.labels`. Tensors of other heads are left out.
    pub fn load(dir: &Path, config: &EncoderConfig) -> Result<Self> {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "{}: cannot read; save the model as safetensors (a pytorch_model.bin is not read)",
                path.display()
            )
        })?;
        Self::parse(&bytes, config).with_context(|| path.display().to_string())
    }

    fn parse(bytes: &[u8], config: &EncoderConfig) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
        let prefix = config.family.prefix();
        let mut views = BTreeMap::new();
        for (name, view) in file.tensors() {
            views.insert(plain_name(&name, prefix), view);
        }
        let mut tensors = BTreeMap::new();
        for (name, shape) in config.tensors() {
            let view = views.get(&name).ok_or_else(|| {
                anyhow!("tensor {name} is missing (looked for it with and without '{prefix}'); expected shape {shape:?}")
            })?;
            tensors.insert(name.clone(), read(&name, view, &shape)?);
        }
        let labels = config.labels.len();
        let head = views.get(CLASSIFIER_WEIGHT).zip(views.get(CLASSIFIER_BIAS));
        if let Some((weight, bias)) = head.filter(|_| labels > 0) {
            let (w, b) = (CLASSIFIER_WEIGHT, CLASSIFIER_BIAS);
            tensors.insert(w.into(), read(w, weight, &[labels, config.hidden_size])?);
            tensors.insert(b.into(), read(b, bias, &[labels])?);
        }
        Ok(Self { tensors })
    }

    /// A tensor by name; one that is absent is an error.
    pub fn get(&self, name: &str) -> Result<&Array> {
        self.tensors.get(name).ok_or_else(|| anyhow!("tensor {name} is missing"))
    }

    /// The head's weight and bias; their absence says that the folder was not fine-tuned.
    pub fn head(&self) -> Result<(&Array, &Array)> {
        let advice = "the model has no classification head: make one with `training finetune`";
        Ok((self.get(CLASSIFIER_WEIGHT).context(advice)?, self.get(CLASSIFIER_BIAS).context(advice)?))
    }

    /// Forgets the head, so that a new one is drawn.
    pub fn drop_head(&mut self) {
        self.tensors.remove(CLASSIFIER_WEIGHT);
        self.tensors.remove(CLASSIFIER_BIAS);
    }

    /// The safetensors file's bytes, the encoder's names carrying the family's prefix.
    pub fn to_bytes(&self, config: &EncoderConfig) -> Result<Vec<u8>> {
        let raw: Vec<(String, &Array, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, a)| {
                let head = name.starts_with("classifier.");
                let prefix = if head { "" } else { config.family.prefix() };
                (format!("{prefix}{name}"), a, a.data.iter().flat_map(|x| x.to_le_bytes()).collect())
            })
            .collect();
        let views = raw
            .iter()
            .map(|(name, a, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, a.shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>>>()?;
        let about = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
        Ok(safetensors::serialize(views, Some(about))?)
    }
}

/// A name without the family's prefix; old checkpoints call LayerNorm's tensors gamma and beta.
fn plain_name(name: &str, prefix: &str) -> String {
    let name = name.strip_prefix(prefix).unwrap_or(name);
    if let Some(stem) = name.strip_suffix(".gamma") {
        return format!("{stem}.weight");
    }
    match name.strip_suffix(".beta") {
        Some(stem) => format!("{stem}.bias"),
        None => name.to_owned(),
    }
}

fn read(name: &str, view: &TensorView<'_>, shape: &[usize]) -> Result<Array> {
    if view.shape() != shape {
        bail!("tensor {name} has shape {:?}, config.json makes it {shape:?}", view.shape());
    }
    let bytes = view.data();
    let data: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        other => bail!("tensor {name} has type {other:?}, expected F32, F16 or BF16"),
    };
    if let Some(at) = data.iter().position(|x| !x.is_finite()) {
        bail!("tensor {name} holds {} at index {at}, expected finite numbers", data[at]);
    }
    Ok(Array { shape: shape.to_vec(), data })
}
