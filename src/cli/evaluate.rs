//! `evaluate`: what a model is worth on posts that people have labelled.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use rayon::prelude::*;
use serde::Serialize;

use super::{ConfigArg, Outcome};
use crate::{
    classify::{artifact::Artifact, decide::argmax, engine::Engine},
    config::{Device, VariantChoice},
    evaluation::Evaluation,
    record::{ModelId, Sentiment},
    tokenize::Tokenizer,
};

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The table needs a text and a label column; labels are negative, neutral and positive in any case. Macro
recall is the measure of SemEval and TweetEval for sentiment. Posts a second are counted from raw text to
logits, without loading the model.

  sentistream evaluate --model models/sentiment-en --data held-out.csv
  sentistream evaluate --data tweets.tsv --text tweet --label gold --variant fp32 --json")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Model folder (model.dir)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Labelled posts: CSV, or TSV by extension, with a header row
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Column of the text
    #[arg(long, default_value = "text", value_name = "COLUMN")]
    text: String,
    /// Column of the label
    #[arg(long, default_value = "label", value_name = "COLUMN")]
    label: String,
    /// auto, cpu or cuda (model.device)
    #[arg(long, value_parser = named::<Device>)]
    device: Option<Device>,
    /// auto, int8, fp32 or fp16 (model.variant)
    #[arg(long, value_parser = named::<VariantChoice>)]
    variant: Option<VariantChoice>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A configuration word; the error lists the allowed ones.
pub(super) fn named<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).map_err(|e| e.to_string())
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: ModelId,
    variant: String,
    provider: &'static str,
    sessions: usize,
    posts_per_second: f64,
    #[serde(flatten)]
    evaluation: Evaluation,
}

/// Evaluates and prints.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut config = args.config.load()?;
    if let Some(dir) = &args.model {
        config.model.dir.clone_from(dir);
    }
    config.model.device = args.device.unwrap_or(config.model.device);
    config.model.variant = args.variant.unwrap_or(config.model.variant);
    let rows = read(&args.data, &args.text, &args.label)?;
    let artifact = Artifact::load(&config.model.dir)?;
    let engine = Engine::start(&config.model, &config.batch, &artifact)?;
    let tokenizer = Tokenizer::from_file(&artifact.dir.join("tokenizer.json"), artifact.max_tokens)?;
    let truth = rows
        .iter()
        .map(|r| {
            artifact.labels.iter().position(|l| *l == r.label).with_context(|| {
                format!(
                    "{}:{}: label '{}' is none of the model's",
                    args.data.display(),
                    r.line,
                    r.label.as_str()
                )
            })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;

    let begun = Instant::now();
    let encodings = rows
        .par_iter()
        .map(|r| tokenizer.encode(&artifact.preparation.apply(&r.text)))
        .collect::<Result<Vec<_>, _>>()?;
    let logits = engine.classify_all(&encodings)?;
    let took = begun.elapsed();

    let mut pairs = Vec::with_capacity(rows.len());
    for ((row, truth), logits) in rows.iter().zip(truth).zip(logits) {
        let logits = logits.map_err(|m| anyhow::anyhow!("{}:{}: {m}", args.data.display(), row.line))?;
        pairs.push((truth, argmax(&logits)));
    }
    let labels: Vec<String> = artifact.labels.iter().map(|l| l.as_str().to_owned()).collect();
    let report = Report {
        model: artifact.id.clone(),
        variant: engine.variant().to_owned(),
        provider: engine.provider(),
        sessions: engine.sessions(),
        posts_per_second: rows.len() as f64 / took.as_secs_f64(),
        evaluation: Evaluation::of(&labels, pairs),
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(Outcome::Done)
}

struct Row {
    line: u64,
    text: String,
    label: Sentiment,
}

fn read(path: &Path, text: &str, label: &str) -> anyhow::Result<Vec<Row>> {
    let tab =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv") || e.eq_ignore_ascii_case("tab"));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tab { b'\t' } else { b',' })
        .from_path(path)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    let header = reader.headers().with_context(|| format!("{}: header row", path.display()))?.clone();
    let column = |name: &str| {
        header.iter().position(|c| c.trim_start_matches('\u{feff}').trim() == name).with_context(|| {
            let have = header.iter().collect::<Vec<_>>().join(", ");
            format!("{}: no column '{name}' (columns: {have}); name it by --text or --label", path.display())
        })
    };
    let (text, label) = (column(text)?, column(label)?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.with_context(|| path.display().to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let found =
            record[label].parse().map_err(|e: String| anyhow::anyhow!("{}:{line}: {e}", path.display()))?;
        rows.push(Row { line, text: record[text].to_owned(), label: found });
    }
    if rows.is_empty() {
        bail!("{}: no rows", path.display());
    }
    Ok(rows)
}

fn table(r: &Report) -> String {
    use std::fmt::Write;
    let e = &r.evaluation;
    let mut out = String::new();
    let mut line = |s: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{s}");
    };
    line(format!(
        "{} ({}) {} on {}, {} session(s)",
        r.model.name, r.model.hash, r.variant, r.provider, r.sessions
    ));
    line(format!("{} posts, {:.1} posts/s", e.rows, r.posts_per_second));
    line(String::new());
    for (name, x) in [
        ("accuracy", e.accuracy),
        ("macro recall", e.macro_recall),
        ("macro F1", e.macro_f1),
        ("weighted F1", e.weighted_f1),
    ] {
        line(format!("{name:<14} {x:.4}"));
    }
    line(String::new());
    line(format!("{:<10} {:>9} {:>9} {:>9} {:>9}", "", "precision", "recall", "F1", "posts"));
    for label in &e.labels {
        let c = &e.per_class[label];
        line(format!("{label:<10} {:>9.4} {:>9.4} {:>9.4} {:>9}", c.precision, c.recall, c.f1, c.support));
    }
    line(String::new());
    line(format!(
        "{:<10} {}",
        "truth \\ said",
        e.labels.iter().map(|l| format!("{l:>9}")).collect::<String>()
    ));
    for (label, row) in e.labels.iter().zip(&e.confusion) {
        line(format!("{label:<12} {}", row.iter().map(|n| format!("{n:>9}")).collect::<String>()));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    fn rows(name: &str, text: &str) -> anyhow::Result<Vec<Row>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        read(&path, "text", "label")
    }

    #[test]
    fn columns_are_found_by_name() {
        let r = rows("a.csv", "\u{feff}label,id,text\nNegative,1,\"so, bad\"\npositive,2,good\n").unwrap();
        assert_eq!((r[0].label, r[0].text.as_str(), r[1].line), (Sentiment::Negative, "so, bad", 3));
        assert_eq!(rows("a.tsv", "text\tlabel\nx, y\tneutral\n").unwrap()[0].text, "x, y");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let e = |t| format!("{:#}", rows("a.csv", t).err().unwrap());
        assert!(e("body,label\nx,neutral\n").contains("no column 'text' (columns: body, label)"));
        let bad = e("text,label\nx,neutral\ny,meh\n");
        assert!(bad.contains("a.csv:3:") && bad.contains("meh"), "{bad}");
        assert!(e("text,label\n").contains("no rows"));
    }

    #[test]
    fn words_of_the_configuration_are_checked() {
        assert_eq!(named::<Device>("cuda"), Ok(Device::Cuda));
        let e = named::<VariantChoice>("int4").unwrap_err();
        assert!(e.contains("int4") && e.contains("int8"), "{e}");
    }
}
