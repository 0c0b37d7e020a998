//! `training export`: a run folder → the model folder that the processor runs.
//!
//! The graphs are written from the weights (`encoder`, over `graph` and `proto`), int8's scales are
//! measured (`calibrate`, `int8`), every graph is compared with libtorch (`verify`), and only then is
//! the folder written (`artifact`, `card`).

mod args;
pub mod artifact;
pub mod calibrate;
pub mod card;
pub mod encoder;
pub mod graph;
pub mod int8;
pub mod proto;
pub mod runtime;
pub mod verify;

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use sentistream::{classify::artifact::Golden, prepare::TextPreparation, tokenize::Tokenizer};

pub use self::args::{Args, VariantName};
use self::{
    artifact::{About, Exported},
    calibrate::Calibration,
    encoder::{Numbers, build},
    int8::Plan,
    runtime::Runner,
    verify::Reference,
};
use crate::{
    batches::mix,
    config::EncoderConfig,
    data::{self, Preparer, Source},
    model::Model,
    weights::{Array, Weights},
};

/// Validation rows without which a comparison says little.
const LEAST_ROWS: usize = 200;
/// Seed of the batches in which a post is compared with itself alone.
const BATCH_SEED: u64 = 20;

/// Exports, and prints the comparison.
pub fn run(args: &Args) -> Result<()> {
    let source = Run::load(args)?;
    let reference = source.reference(args)?;
    let plan = match args.variants.contains(&VariantName::Int8) {
        true => Some(source.plan(args)?),
        false => None,
    };
    let mut variants = args.variants.clone();
    variants.sort();
    variants.dedup();
    let (mut exported, mut runners) = (Vec::new(), Vec::new());
    for v in variants {
        let numbers = match (v, &plan) {
            (VariantName::Fp32, _) => Numbers::Fp32,
            (VariantName::Fp16, _) => Numbers::Fp16,
            (VariantName::Int8, Some(plan)) => Numbers::Int8(plan),
            (VariantName::Int8, None) => bail!("int8 has no scales"),
        };
        let graph = build(&source.config, &source.weights, numbers)?.to_bytes();
        let mut runner = source.runner(&graph)?;
        let report = verify::measure(v.as_str(), &mut runner, &reference, BATCH_SEED)?;
        exported.push(Exported { variant: v.as_str().into(), graph, report, tolerance: 0.0 });
        runners.push((v.as_str().to_owned(), runner));
    }
    let reports: Vec<_> = exported.iter().map(|e| &e.report).collect();
    println!("{} validation rows\n{}", reference.rows.len(), verify::table(&reference, &reports)?);
    verify::check(&reports)?;

    let golden = artifact::golden(&source.preparation, &source.tokenizer, &mut runners)?;
    let drift = match &plan {
        Some(plan) => source.drift(plan, &golden)?,
        None => 0.0,
    };
    for e in &mut exported {
        e.tolerance = artifact::tolerance(&e.variant, drift);
    }
    let chosen = exported.iter().find(|e| e.variant == "int8").or(exported.first());
    let calibrated = chosen.context("--variants names none")?;
    let temperature = verify::fit_temperature(&calibrated.report.logits, &reference.truth)?;
    let about = About {
        name: args.name.clone(),
        base_model: source.base_model.clone(),
        languages: args.languages.clone(),
        preparation: source.preparation.clone(),
        max_tokens: source.max_tokens,
        labels: source.config.labels.clone(),
        temperature,
    };
    let card = card::Card {
        args,
        about: &about,
        training: source.training.as_ref(),
        reference: &reference,
        exported: &exported,
        calibrated,
        plan: plan.as_ref(),
    };
    let manifest = artifact::write(&args.out, &args.model, &about, &exported, golden, &card.text()?)?;
    println!(
        "{}: {} with {} golden examples, temperature {temperature:.3} (fitted on {}), drift of int8 {drift:.3}",
        args.out.display(),
        manifest.variants.keys().cloned().collect::<Vec<_>>().join(", "),
        manifest.golden.len(),
        calibrated.variant
    );
    Ok(())
}

/// A run folder and what follows from it.
struct Run {
    config: EncoderConfig,
    weights: Weights,
    /// `training.json`, where there is one.
    training: Option<serde_json::Value>,
    base_model: String,
    preparation: TextPreparation,
    max_tokens: usize,
    tokenizer: Tokenizer,
}

impl Run {
    fn load(args: &Args) -> Result<Self> {
        let dir = &args.model;
        let config = EncoderConfig::load(dir)?;
        ensure!(
            config.labels == data::labels(),
            "{}: id2label is {:?}, expected {:?} in this order",
            dir.join("config.json").display(),
            config.labels,
            data::labels()
        );
        let weights = Weights::load(dir, &config)?;
        weights.head().with_context(|| dir.display().to_string())?;
        let training = read_training(dir)?;
        let said = |key: &str| training.as_ref().and_then(|t| t.get(key));
        let base_model = args
            .base_model
            .clone()
            .or_else(|| said("base_model").and_then(|v| v.as_str()).map(str::to_owned))
            .context("what was fine-tuned is not known: the folder has no training.json, so name it with --base-model")?;
        let preparation = match said("preparation") {
            Some(p) => serde_json::from_value(p.clone())
                .with_context(|| format!("{}: preparation", dir.join("training.json").display()))?,
            None => TextPreparation::social(),
        };
        let trained = said("max_tokens").and_then(serde_json::Value::as_u64).map(usize::try_from);
        let max_tokens = match (args.max_tokens, trained) {
            (Some(n), _) => n,
            (None, Some(n)) => n?,
            (None, None) => config.max_tokens().min(128),
        };
        ensure!(
            (1..=config.max_tokens()).contains(&max_tokens),
            "--max-tokens is {max_tokens}, the model's positions allow 1 to {}",
            config.max_tokens()
        );
        let tokenizer = Tokenizer::from_file(&dir.join("tokenizer.json"), max_tokens)?;
        Ok(Self { config, weights, training, base_model, preparation, max_tokens, tokenizer })
    }

    fn runner(&self, graph: &[u8]) -> Result<Runner> {
        Runner::new(graph, self.config.pad_token_id as u32)
    }

    fn rows(&self, path: &Path, args: &Args) -> Result<Vec<data::Example>> {
        let source = Source {
            path: path.to_owned(),
            text: args.text_column.clone(),
            label: args.label_column.clone(),
        };
        let preparer = Preparer { preparation: &self.preparation, tokenizer: &self.tokenizer };
        let (set, _) = preparer.validation(&data::read(&source)?)?;
        for e in &set.examples {
            if let Some(id) = e.ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
                bail!("tokenizer.json gives id {id}, config.json's vocab_size is {}", self.config.vocab_size);
            }
        }
        Ok(set.examples)
    }

    /// The validation rows and libtorch's logits of them.
    fn reference(&self, args: &Args) -> Result<Reference> {
        let examples = self.rows(&args.valid, args)?;
        ensure!(
            examples.len() >= LEAST_ROWS,
            "{}: {} usable rows, a comparison needs {LEAST_ROWS} or more",
            args.valid.display(),
            examples.len()
        );
        if let Some(threads) = args.threads {
            tch::set_num_threads(i32::try_from(threads)?);
        }
        let model =
            Model::new(self.config.clone(), &self.weights, tch::Device::Cpu, tch::Kind::Float, BATCH_SEED)?;
        let ids: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
        let logits = model.logits(&ids, 32)?;
        let truth = examples.iter().map(|e| e.label).collect();
        let rows = examples.into_iter().map(|e| e.ids).collect();
        Ok(Reference { rows, truth, logits, labels: self.config.labels.clone() })
    }

    /// int8's scales.
    fn plan(&self, args: &Args) -> Result<Plan> {
        let path = args
            .calibration
            .as_ref()
            .context("int8 needs training rows to measure: --calibration train.csv")?;
        let examples = self.rows(path, args)?;
        let every = (examples.len() / args.calibration_posts.max(1)).max(1);
        let posts: Vec<Vec<u32>> =
            examples.into_iter().step_by(every).take(args.calibration_posts).map(|e| e.ids).collect();
        let calibration = Calibration::run(&self.config, &self.weights, &posts)?;
        let settings = int8::Settings { exponents: args.smoothing.clone(), ..int8::Settings::default() };
        ensure!(
            settings.exponents.iter().all(|e| (0.0..=1.0).contains(e)),
            "--smoothing is {:?}, expected numbers from 0 to 1",
            settings.exponents
        );
        int8::plan(&self.config, &self.weights, &calibration, &settings)
    }

    /// How far the golden logits of int8 move when every LayerNorm's result changes in its last bits, as
    /// it does from one processor's kernels to another's. Nudges of several sizes, because what decides is
    /// which values they carry over a rounding boundary.
    fn drift(&self, plan: &Plan, golden: &[Golden]) -> Result<f64> {
        let mut most = 0f64;
        for (seed, size) in [(1, 4.0), (2, 16.0), (3, 64.0), (4, 256.0)] {
            let mut nudged = self.weights.clone();
            let mut n = 0u64;
            for (_, Array { data, .. }) in nudged.tensors.iter_mut().filter(|(k, _)| is_norm_gain(k)) {
                for x in data {
                    n += 1;
                    let sign = if mix(seed, n) & 1 == 0 { 1.0 } else { -1.0 };
                    *x *= 1.0 + sign * size * f32::EPSILON;
                }
            }
            let mut runner = self.runner(&build(&self.config, &nudged, Numbers::Int8(plan))?.to_bytes())?;
            for g in golden {
                let now = runner.logits(&[&g.ids])?;
                most = most.max(verify::largest_difference(&now, &[g.logits["int8"].clone()]));
            }
        }
        Ok(most)
    }
}

fn is_norm_gain(name: &str) -> bool {
    name.ends_with("LayerNorm.weight") || name.ends_with("layer_norm.weight")
}

fn read_training(dir: &Path) -> Result<Option<serde_json::Value>> {
    let path = dir.join("training.json");
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{}: not JSON", path.display()))?))
}
