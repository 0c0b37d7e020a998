//! The command line of `training finetune`.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::config::Pooling;

const EXAMPLE: &str = "Example, a model of three labels in about half an hour on two cores:

  training finetune --base all-MiniLM-L6-v2 --train train.csv --valid valid.csv \\
      --out runs/first --class-weights sqrt

train.csv has a header line with the columns label (negative, neutral, positive) and text; .tsv and
.jsonl are read too. The run folder then holds config.json, tokenizer.json and model.safetensors of the
best evaluation, and training.json with the settings and all metrics. `training export` makes of it the
folder that sentistream runs.

Ctrl-C saves the state and ends with status 130; the same command with --resume goes on from there and
ends with the same weights as an unbroken run.";

/// Fine-tunes an encoder with a classification head on labelled texts.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Hugging Face folder of a BERT, DistilBERT, RoBERTa or XLM-R encoder: config.json,
    /// tokenizer.json, model.safetensors
    #[arg(long, value_name = "DIR")]
    pub base: PathBuf,
    /// Training rows: .csv, .tsv, .jsonl or .ndjson
    #[arg(long, value_name = "FILE")]
    pub train: PathBuf,
    /// Validation rows; the weights with the best macro-recall on them are kept
    #[arg(long, value_name = "FILE")]
    pub valid: PathBuf,
    /// Run folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue the interrupted run in --out
    #[arg(long)]
    pub resume: bool,
    /// Column or JSON key of the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_column: String,
    /// Column or JSON key of the label
    #[arg(long, value_name = "NAME", default_value = "label")]
    pub label_column: String,
    /// Name of the base model for training.json [default: the folder's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Longest text in tokens; what is longer is cut
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: usize,
    /// Passes over the training rows
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub epochs: u64,
    /// Texts a step
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch_size: usize,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 5e-5)]
    pub lr: f64,
    /// Share of the steps in which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = 0.06)]
    pub warmup: f64,
    /// Weight decay; biases and LayerNorm are spared
    #[arg(long, value_name = "X", default_value_t = 0.01)]
    pub weight_decay: f64,
    /// Largest norm of the gradient
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    pub clip: f64,
    /// Dropout everywhere [default: what the base's config.json says]
    #[arg(long, value_name = "P")]
    pub dropout: Option<f64>,
    /// How the text's vector is made [default: what config.json says, else mean]
    #[arg(long)]
    pub pooling: Option<Pooling>,
    /// Weight of the labels in the loss: by their rarity, or its root, or all alike
    #[arg(long, default_value = "none")]
    pub class_weights: ClassWeights,
    /// Share of the target given to all labels alike
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub label_smoothing: f64,
    /// Evaluate every N steps too, in the second half of the run
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u64>,
    /// Save the state for --resume every N steps
    #[arg(long, value_name = "N", default_value_t = 250)]
    pub save_every: u64,
    /// Seed of the head, the batches and dropout
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Where to compute; auto takes CUDA where libtorch finds it
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// What matrices are multiplied in; auto times both and takes the faster. Parameters,
    /// softmax, LayerNorm and loss stay fp32
    #[arg(long, default_value = "auto")]
    pub precision: Precision,
    /// Threads on the CPU [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `--class-weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ClassWeights {
    /// All labels weigh 1.
    None,
    /// One over the root of the label's share.
    Sqrt,
    /// One over the label's share.
    Balanced,
}

impl ClassWeights {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sqrt => "sqrt",
            Self::Balanced => "balanced",
        }
    }
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceChoice {
    /// CUDA where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device; its absence is an error.
    Cuda,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// The faster of the two, timed at the start where the processor has both.
    Auto,
    /// 32-bit floats.
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Args {
    /// Values that clap cannot check by itself.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("--max-tokens", self.max_tokens as u64),
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size as u64),
            ("--save-every", self.save_every),
            ("--eval-every", self.eval_every.unwrap_or(1)),
            ("--threads", self.threads.unwrap_or(1) as u64),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            bail!("{name} is 0, expected 1 or more");
        }
        if self.max_tokens < 3 {
            bail!("--max-tokens is {}, expected 3 or more: two of them are special tokens", self.max_tokens);
        }
        let positive = [("--lr", self.lr), ("--clip", self.clip)];
        if let Some((name, x)) = positive.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            bail!("{name} is {x}, expected a number above 0");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            bail!("--weight-decay is {}, expected 0 or more", self.weight_decay);
        }
        let shares = [
            ("--warmup", self.warmup),
            ("--dropout", self.dropout.unwrap_or(0.0)),
            ("--label-smoothing", self.label_smoothing),
        ];
        if let Some((name, x)) = shares.iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            bail!("{name} is {x}, expected from 0 up to, not including, 1");
        }
        Ok(())
    }

    /// Threads to compute with.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    /// The base model's name in reports.
    pub fn base_name(&self) -> String {
        let folder = || self.base.file_name().map(|n| n.to_string_lossy().into_owned());
        self.name.clone().or_else(folder).unwrap_or_else(|| "unnamed".into())
    }
}
