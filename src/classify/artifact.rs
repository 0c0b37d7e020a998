//! The model artifact: the folder that `training` writes and the processor runs.
//!
//! `config.json`, `tokenizer.json` and `model*.onnx` are laid out as Hugging Face users know them;
//! `artifact.json` is ours and makes the folder self-describing: hashes, text preparation, variants
//! with their measured accuracy, calibration, golden examples. A folder without it (an `optimum`
//! export) is read too, with what `config.json` says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    prepare::TextPreparation,
    record::{Map, ModelId, Sentiment},
};

/// The version of `artifact.json` that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// `artifact.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name that labelled records carry.
    pub name: String,
    /// What was fine-tuned.
    pub base_model: String,
    /// BCP 47 primary subtags of the languages it was trained on.
    pub languages: Vec<String>,
    /// Text preparation applied in training.
    pub preparation: TextPreparation,
    /// Longest encoding, special tokens included; longer texts are cut.
    pub max_tokens: usize,
    /// Labels by output index.
    pub labels: Vec<String>,
    /// Logits are divided by this before the softmax.
    pub temperature: f64,
    /// Variants by name (`fp32`, `int8`, `fp16`).
    pub variants: Map<String, Variant>,
    /// sha256 (hex) of every file beside this one that inference depends on.
    pub files: Map<String, String>,
    /// Texts with the logits they must give.
    pub golden: Vec<Golden>,
}

/// One exported graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// File name of the graph in the folder.
    pub file: String,
    /// Devices it is made for: `cpu`, `cuda`.
    pub devices: Vec<String>,
    /// Largest difference that the golden examples may show on another machine.
    pub tolerance: f64,
    /// Measured on the validation rows at export.
    pub measured: Measured,
}

/// What export measured of a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Validation rows.
    pub rows: usize,
    /// Mean recall over the labels.
    pub macro_recall: f64,
    /// Share of correct labels.
    pub accuracy: f64,
    /// Share of rows with the label that libtorch gave.
    pub label_agreement: f64,
    /// Largest absolute logit difference to libtorch.
    pub max_logit_difference: f64,
    /// Largest absolute logit difference between a post alone and in a batch.
    pub max_batch_difference: f64,
}

/// A text and what each variant said of it when it was exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Text before preparation.
    pub text: String,
    /// Token ids after preparation, so that a tokenizer that drifts is told from a graph that does.
    pub ids: Vec<u32>,
    /// Logits by variant name, in label order.
    pub logits: Map<String, Vec<f32>>,
}

/// What we read of Hugging Face's `config.json`.
#[derive(Clone, Debug, Deserialize)]
struct HfConfig {
    #[serde(default)]
    id2label: Map<String, String>,
    #[serde(default)]
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    model_type: String,
}

/// Why a folder cannot be used as a model. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file cannot be read.
    #[error(
        "{path}: cannot read: {source}; a model folder holds config.json, tokenizer.json and a model*.onnx"
    )]
    Read {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: String,
        /// What was expected and what was found.
        message: String,
    },
}

/// A model folder, checked: files present, hashes right, labels understood.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The folder.
    pub dir: PathBuf,
    /// `artifact.json`, where there is one.
    pub manifest: Option<Manifest>,
    /// Name and hash, as labelled records carry them.
    pub id: ModelId,
    /// What each logit stands for.
    pub labels: Vec<Sentiment>,
    /// How texts are prepared.
    pub preparation: TextPreparation,
    /// Longest encoding.
    pub max_tokens: usize,
    /// Calibration temperature; 1 when unknown.
    pub temperature: f64,
}

impl Artifact {
    /// Reads and checks a model folder. The hash of every file named in `artifact.json` is verified.
    pub fn load(dir: &Path) -> Result<Self, ArtifactError> {
        let config: HfConfig = read_json(&dir.join("config.json"))?;
        read(&dir.join("tokenizer.json"))?;
        let manifest_path = dir.join("artifact.json");
        if !manifest_path.exists() {
            return Self::plain(dir, &config);
        }
        let bytes = read(&manifest_path)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| invalid(&manifest_path, e.to_string()))?;
        check_manifest(&manifest_path, &manifest, &config)?;
        for (file, expected) in &manifest.files {
            check_hash(dir, file, expected)?;
        }
        let labels = parse_labels(&manifest_path, &manifest.labels)?;
        Ok(Self {
            dir: dir.to_owned(),
            id: ModelId { name: manifest.name.as_str().into(), hash: short_hash(&bytes) },
            labels,
            preparation: manifest.preparation.clone(),
            max_tokens: manifest.max_tokens,
            temperature: manifest.temperature,
            manifest: Some(manifest),
        })
    }

    /// A folder without `artifact.json`.
    fn plain(dir: &Path, config: &HfConfig) -> Result<Self, ArtifactError> {
        let path = dir.join("config.json");
        let mut by_index: Vec<(usize, &String)> = config
            .id2label
            .iter()
            .map(|(i, l)| {
                i.parse()
                    .map(|i| (i, l))
                    .map_err(|_| invalid(&path, format!("id2label key '{i}' is not a number")))
            })
            .collect::<Result<_, _>>()?;
        by_index.sort();
        let names: Vec<String> = by_index.into_iter().map(|(_, l)| l.clone()).collect();
        let labels = parse_labels(&path, &names)?;
        let positions = config.max_position_embeddings.unwrap_or(128);
        let reserved = if config.model_type.contains("roberta") { 2 } else { 0 };
        let mut hash = Sha256::new();
        for file in ["config.json", "tokenizer.json", "model.onnx"] {
            hash.update(read(&dir.join(file))?);
        }
        let name = dir.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
        Ok(Self {
            dir: dir.to_owned(),
            manifest: None,
            id: ModelId { name: name.into(), hash: hex::encode(hash.finalize())[..16].into() },
            labels,
            preparation: TextPreparation::none(),
            max_tokens: positions.saturating_sub(reserved).min(128),
            temperature: 1.0,
        })
    }

    /// The graph of a variant. `None` asks for the best one for the device: int8 on the CPU, fp16 on
    /// CUDA, else fp32, else whatever there is for that device.
    pub fn graph(&self, variant: Option<&str>, cuda: bool) -> Result<(String, PathBuf), ArtifactError> {
        let Some(manifest) = &self.manifest else {
            return Ok(("fp32".into(), self.dir.join("model.onnx")));
        };
        let path = self.dir.join("artifact.json");
        let have = || manifest.variants.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let device = if cuda { "cuda" } else { "cpu" };
        let preferred = if cuda { ["fp16", "fp32"] } else { ["int8", "fp32"] };
        let name = match variant {
            Some(v) => v.to_owned(),
            None => preferred
                .iter()
                .copied()
                .chain(manifest.variants.keys().map(String::as_str))
                .find(|v| self.has(v, device))
                .map(str::to_owned)
                .ok_or_else(|| {
                    let files: Vec<&str> = manifest
                        .variants
                        .values()
                        .filter(|v| v.devices.iter().any(|d| d == device))
                        .map(|v| v.file.as_str())
                        .collect();
                    let wanted = if files.is_empty() { "one".to_owned() } else { files.join(" or ") };
                    invalid(&path, format!(
                        "no graph for device '{device}' is in this folder; export {wanted} with `training export` (`make model` for the shipped one)"
                    ))
                })?,
        };
        let found = manifest
            .variants
            .get(&name)
            .ok_or_else(|| invalid(&path, format!("no variant '{name}' (variants: {})", have())))?;
        let file = self.dir.join(&found.file);
        if !file.exists() {
            return Err(invalid(
                &file,
                format!(
                    "variant '{name}' is named in artifact.json but its graph is not in the folder; export it with `training export`"
                ),
            ));
        }
        Ok((name, file))
    }

    fn has(&self, variant: &str, device: &str) -> bool {
        self.manifest
            .as_ref()
            .and_then(|m| m.variants.get(variant))
            .is_some_and(|v| v.devices.iter().any(|d| d == device) && self.dir.join(&v.file).exists())
    }
}

fn check_manifest(path: &Path, m: &Manifest, config: &HfConfig) -> Result<(), ArtifactError> {
    if m.format_version != FORMAT_VERSION {
        return Err(invalid(
            path,
            format!("format_version is {}, this build reads {FORMAT_VERSION}", m.format_version),
        ));
    }
    if m.max_tokens == 0 || config.max_position_embeddings.is_some_and(|p| m.max_tokens > p) {
        return Err(invalid(
            path,
            format!(
                "max_tokens is {}, expected 1 to max_position_embeddings of config.json ({:?})",
                m.max_tokens, config.max_position_embeddings
            ),
        ));
    }
    if !(m.temperature.is_finite() && m.temperature > 0.0) {
        return Err(invalid(path, format!("temperature is {}, expected a positive number", m.temperature)));
    }
    for (i, label) in m.labels.iter().enumerate() {
        if config.id2label.get(&i.to_string()).is_some_and(|l| l != label) {
            return Err(invalid(
                path,
                format!(
                    "label {i} is '{label}' but config.json calls it '{}'",
                    config.id2label[&i.to_string()]
                ),
            ));
        }
    }
    for v in m.variants.values() {
        plain_name(path, &v.file)?;
        if !m.files.contains_key(&v.file) {
            return Err(invalid(
                path,
                format!("'{}' is a variant's graph but has no sha256 under files", v.file),
            ));
        }
    }
    m.files.keys().try_for_each(|f| plain_name(path, f))
}

/// A file name from the manifest must stay inside the folder.
fn plain_name(path: &Path, file: &str) -> Result<(), ArtifactError> {
    let ok = !file.is_empty() && !file.contains(['/', '\\']) && file != ".." && file != ".";
    if ok { Ok(()) } else { Err(invalid(path, format!("'{file}' is not a plain file name"))) }
}

/// A variant whose graph is absent is allowed (the repository ships int8 alone); a changed file is not.
fn check_hash(dir: &Path, file: &str, expected: &str) -> Result<(), ArtifactError> {
    let path = dir.join(file);
    if file.ends_with(".onnx") && !path.exists() {
        return Ok(());
    }
    let found = hex::encode(Sha256::digest(read(&path)?));
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(invalid(
        &path,
        format!("sha256 is {found}, artifact.json says {expected}: the file was changed after export"),
    ))
}

fn parse_labels(path: &Path, names: &[String]) -> Result<Vec<Sentiment>, ArtifactError> {
    let labels = names
        .iter()
        .map(|l| l.parse::<Sentiment>().map_err(|e| invalid(path, e)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = labels.clone();
    seen.sort();
    seen.dedup();
    let complete = seen.contains(&Sentiment::Negative) && seen.contains(&Sentiment::Positive);
    if !complete || seen.len() != labels.len() {
        return Err(invalid(
            path,
            format!("labels are {names:?}, expected negative, positive and perhaps neutral, each once"),
        ));
    }
    Ok(labels)
}

/// First 16 hex digits of a sha256.
pub fn short_hash(bytes: &[u8]) -> std::sync::Arc<str> {
    hex::encode(Sha256::digest(bytes))[..16].into()
}

fn read(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    fs::read(path).map_err(|source| ArtifactError::Read { path: path.display().to_string(), source })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ArtifactError> {
    serde_json::from_slice(&read(path)?).map_err(|e| invalid(path, e.to_string()))
}

fn invalid(path: &Path, message: String) -> ArtifactError {
    ArtifactError::Invalid { path: path.display().to_string(), message }
}
