//! Small model folders and labelled rows, made by the tests themselves.

#![allow(dead_code, clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};
use training::{
    args::Args,
    config::{EncoderConfig, Family},
    weights::{Array, Weights},
};

pub const WORDS: [&str; 12] =
    ["good", "great", "love", "bad", "awful", "hate", "table", "chair", "door", "the", "a", "is"];

/// A `config.json` of two small layers.
pub fn config(family: Family, extra: &[(&str, Value)]) -> EncoderConfig {
    let value = match family {
        Family::DistilBert => json!({"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 4,
            "hidden_dim": 24, "activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1}),
        _ => json!({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 24, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-5,
            "model_type": if family == Family::Bert { "bert" } else { "roberta" },
            "type_vocab_size": if family == Family::Bert { 2 } else { 1 }}),
    };
    let mut raw: Map<String, Value> = value.as_object().unwrap().clone();
    raw.insert("vocab_size".into(), json!(4 + WORDS.len()));
    raw.insert("max_position_embeddings".into(), json!(20));
    raw.insert("pad_token_id".into(), json!(if family == Family::Roberta { 1 } else { 0 }));
    raw.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    EncoderConfig::parse(raw).unwrap()
}

/// Random weights, wide enough that attention and LayerNorm matter; a head where labels are configured.
pub fn weights(config: &EncoderConfig, seed: u64) -> Weights {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all = config.tensors();
    let labels = config.labels.len();
    if labels > 0 {
        all.push(("classifier.weight".into(), vec![labels, config.hidden_size]));
        all.push(("classifier.bias".into(), vec![labels]));
    }
    let tensors = all.into_iter().map(|(name, shape)| {
        let norm = name.contains("orm.weight") || name.contains("norm.weight");
        let data = (0..shape.iter().product::<usize>())
            .map(|_| rng.random_range(-0.5f32..0.5) + if norm { 1.0 } else { 0.0 })
            .collect();
        (name, Array { shape, data })
    });
    Weights { tensors: tensors.collect() }
}

/// A WordPiece tokenizer over [`WORDS`].
pub fn tokenizer_json() -> String {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let vocab: Map<String, Value> =
        special.iter().chain(&WORDS).enumerate().map(|(i, w)| ((*w).to_owned(), json!(i))).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, w)| {
            json!({"id": i, "content": w, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
        })
        .collect();
    let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let second = json!({"Sequence": {"id": "B", "type_id": 1}});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [piece("[CLS]"), text, piece("[SEP]")],
            "pair": [piece("[CLS]"), text, piece("[SEP]"), second, piece("[SEP]")],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}
    })
    .to_string()
}

/// Writes a base folder and returns its path.
pub fn base_folder(dir: &Path) -> PathBuf {
    let base = dir.join("tiny-base");
    fs::create_dir_all(&base).unwrap();
    let config = config(Family::Bert, &[]);
    fs::write(base.join("config.json"), serde_json::to_vec(&config.raw).unwrap()).unwrap();
    fs::write(base.join("tokenizer.json"), tokenizer_json()).unwrap();
    fs::write(base.join("model.safetensors"), weights(&config, 7).to_bytes(&config).unwrap()).unwrap();
    base
}

/// Rows whose label follows from one word; `seed` chooses order and filling.
pub fn csv(path: &Path, rows: usize, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut out = String::from("id,label,text\n");
    for i in 0..rows {
        let kind = i % 3;
        let word = WORDS[kind * 3 + rng.random_range(0..3)];
        let label = ["positive", "negative", "neutral"][kind];
        let mut text = vec![word];
        for _ in 0..rng.random_range(0..6) {
            text.insert(rng.random_range(0..=text.len()), WORDS[rng.random_range(9..12)]);
        }
        out += &format!("{i},{label},{}\n", text.join(" "));
    }
    fs::write(path, out).unwrap();
}

/// The command line's defaults with the given paths, and `extra` after them.
pub fn args(dir: &Path, out: &str, extra: &[&str]) -> Args {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let mut line = vec!["training".to_owned()];
    for (flag, value) in [
        ("--base", path("tiny-base")),
        ("--train", path("train.csv")),
        ("--valid", path("valid.csv")),
        ("--out", path(out)),
    ] {
        line.extend([flag.to_owned(), value]);
    }
    line.extend(
        ["--max-tokens", "16", "--device", "cpu", "--precision", "fp32", "--threads", "1"].map(String::from),
    );
    line.extend(extra.iter().map(|s| (*s).to_owned()));
    Cli::parse_from(line).args
}

/// A directory with base, train.csv and valid.csv.
pub fn scene() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    base_folder(dir.path());
    csv(&dir.path().join("train.csv"), 90, 1);
    csv(&dir.path().join("valid.csv"), 30, 2);
    dir
}
