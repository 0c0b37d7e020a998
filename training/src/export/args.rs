//! The command line of `training export`.

use std::path::PathBuf;

const EXAMPLE: &str = "Example:

  training export --model runs/first --valid valid.csv --calibration train.csv \\
      --out models/first --name first --languages en

builds the variants, compares each with libtorch on the validation rows, prints the comparison, and
writes the folder only when every limit holds. Give the same validation rows that chose the model; a
test set stays unseen.

Exit status 1: something is missing or wrong, or a limit is broken (the message names it).";

/// The number formats that can be exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum VariantName {
    /// Single precision, for any device.
    Fp32,
    /// Bytes, for the CPU.
    Int8,
    /// Half precision, for CUDA.
    Fp16,
}

impl VariantName {
    /// As on the command line and in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Int8 => "int8",
            Self::Fp16 => "fp16",
        }
    }
}

/// Makes the model folder that sentistream runs out of a run folder of `training finetune`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Run folder: config.json with id2label, tokenizer.json, model.safetensors, and training.json
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Validation rows, 200 or more: .csv, .tsv, .jsonl or .ndjson
    #[arg(long, value_name = "FILE")]
    pub valid: PathBuf,
    /// Column or JSON key of the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_column: String,
    /// Column or JSON key of the label
    #[arg(long, value_name = "NAME", default_value = "label")]
    pub label_column: String,
    /// Training rows from which int8 takes its scales; int8 needs them
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// How many of them, taken at even distances
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub calibration_posts: usize,
    /// Exponents of int8's smoothing to choose from, for each matrix product
    #[arg(long, value_name = "X", value_delimiter = ',', default_value = "0.5,0.65,0.75,0.85,0.95")]
    pub smoothing: Vec<f32>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The model's name, which labelled records carry
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Languages of the training texts, as in `en,de`
    #[arg(long, value_name = "TAGS", value_delimiter = ',', required = true)]
    pub languages: Vec<String>,
    /// Variants to write
    #[arg(long, value_delimiter = ',', default_value = "int8,fp32,fp16")]
    pub variants: Vec<VariantName>,
    /// What was fine-tuned [default: as training.json says]
    #[arg(long, value_name = "NAME")]
    pub base_model: Option<String>,
    /// Licence of the base model, for the model card
    #[arg(long, value_name = "SPDX", default_value = "Apache-2.0")]
    pub license: String,
    /// A sentence for the model card on where the data come from
    #[arg(long, value_name = "TEXT")]
    pub data_note: Option<String>,
    /// Longest text in tokens [default: as training.json says, else 128]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Threads of libtorch [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}
