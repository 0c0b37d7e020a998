//! The model folder: manifest, golden examples, hashes, and writing it all.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use sentistream::{
    classify::artifact::{Artifact, FORMAT_VERSION, Golden, Manifest, Variant},
    prepare::TextPreparation,
    tokenize::Tokenizer,
};
use sha2::{Digest, Sha256};

use super::{runtime::Runner, verify::Report};
use crate::state::write_whole;

/// A graph that was built and measured.
pub struct Exported {
    /// `fp32`, `int8` or `fp16`.
    pub variant: String,
    /// The file's bytes.
    pub graph: Vec<u8>,
    /// What was measured.
    pub report: Report,
    /// Largest difference that golden examples may show elsewhere.
    pub tolerance: f64,
}

/// File name of a variant's graph.
pub fn file_name(variant: &str) -> String {
    if variant == "fp32" { "model.onnx".into() } else { format!("model.{variant}.onnx") }
}

/// Devices that a variant is made for.
pub fn devices(variant: &str) -> Vec<String> {
    let names: &[&str] = match variant {
        "int8" => &["cpu"],
        "fp16" => &["cuda"],
        _ => &["cpu", "cuda"],
    };
    names.iter().map(|d| (*d).to_owned()).collect()
}

/// The difference to this machine's logits that the processor accepts at its start.
///
/// - fp32: other processors add in another order (1e-5), but CUDA multiplies fp32 in TF32 by default,
///   with 10 bits of mantissa.
/// - fp16: measured here with casts on the CPU; CUDA rounds at other places.
/// - int8: the byte products are exact everywhere (sessions ask for that where VNNI is missing), but the fp32
///   arithmetic between them differs in its last bits from machine to machine, so a value beside a rounding
///   boundary falls to the other side and moves by a whole step. `drift` is how far such nudges moved the
///   golden logits here; three times that is room for other kernels. A wrong graph is off by whole units.
pub fn tolerance(variant: &str, drift: f64) -> f64 {
    match variant {
        "int8" => ((3.0 * drift).max(0.05) * 100.0).ceil() / 100.0,
        "fp16" => 0.05,
        _ => 0.02,
    }
}

/// Made-up texts of every kind that feeds hold.
pub fn golden_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        "Love the new update, works great! 😍🔥",
        "worst service ever. two hours on hold and then they hung up 😡",
        "The shop on Main Street opens at 9 tomorrow.",
        "@bob_99 @alice have you seen https://example.com/a?b=1 ??? unbelievable",
        "AT&amp;T &lt;3 &#39;quotes&#39; &quot;and&quot; entities",
        "I\\u2019m not sure\\u002c maybe next week \\ud83d\\ude42",
        "el servicio fue excelente, muchas gracias a todo el equipo",
        "このアプリは本当に使いやすいです",
        "الخدمة سيئة جدا ولن أعود",
        "Très déçu… le café était froid 👎🏽",
        "#Winning #blessed #MondayMotivation",
        "ok",
        "RT @news: stocks fall 3.5% after the report; analysts were \"surprised\"",
        "not bad at all, actually better than I expected :)",
        "  \t\n  spaces \u{200b} and\u{0} controls  ",
        "zażółć gęślą jaźń — naïve façade",
        "loooooooooove it!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    ]
    .map(String::from)
    .to_vec();
    texts.push("the battery died again and support keeps sending me the same useless answer. ".repeat(40));
    texts
}

/// Golden examples: every text with its ids and every variant's logits.
pub fn golden(
    preparation: &TextPreparation,
    tokenizer: &Tokenizer,
    runners: &mut [(String, Runner)],
) -> Result<Vec<Golden>> {
    golden_texts()
        .into_iter()
        .map(|text| {
            let ids = tokenizer.encode(&preparation.apply(&text))?.ids;
            let mut logits = BTreeMap::new();
            for (variant, runner) in runners.iter_mut() {
                logits.insert(variant.clone(), runner.logits(&[&ids])?.remove(0));
            }
            Ok(Golden { text, ids, logits: logits.into_iter().collect() })
        })
        .collect()
}

/// What the manifest says besides files and variants.
pub struct About {
    /// Name that labelled records carry.
    pub name: String,
    /// What was fine-tuned.
    pub base_model: String,
    /// BCP 47 primary subtags.
    pub languages: Vec<String>,
    /// Text preparation of training.
    pub preparation: TextPreparation,
    /// Longest encoding.
    pub max_tokens: usize,
    /// Labels by output index.
    pub labels: Vec<String>,
    /// Divides logits before the softmax.
    pub temperature: f64,
}

/// Writes the folder, `artifact.json` last, and reads it back as the processor will.
pub fn write(
    out: &Path,
    run: &Path,
    about: &About,
    exported: &[Exported],
    golden: Vec<Golden>,
    card: &str,
) -> Result<Manifest> {
    fs::create_dir_all(out).with_context(|| format!("{}: cannot make the folder", out.display()))?;
    let mut files = BTreeMap::new();
    let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
        files.insert(name.to_owned(), hex::encode(Sha256::digest(bytes)));
        write_whole(&out.join(name), bytes)
    };
    for name in ["config.json", "tokenizer.json"] {
        let path = run.join(name);
        put(name, &fs::read(&path).with_context(|| format!("{}: cannot read", path.display()))?)?;
    }
    for e in exported {
        put(&file_name(&e.variant), &e.graph)?;
    }
    let variants = exported.iter().map(|e| {
        let variant = Variant {
            file: file_name(&e.variant),
            devices: devices(&e.variant),
            tolerance: e.tolerance,
            measured: e.report.measured.clone(),
        };
        (e.variant.clone(), variant)
    });
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        name: about.name.clone(),
        base_model: about.base_model.clone(),
        languages: about.languages.clone(),
        preparation: about.preparation.clone(),
        max_tokens: about.max_tokens,
        labels: about.labels.clone(),
        temperature: about.temperature,
        variants: variants.collect(),
        files: files.into_iter().collect(),
        golden,
    };
    write_whole(&out.join("README.md"), card.as_bytes())?;
    let mut json = serde_json::to_vec_pretty(&manifest)?;
    json.push(b'\n');
    write_whole(&out.join("artifact.json"), &json)?;
    Artifact::load(out).context("the folder was written but the processor would refuse it")?;
    Ok(manifest)
}
