//! `config.json` of the families as Hugging Face writes it, and what is refused.

#![allow(clippy::unwrap_used)]

mod common;

use serde_json::{Map, Value, json};
use training::{
    config::{EncoderConfig, Family, Pooling},
    weights::Weights,
};

fn parse(value: &Value) -> anyhow::Result<EncoderConfig> {
    EncoderConfig::parse(value.as_object().unwrap().clone())
}

fn roberta() -> Value {
    json!({"model_type": "xlm-roberta", "vocab_size": 250002, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
        "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1})
}

#[test]
fn each_family_says_the_same_in_its_own_words() {
    let c = parse(&roberta()).unwrap();
    assert_eq!((c.family, c.position_offset(), c.max_tokens()), (Family::Roberta, 2, 512));
    assert_eq!((c.layer_norm_eps, c.hidden_dropout, c.pooling), (1e-5, 0.1, Pooling::Mean));
    let c = parse(&json!({"model_type": "distilbert", "vocab_size": 30522, "dim": 768, "n_layers": 6,
        "n_heads": 12, "hidden_dim": 3072, "activation": "gelu", "max_position_embeddings": 512,
        "dropout": 0.2, "attention_dropout": 0.3, "pooling": "cls"}))
    .unwrap();
    assert_eq!((c.hidden_size, c.layers, c.heads, c.intermediate_size), (768, 6, 12, 3072));
    assert_eq!((c.type_vocab_size, c.hidden_dropout, c.attention_dropout), (0, 0.2, 0.3));
    assert_eq!((c.layer_norm_eps, c.max_tokens(), c.pooling), (1e-12, 512, Pooling::Cls));
    assert_eq!(c.tensors().len(), 4 + 6 * 16);
}

#[test]
fn what_cannot_be_computed_is_refused_by_key_and_value() {
    for (key, value, parts) in [
        ("model_type", json!("gpt2"), vec!["model_type is 'gpt2'", "xlm-roberta"]),
        ("hidden_act", json!("relu"), vec!["hidden_act is 'relu'", "only 'gelu'"]),
        ("position_embedding_type", json!("relative_key"), vec!["relative_key", "absolute"]),
        ("num_attention_heads", json!(7), vec!["768", "7"]),
        ("hidden_size", json!("wide"), vec!["hidden_size is \"wide\""]),
        ("num_hidden_layers", Value::Null, vec!["num_hidden_layers is missing"]),
        ("hidden_dropout_prob", json!(1.0), vec!["hidden_dropout_prob is 1.0"]),
        ("layer_norm_eps", json!(0), vec!["layer_norm_eps is 0"]),
        ("max_position_embeddings", json!(2), vec!["max_position_embeddings is 2"]),
        ("pad_token_id", json!(250002), vec!["pad_token_id is 250002"]),
        ("pooling", json!("max"), vec!["pooling is 'max'", "mean or cls"]),
        ("id2label", json!({"0": "a", "2": "b"}), vec!["id2label", "[0, 2]"]),
    ] {
        let mut config = roberta();
        config[key] = value;
        let error = parse(&config).unwrap_err().to_string();
        assert!(parts.iter().all(|p| error.contains(p)), "{key}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let error = format!("{:#}", EncoderConfig::load(dir.path()).unwrap_err());
    assert!(error.contains("config.json: cannot read"), "{error}");
}

#[test]
fn a_run_folder_says_labels_and_pooling_and_keeps_unknown_keys() {
    let mut raw: Map<String, Value> = roberta().as_object().unwrap().clone();
    raw.insert("classifier_dropout".into(), json!(0.1));
    raw.insert("id2label".into(), json!({"0": "LABEL_0", "1": "LABEL_1"}));
    let base = EncoderConfig::parse(raw).unwrap();
    assert!(base.labels.is_empty());
    let labels = ["no", "yes"].map(String::from);
    let mut ours = base.with_head(&labels, Pooling::Cls);
    ours.set_dropout(0.3);
    let back = EncoderConfig::parse(ours.raw).unwrap();
    assert_eq!((back.labels.as_slice(), back.pooling), (&labels[..], Pooling::Cls));
    assert_eq!((back.hidden_dropout, back.attention_dropout), (0.3, 0.3));
    assert_eq!(back.raw["classifier_dropout"], 0.1);
    assert_eq!(back.raw["label2id"], json!({"no": 0, "yes": 1}));
    assert_eq!(back.raw["architectures"], json!(["RobertaForSequenceClassification"]));
}

#[test]
fn half_precision_and_the_old_names_of_layer_norm_are_read() {
    use safetensors::{Dtype, tensor::TensorView};
    let config = common::config(Family::Bert, &[]);
    let weights = common::weights(&config, 1);
    for dtype in [Dtype::F16, Dtype::BF16] {
        let raw: Vec<(String, Vec<usize>, Vec<u8>)> = weights
            .tensors
            .iter()
            .map(|(name, a)| {
                let old = name
                    .replace("LayerNorm.weight", "LayerNorm.gamma")
                    .replace("LayerNorm.bias", "LayerNorm.beta");
                let half = |x: &f32| match dtype {
                    Dtype::F16 => half::f16::from_f32(*x).to_le_bytes(),
                    _ => half::bf16::from_f32(*x).to_le_bytes(),
                };
                (format!("bert.{old}"), a.shape.clone(), a.data.iter().flat_map(half).collect())
            })
            .collect();
        let views = raw.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(dtype, s.clone(), b).unwrap()));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
        let read = Weights::load(dir.path(), &config).unwrap();
        for (name, array) in &weights.tensors {
            for (a, b) in array.data.iter().zip(&read.tensors[name].data) {
                assert!((a - b).abs() <= a.abs() / 128.0, "{name}: {a} {b}");
            }
        }
    }
}
