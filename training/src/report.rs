//! `training.json`: what a run was, and what came of it.

use std::path::Path;

use anyhow::Result;
use sentistream::{evaluation::Evaluation, prepare::TextPreparation, record::Map};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Kind;

use crate::{
    args::Args,
    config::EncoderConfig,
    data::{Counts, Set},
    finetune::sha256,
    model::Model,
};

/// The settings that decide what the steps compute.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Passes over the training rows.
    pub epochs: u64,
    /// Examples a step.
    pub batch_size: usize,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Share of the steps in which it rises.
    pub warmup: f64,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Dropout after embeddings, attention output, feed-forward and before the head.
    pub dropout: f64,
    /// Dropout of attention probabilities.
    pub attention_dropout: f64,
    /// `none`, `sqrt` or `balanced`.
    pub class_weights: String,
    /// Share of the target given to all labels alike.
    pub label_smoothing: f64,
    /// `mean` or `cls`.
    pub pooling: String,
    /// Seed of head, batches and dropout.
    pub seed: u64,
}

impl Settings {
    /// The settings of a command line over an encoder.
    pub fn of(args: &Args, config: &EncoderConfig) -> Self {
        Self {
            epochs: args.epochs,
            batch_size: args.batch_size,
            learning_rate: args.lr,
            warmup: args.warmup,
            weight_decay: args.weight_decay,
            clip: args.clip,
            dropout: config.hidden_dropout,
            attention_dropout: config.attention_dropout,
            class_weights: args.class_weights.as_str().into(),
            label_smoothing: args.label_smoothing,
            pooling: config.pooling.as_str().into(),
            seed: args.seed,
        }
    }
}

/// A data file: its name without the folder, its content's hash, its rows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DataReport {
    /// File name.
    pub file: String,
    /// sha256 of the file, hex.
    pub sha256: String,
    /// Rows read, left out and kept.
    pub rows: Counts,
    /// Kept rows by label, in label order.
    pub by_label: Vec<usize>,
}

impl DataReport {
    /// Hashes the file.
    pub fn of(path: &Path, set: &Set) -> Result<Self> {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { file, sha256: sha256(path)?, rows: set.counts, by_label: set.by_label() })
    }
}

/// One evaluation on the validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// After this many steps.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// Mean training loss since the evaluation before.
    pub train_loss: f64,
    /// The metrics.
    pub evaluation: Evaluation,
}

/// Where a run stands: the part of the state file that is not numbers by the million.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Steps made.
    pub step: u64,
    /// Sum of the losses since the last evaluation.
    pub loss_sum: f64,
    /// How many they are.
    pub loss_steps: u64,
    /// Evaluations so far.
    pub history: Vec<Evaluated>,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What must be equal for a resumed run to be the same run.
    pub identity: Map<String, Value>,
}

impl Position {
    /// What matrices were multiplied in so far.
    pub fn compute(&self) -> Option<Kind> {
        match self.identity.get("compute")?.as_str()? {
            "Float" => Some(Kind::Float),
            "BFloat16" => Some(Kind::BFloat16),
            _ => None,
        }
    }

    /// The best evaluation so far by macro-recall; the earliest one of equals.
    pub fn best(&self) -> Option<&Evaluated> {
        self.history
            .iter()
            .reduce(|best, e| if e.evaluation.macro_recall > best.evaluation.macro_recall { e } else { best })
    }
}

/// The file `training.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was fine-tuned.
    pub base_model: String,
    /// Its `model_type`.
    pub model_type: Value,
    /// What was done to every text.
    pub preparation: TextPreparation,
    /// Longest encoding; longer texts were cut.
    pub max_tokens: usize,
    /// Labels by output index.
    pub labels: Vec<String>,
    /// Training rows.
    pub train: DataReport,
    /// Validation rows.
    pub valid: DataReport,
    /// Where it ran.
    pub device: String,
    /// Kind that matrices were multiplied in.
    pub compute: String,
    /// Settings.
    pub settings: Settings,
    /// Steps in all.
    pub steps: u64,
    /// Every evaluation.
    pub history: Vec<Evaluated>,
    /// The one whose weights are in the folder.
    pub best: Option<Evaluated>,
    /// Seconds of training, evaluations included, interruptions not.
    pub seconds: f64,
    /// Whether all steps were made.
    pub finished: bool,
}

impl Report {
    /// A report of a run that has not begun; its data is still to be filled in.
    pub fn of(args: &Args, model: &Model, preparation: TextPreparation, steps: u64) -> Self {
        Self {
            base_model: args.base_name(),
            model_type: model.config.raw.get("model_type").cloned().unwrap_or_default(),
            preparation,
            max_tokens: args.max_tokens,
            labels: model.config.labels.clone(),
            train: DataReport::default(),
            valid: DataReport::default(),
            device: format!("{:?}", model.device),
            compute: format!("{:?}", model.compute),
            settings: Settings::of(args, &model.config),
            steps,
            history: Vec::new(),
            best: None,
            seconds: 0.0,
            finished: false,
        }
    }

    /// What must be equal for a resumed run to be the same run.
    pub fn identity(&self) -> Map<String, Value> {
        let mut all = Map::new();
        if let Ok(Value::Object(settings)) = serde_json::to_value(&self.settings) {
            all.extend(settings);
        }
        for (key, value) in [
            ("base_model", json!(self.base_model)),
            ("max_tokens", json!(self.max_tokens)),
            ("train.sha256", json!(self.train.sha256)),
            ("valid.sha256", json!(self.valid.sha256)),
            ("compute", json!(self.compute)),
        ] {
            all.insert(key.into(), value);
        }
        all
    }
}
