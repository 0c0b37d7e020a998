//! `training finetune`: the command line, the run folder, and the loop over steps and evaluations.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use sentistream::{evaluation::Evaluation, prepare::TextPreparation, tokenize::Tokenizer};
use sha2::{Digest, Sha256};
use tch::Kind;

use crate::{
    batches,
    config::EncoderConfig,
    data::{self, Preparer, Set, Source},
    device,
    model::Model,
    progress::Progress,
    report::{DataReport, Evaluated, Position, Report},
    state::{STATE_FILE, State, write_whole},
    trainer::Trainer,
    weights::Weights,
};

pub use crate::args::Args;
use crate::args::Precision;

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps were made; the best evaluation.
    Finished(Box<Evaluated>),
    /// Asked to stop; the state is on disk at this step.
    Interrupted(u64),
}

/// Runs to the end, or until `stop` is set.
pub fn run(args: &Args, stop: &AtomicBool) -> Result<Outcome> {
    let mut run = Run::prepare(args)?;
    let outcome = run.train(stop);
    run.progress.finish();
    outcome
}

struct Run<'a> {
    args: &'a Args,
    trainer: Trainer,
    train: Set,
    valid: Set,
    report: Report,
    position: Position,
    total: u64,
    steps_per_epoch: u64,
    progress: Progress,
    /// Seconds spent before this process took over.
    earlier: f64,
    started: Instant,
}

impl<'a> Run<'a> {
    fn prepare(args: &'a Args) -> Result<Self> {
        args.check()?;
        let state_path = args.out.join(STATE_FILE);
        check_folder(args, &state_path)?;
        let saved = args.resume.then(|| State::<Position>::load(&state_path)).transpose()?;
        let device = device::choose(args.device)?;
        tch::set_num_threads(i32::try_from(args.threads())?);

        let (config, weights) = open_base(args)?;
        let preparation = TextPreparation::social();
        let tokenizer = Tokenizer::from_file(&args.base.join("tokenizer.json"), args.max_tokens)?;
        let (train, valid) = read_sets(args, &Preparer { preparation: &preparation, tokenizer: &tokenizer })?;
        check_ids(&config, &[&train, &valid])?;
        let steps_per_epoch = train.examples.len().div_ceil(args.batch_size) as u64;
        let total = steps_per_epoch * args.epochs;

        let model = Model::new(config, &weights, device, Kind::Float, args.seed)?;
        let mut trainer = Trainer::new(model, args, total, &train.by_label());
        let before = saved.as_ref().and_then(|s| s.position.compute());
        trainer.model.compute = match before.filter(|_| args.precision == Precision::Auto) {
            Some(compute) => compute,
            None => trainer.choose_compute(args.precision, &train.examples, args.batch_size)?,
        };
        let mut report = Report::of(args, &trainer.model, preparation, total);
        report.train = DataReport::of(&args.train, &train)?;
        report.valid = DataReport::of(&args.valid, &valid)?;
        let position = match saved {
            Some(state) => take_up(&state_path, state, &report, &mut trainer)?,
            None => Position::default(),
        };
        fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot create", args.out.display()))?;
        let run = Self {
            args,
            trainer,
            train,
            valid,
            report,
            total,
            steps_per_epoch,
            progress: Progress::new(total, position.step),
            earlier: position.seconds,
            position,
            started: Instant::now(),
        };
        run.say_start();
        Ok(run)
    }

    fn say_start(&self) {
        let p = &self.progress;
        for (name, set) in [("train", &self.train), ("valid", &self.valid)] {
            let c = set.counts;
            let n = set.by_label();
            p.line(&format!(
                "{name}: {} rows kept of {} ({} empty, {} repeated, {} also in validation); negative {}, neutral {}, positive {}",
                c.kept, c.read, c.empty, c.repeated, c.in_validation, n[0], n[1], n[2]
            ));
        }
        p.line(&format!(
            "{} parameters, {} steps, {:?}, matrices in {:?}, {} threads{}",
            self.trainer.model.len(),
            self.total,
            self.trainer.model.device,
            self.trainer.model.compute,
            tch::get_num_threads(),
            if self.position.step > 0 {
                format!(", resumed at step {}", self.position.step)
            } else {
                String::new()
            }
        ));
    }

    fn train(&mut self, stop: &AtomicBool) -> Result<Outcome> {
        let lengths: Vec<usize> = self.train.examples.iter().map(|e| e.ids.len()).collect();
        let mut epoch = u64::MAX;
        let mut plan = Vec::new();
        while self.position.step < self.total {
            let at = self.position.step;
            if at / self.steps_per_epoch != epoch {
                epoch = at / self.steps_per_epoch;
                plan = batches::of_epoch(&lengths, self.args.batch_size, self.args.seed, epoch);
            }
            let batch: Vec<_> =
                plan[(at % self.steps_per_epoch) as usize].iter().map(|i| &self.train.examples[*i]).collect();
            let done = self.trainer.step(&batch, at + 1)?;
            self.position.step = at + 1;
            self.position.loss_sum += done.loss;
            self.position.loss_steps += 1;
            self.progress.step(at + 1, batch.len(), done.loss, done.lr);
            if self.evaluation_is_due() {
                self.evaluate()?;
            }
            if stop.load(Ordering::Relaxed) && self.position.step < self.total {
                self.save_state()?;
                return Ok(Outcome::Interrupted(self.position.step));
            }
            if self.position.step.is_multiple_of(self.args.save_every) && self.position.step < self.total {
                self.save_state()?;
            }
        }
        self.finish()
    }

    /// At the end of each epoch; with `--eval-every` also in between, once half of the run is done and
    /// the learning rate is low enough for a checkpoint to be worth keeping.
    fn evaluation_is_due(&self) -> bool {
        let step = self.position.step;
        let between = self.args.eval_every.is_some_and(|n| step.is_multiple_of(n) && step * 2 > self.total);
        step.is_multiple_of(self.steps_per_epoch) || between
    }

    fn evaluate(&mut self) -> Result<()> {
        let evaluation = self.trainer.evaluate(&self.valid.examples, &self.report.labels)?;
        let step = self.position.step;
        let evaluated = Evaluated {
            step,
            epoch: step as f64 / self.steps_per_epoch as f64,
            train_loss: self.position.loss_sum / self.position.loss_steps.max(1) as f64,
            evaluation,
        };
        (self.position.loss_sum, self.position.loss_steps) = (0.0, 0);
        let best = self
            .position
            .history
            .iter()
            .all(|e| e.evaluation.macro_recall < evaluated.evaluation.macro_recall);
        let e = &evaluated.evaluation;
        let recalls: Vec<String> = self
            .report
            .labels
            .iter()
            .map(|l| format!("{l} {:.3}", e.per_class.get(l).map_or(0.0, |c| c.recall)))
            .collect();
        self.progress.line(&format!(
            "step {step} (epoch {:.2}): train loss {:.4}, macro-recall {:.4}, accuracy {:.4}, macro-F1 {:.4}, recall {}{}",
            evaluated.epoch,
            evaluated.train_loss,
            e.macro_recall,
            e.accuracy,
            e.macro_f1,
            recalls.join(" "),
            if best { ", best so far" } else { "" }
        ));
        self.position.history.push(evaluated);
        if best {
            self.save_model()?;
        }
        Ok(())
    }

    /// Writes the model that can be exported: the best so far.
    fn save_model(&mut self) -> Result<()> {
        let dir = &self.args.out;
        let config = &self.trainer.model.config;
        let bytes = self.trainer.model.weights()?.to_bytes(config)?;
        write_whole(&dir.join("model.safetensors"), &bytes)?;
        write_whole(&dir.join("config.json"), &serde_json::to_vec_pretty(&config.raw)?)?;
        let tokenizer = self.args.base.join("tokenizer.json");
        let tokenizer =
            fs::read(&tokenizer).with_context(|| format!("{}: cannot read", tokenizer.display()))?;
        write_whole(&dir.join("tokenizer.json"), &tokenizer)?;
        self.save_report(false)
    }

    fn save_report(&mut self, finished: bool) -> Result<()> {
        self.report.history = self.position.history.clone();
        self.report.best = self.position.best().cloned();
        self.report.seconds = self.seconds();
        self.report.finished = finished;
        write_whole(&self.args.out.join("training.json"), &serde_json::to_vec_pretty(&self.report)?)
    }

    fn save_state(&mut self) -> Result<()> {
        self.position.seconds = self.seconds();
        self.position.identity = self.report.identity();
        let state = self.trainer.state(self.position.clone())?;
        state.save(&self.args.out.join(STATE_FILE))
    }

    fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }

    fn finish(&mut self) -> Result<Outcome> {
        self.save_report(true)?;
        let state = self.args.out.join(STATE_FILE);
        if state.exists() {
            fs::remove_file(&state).with_context(|| format!("{}: cannot remove", state.display()))?;
        }
        let best = self.position.best().cloned().context("the run ended without an evaluation")?;
        self.progress.line(&format!(
            "done in {:.0} s: best macro-recall {:.4} at step {}, in {}",
            self.report.seconds,
            best.evaluation.macro_recall,
            best.step,
            self.args.out.display()
        ));
        Ok(Outcome::Finished(Box::new(best)))
    }
}

/// A run folder is made by one run: another one must not mix its files in.
fn check_folder(args: &Args, state: &Path) -> Result<()> {
    let folder = args.out.display();
    if args.resume {
        if !state.exists() {
            bail!(
                "{folder}: nothing to resume: no {STATE_FILE} there (a finished run has none, and neither has one stopped before its first --save-every steps)"
            );
        }
        return Ok(());
    }
    for name in [STATE_FILE, "model.safetensors"] {
        if args.out.join(name).exists() {
            bail!("{folder}: already holds {name}; continue that run with --resume, or choose another --out");
        }
    }
    Ok(())
}

/// The base's configuration with our head, and its weights. The base's own head is taken over only
/// where it has the same labels in the same order.
fn open_base(args: &Args) -> Result<(EncoderConfig, Weights)> {
    let base = EncoderConfig::load(&args.base)?;
    let (asked, allowed) = (args.max_tokens, base.max_tokens());
    if asked > allowed {
        bail!("--max-tokens is {asked}, the base model's positions allow {allowed}");
    }
    let labels = data::labels();
    let mut weights = Weights::load(&args.base, &base)?;
    if base.labels != labels {
        weights.drop_head();
    }
    let mut config = base.with_head(&labels, args.pooling.unwrap_or(base.pooling));
    if let Some(p) = args.dropout {
        config.set_dropout(p);
    }
    Ok((config, weights))
}

/// A tokenizer of another model would give ids that the embedding does not have.
fn check_ids(config: &EncoderConfig, sets: &[&Set]) -> Result<()> {
    let ids = sets.iter().flat_map(|s| &s.examples).flat_map(|e| &e.ids);
    match ids.max() {
        Some(id) if *id as usize >= config.vocab_size => {
            bail!("tokenizer.json gives id {id}, config.json's vocab_size is {}", config.vocab_size)
        }
        _ => Ok(()),
    }
}

fn read_sets(args: &Args, preparer: &Preparer<'_>) -> Result<(Set, Set)> {
    let source = |path: &PathBuf| Source {
        path: path.clone(),
        text: args.text_column.clone(),
        label: args.label_column.clone(),
    };
    let rows = data::read(&source(&args.train))?;
    let (valid, texts) = preparer.validation(&data::read(&source(&args.valid))?)?;
    let train = preparer.training(&rows, &texts)?;
    for (path, set) in [(&args.train, &train), (&args.valid, &valid)] {
        let missing: Vec<String> =
            data::labels().into_iter().zip(set.by_label()).filter(|(_, n)| *n == 0).map(|(l, _)| l).collect();
        if !missing.is_empty() {
            bail!("{}: no row is labelled {}", path.display(), missing.join(" or "));
        }
    }
    Ok((train, valid))
}

/// Puts a saved state back, after making sure that it belongs to this very run.
fn take_up(path: &Path, state: State<Position>, report: &Report, trainer: &mut Trainer) -> Result<Position> {
    let now = report.identity();
    for (key, value) in &now {
        let saved = state.position.identity.get(key).cloned().unwrap_or_default();
        if saved != *value {
            bail!(
                "{}: was made with {key} = {saved}, this command has {value}; a run resumes only as it began",
                path.display()
            );
        }
    }
    trainer.restore(&state)?;
    Ok(state.position)
}

/// sha256 of a file, hex.
pub fn sha256(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

/// The evaluation of logits against the true labels.
pub fn evaluation(labels: &[String], truth: impl Iterator<Item = usize>, logits: &[Vec<f32>]) -> Evaluation {
    let predicted = logits.iter().map(|l| argmax(l));
    Evaluation::of(labels, truth.zip(predicted))
}

/// Index of the largest value; the first one of equals.
pub fn argmax(x: &[f32]) -> usize {
    x.iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, v)| if *v > best.1 { (i, *v) } else { best })
        .0
}
