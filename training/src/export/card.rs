//! The model card, `README.md` of the model folder: every number in it was measured in this export.

use std::{fmt::Write as _, path::Path};

use anyhow::Result;
use serde_json::Value;

use super::{
    args::Args,
    artifact::{About, Exported, devices, file_name},
    int8::Plan,
    verify::{Reference, calibration_error},
};

/// What a card is written from.
pub struct Card<'a> {
    /// The command line.
    pub args: &'a Args,
    /// Name, base, languages.
    pub about: &'a About,
    /// `training.json`.
    pub training: Option<&'a Value>,
    /// Validation rows.
    pub reference: &'a Reference,
    /// Variants.
    pub exported: &'a [Exported],
    /// The variant whose logits fitted the temperature.
    pub calibrated: &'a Exported,
    /// int8's scales.
    pub plan: Option<&'a Plan>,
}

impl Card<'_> {
    /// The whole file.
    pub fn text(&self) -> Result<String> {
        let mut t = String::new();
        self.head(&mut t)?;
        self.data(&mut t)?;
        self.metrics(&mut t)?;
        self.calibration(&mut t)?;
        self.variants(&mut t)?;
        self.limits(&mut t)?;
        self.reproduce(&mut t)?;
        Ok(t)
    }

    fn head(&self, t: &mut String) -> Result<()> {
        let a = self.about;
        writeln!(t, "# {}\n", a.name)?;
        writeln!(
            t,
            "Sentiment of social media posts: {}. Languages: {}. Fine-tuned from `{}`, whose licence ({}) this \
             model keeps.\n",
            a.labels.join(", "),
            a.languages.join(", "),
            a.base_model,
            self.args.license
        )?;
        writeln!(
            t,
            "A text is prepared as `artifact.json` says (`preparation`), encoded by `tokenizer.json`, cut after \
             {} tokens, and its last layer's vectors are pooled ({}) into one vector for a linear head.\n",
            a.max_tokens,
            self.training.and_then(|j| j["settings"]["pooling"].as_str()).unwrap_or("as config.json says")
        )?;
        Ok(())
    }

    fn data(&self, t: &mut String) -> Result<()> {
        writeln!(t, "## Data\n")?;
        if let Some(note) = &self.args.data_note {
            writeln!(t, "{note}\n")?;
        }
        let Some(j) = self.training else {
            writeln!(t, "The run folder had no `training.json`, so its training data are not known here.\n")?;
            return Ok(());
        };
        writeln!(t, "| rows | file | kept | of | {} | sha256 |", self.about.labels.join(" | "))?;
        writeln!(t, "|---|---|---|---|{}---|", "---|".repeat(self.about.labels.len()))?;
        for set in ["train", "valid"] {
            let d = &j[set];
            let counts: Vec<String> =
                d["by_label"].as_array().into_iter().flatten().map(Value::to_string).collect();
            writeln!(
                t,
                "| {set} | {} | {} | {} | {} | `{}` |",
                plain(&d["file"]),
                plain(&d["rows"]["kept"]),
                plain(&d["rows"]["read"]),
                counts.join(" | "),
                plain(&d["sha256"])
            )?;
        }
        writeln!(
            t,
            "\nLeft out of training: empty texts, exact repeats, and texts that stand in the validation set. The \
             validation set chose the checkpoint and fitted the temperature, so its numbers below are slightly \
             kind.\n"
        )?;
        if let Some(step) = j["best"]["step"].as_u64() {
            writeln!(t, "The weights are those after step {step} of {}.\n", plain(&j["steps"]))?;
        }
        Ok(())
    }

    fn metrics(&self, t: &mut String) -> Result<()> {
        let labels = &self.about.labels;
        writeln!(t, "## Metrics on the {} validation rows\n", self.reference.rows.len())?;
        let torch = self.reference.evaluate(&self.reference.logits);
        writeln!(
            t,
            "| variant | macro-recall | accuracy | macro-F1 | labels as libtorch | largest logit difference | alone or in a batch |"
        )?;
        writeln!(t, "|---|---|---|---|---|---|---|")?;
        writeln!(
            t,
            "| libtorch fp32 | {:.4} | {:.4} | {:.4} | | | |",
            torch.macro_recall, torch.accuracy, torch.macro_f1
        )?;
        for e in self.exported {
            let (m, v) = (&e.report.measured, &e.report.evaluation);
            writeln!(
                t,
                "| {} | {:.4} | {:.4} | {:.4} | {:.4} | {:.1e} | {:.1e} |",
                e.variant,
                v.macro_recall,
                v.accuracy,
                v.macro_f1,
                m.label_agreement,
                m.max_logit_difference,
                m.max_batch_difference
            )?;
        }
        let exact: Vec<&str> = self
            .exported
            .iter()
            .filter(|e| e.report.exact_among_equals)
            .map(|e| e.variant.as_str())
            .collect();
        if !exact.is_empty() {
            writeln!(
                t,
                "\nAmong posts of its own length in tokens a post's logits were the same to the bit alone and in \
                 the batches tried ({}).",
                exact.join(", ")
            )?;
        }
        let c = self.calibrated;
        writeln!(t, "\nConfusion of {} (rows: truth, columns: prediction):\n", c.variant)?;
        writeln!(t, "| | {} | precision | recall | F1 |", labels.join(" | "))?;
        writeln!(t, "|---|{}---|---|---|", "---|".repeat(labels.len()))?;
        for (label, row) in labels.iter().zip(&c.report.evaluation.confusion) {
            let counts: Vec<String> = row.iter().map(usize::to_string).collect();
            write!(t, "| {label} | {} |", counts.join(" | "))?;
            match c.report.evaluation.per_class.get(label) {
                Some(m) => writeln!(t, " {:.3} | {:.3} | {:.3} |", m.precision, m.recall, m.f1)?,
                None => writeln!(t, " | | |")?,
            }
        }
        writeln!(t)?;
        Ok(())
    }

    fn calibration(&self, t: &mut String) -> Result<()> {
        let (c, truth) = (self.calibrated, &self.reference.truth);
        let temperature = self.about.temperature;
        writeln!(
            t,
            "## Calibration\n\nLogits are divided by {temperature:.3}, fitted on the validation rows with the \
             logits of {}. Expected calibration error (15 bins): {:.4} before, {:.4} after.\n",
            c.variant,
            calibration_error(&c.report.logits, truth, 1.0),
            calibration_error(&c.report.logits, truth, temperature)
        )?;
        Ok(())
    }

    fn variants(&self, t: &mut String) -> Result<()> {
        writeln!(t, "## Variants\n\n| variant | file | bytes | devices | tolerance of golden logits |")?;
        writeln!(t, "|---|---|---|---|---|")?;
        for e in self.exported {
            let (v, devices) = (&e.variant, devices(&e.variant).join(", "));
            writeln!(t, "| {v} | {} | {} | {devices} | {} |", file_name(v), e.graph.len(), e.tolerance)?;
        }
        writeln!(
            t,
            "\nfp16 was measured on the CPU, where ONNX Runtime computes parts of it in single precision.{}\n",
            if self.plan.is_some() {
                " int8 is static: every scale is fixed, so a post's result does not depend on its neighbours in a \
                 batch. Its word and position tables are bytes by row; attention, LayerNorm, pooling and head are \
                 single precision."
            } else {
                ""
            }
        )?;
        Ok(())
    }

    fn limits(&self, t: &mut String) -> Result<()> {
        writeln!(
            t,
            "## Limits of use\n\n\
             - Made for counting sentiment over many posts. A single post's label is wrong about one time in {}.\n\
             - Irony, quoted opinions, several targets in one post, and posts that need their thread or picture \
             are often misread; the label is that of the whole post, not of one brand in it.\n\
             - Trained on {} only; texts in other languages get labels that mean little.\n\
             - The labels and words are those of the years in which the training posts were written.\n\
             - Names of people and groups can move the label. Do not use it to decide about persons.\n",
            one_in(1.0 - self.calibrated.report.measured.accuracy),
            self.about.languages.join(", ")
        )?;
        Ok(())
    }

    fn reproduce(&self, t: &mut String) -> Result<()> {
        writeln!(t, "## Reproduce\n\n```sh")?;
        if let Some(j) = self.training {
            writeln!(t, "{}", self.finetune_command(j))?;
        }
        writeln!(t, "{}\n```\n", self.export_command())?;
        writeln!(
            t,
            "`make model` runs both. With the same seed, number of threads, libtorch and processor the weights come \
             out bit for bit, and so do the graphs; elsewhere they differ in their last digits, the graphs get \
             other hashes, and the folder is a new model of its own. A graph that `artifact.json` names may be \
             absent: the repository carries the int8 graph alone, and `make model` makes the others."
        )?;
        Ok(())
    }

    fn finetune_command(&self, j: &Value) -> String {
        let s = &j["settings"];
        let flags = [
            ("epochs", "epochs"),
            ("batch-size", "batch_size"),
            ("lr", "learning_rate"),
            ("warmup", "warmup"),
            ("weight-decay", "weight_decay"),
            ("clip", "clip"),
            ("dropout", "dropout"),
            ("pooling", "pooling"),
            ("class-weights", "class_weights"),
            ("label-smoothing", "label_smoothing"),
            ("seed", "seed"),
        ];
        let flags: Vec<String> = flags.iter().map(|(f, k)| format!("--{f} {}", plain(&s[*k]))).collect();
        let between = match eval_every(j) {
            Some(n) => format!(" --eval-every {n}"),
            None => String::new(),
        };
        format!(
            "training finetune --base {} --train {} --valid {} --out RUN \\\n    {} \\\n    {} --max-tokens {} \\\n    --device {} --precision {}{between}",
            name(Path::new(&self.about.base_model)),
            plain(&j["train"]["file"]),
            plain(&j["valid"]["file"]),
            flags[..6].join(" "),
            flags[6..].join(" "),
            self.about.max_tokens,
            plain(&j["device"]).to_lowercase(),
            if plain(&j["compute"]) == "BFloat16" { "bf16" } else { "fp32" }
        )
    }

    fn export_command(&self) -> String {
        let a = self.args;
        let variants: Vec<&str> = self.exported.iter().map(|e| e.variant.as_str()).collect();
        let mut line = format!("training export --model RUN --valid {}", name(&a.valid));
        if let Some(c) = &a.calibration {
            line += &format!(" --calibration {}", name(c));
        }
        line += &format!(
            " --out {} \\\n    --name {} --languages {} --variants {}",
            name(&a.out),
            self.about.name,
            self.about.languages.join(","),
            variants.join(",")
        );
        if let Some(base) = &a.base_model {
            line += &format!(" --base-model {base}");
        }
        if let Some(note) = &a.data_note {
            line += &format!(" \\\n    --data-note '{note}'");
        }
        line
    }
}

/// The last part of a path.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Steps between the evaluations that were not at the end of an epoch, where there were such.
fn eval_every(training: &Value) -> Option<u64> {
    let per_epoch = training["steps"].as_u64()? / training["settings"]["epochs"].as_u64()?.max(1);
    let steps = training["history"].as_array()?.iter().filter_map(|e| e["step"].as_u64());
    let between = steps.filter(|s| per_epoch > 0 && !s.is_multiple_of(per_epoch));
    between.reduce(|a, b| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    })
}

/// A JSON value without quotes.
fn plain(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

/// `error` as "one time in N".
fn one_in(error: f64) -> String {
    if error > 0.0 { format!("{:.0}", 1.0 / error) } else { "many".into() }
}
