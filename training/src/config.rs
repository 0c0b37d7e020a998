//! Hugging Face's `config.json` for the encoder families that can be fine-tuned and exported, and the
//! names and shapes of their tensors. Everything that differs between the families is in this file.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

/// An encoder family: which field names, tensor names and position numbering apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `bert`: token types, positions from 0.
    Bert,
    /// `distilbert`: its own names, no token types.
    DistilBert,
    /// `roberta` and `xlm-roberta`: positions start after the padding id.
    Roberta,
}

impl Family {
    /// What Hugging Face writes before the encoder's tensor names in a model with a head.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bert => "bert.",
            Self::DistilBert => "distilbert.",
            Self::Roberta => "roberta.",
        }
    }
}

/// How the tokens' vectors become one vector of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pooling {
    /// Mean over the text's own tokens.
    Mean,
    /// The first token's vector.
    Cls,
}

impl Pooling {
    /// `mean` or `cls`, as in `config.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
        }
    }
}

/// An encoder's dimensions and constants.
#[derive(Clone, Debug)]
pub struct EncoderConfig {
    /// Its family.
    pub family: Family,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Rows of the position embedding.
    pub max_positions: usize,
    /// Rows of the token type embedding; 0 where the family has none.
    pub type_vocab_size: usize,
    /// Added to the variance in every LayerNorm.
    pub layer_norm_eps: f64,
    /// Dropout after embeddings, attention output and feed-forward.
    pub hidden_dropout: f64,
    /// Dropout of attention probabilities.
    pub attention_dropout: f64,
    /// The padding token.
    pub pad_token_id: usize,
    /// How the text's vector is made; a base folder without the key gets [`Pooling::Mean`].
    pub pooling: Pooling,
    /// Labels by output index (`id2label`); empty where the file has none.
    pub labels: Vec<String>,
    /// The file as it was read, so that a run folder keeps the keys we do not know.
    pub raw: Map<String, Value>,
}

/// Tensor names of one layer, without `.weight` and `.bias`.
#[derive(Clone, Debug)]
pub struct LayerNames {
    /// Query projection, `[hidden, hidden]`.
    pub query: String,
    /// Key projection.
    pub key: String,
    /// Value projection.
    pub value: String,
    /// Projection of the attended values.
    pub attention_output: String,
    /// LayerNorm after the attention's residual.
    pub attention_norm: String,
    /// First feed-forward matrix, `[intermediate, hidden]`.
    pub intermediate: String,
    /// Second feed-forward matrix, `[hidden, intermediate]`.
    pub output: String,
    /// LayerNorm after the feed-forward's residual.
    pub output_norm: String,
}

impl EncoderConfig {
    /// Reads `config.json` of a model folder.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "{}: cannot read; a model folder holds config.json, tokenizer.json and model.safetensors",
                path.display()
            )
        })?;
        let raw: Map<String, Value> = serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: not a JSON object", path.display()))?;
        Self::parse(raw).with_context(|| path.display().to_string())
    }

    /// Understands the content of a `config.json`.
    pub fn parse(raw: Map<String, Value>) -> Result<Self> {
        let f = Fields(&raw);
        let model_type = f.text("model_type")?.unwrap_or_default();
        let family = match model_type {
            "bert" => Family::Bert,
            "distilbert" => Family::DistilBert,
            "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
            other => {
                bail!("model_type is '{other}', expected bert, distilbert, roberta, xlm-roberta or camembert")
            }
        };
        let distil = family == Family::DistilBert;
        let key = |usual, distilbert| if distil { distilbert } else { usual };
        f.expect_text(key("hidden_act", "activation"), "gelu")?;
        f.expect_text("position_embedding_type", "absolute")?;
        let roberta = family == Family::Roberta;
        let config = Self {
            family,
            vocab_size: f.size("vocab_size")?,
            hidden_size: f.size(key("hidden_size", "dim"))?,
            layers: f.size(key("num_hidden_layers", "n_layers"))?,
            heads: f.size(key("num_attention_heads", "n_heads"))?,
            intermediate_size: f.size(key("intermediate_size", "hidden_dim"))?,
            max_positions: f.size("max_position_embeddings")?,
            type_vocab_size: if distil { 0 } else { f.size_or("type_vocab_size", 2)? },
            layer_norm_eps: f.number_or("layer_norm_eps", 1e-12)?,
            hidden_dropout: f.probability(key("hidden_dropout_prob", "dropout"))?,
            attention_dropout: f.probability(key("attention_probs_dropout_prob", "attention_dropout"))?,
            pad_token_id: f.size_or("pad_token_id", usize::from(roberta))?,
            pooling: match f.text("pooling")? {
                None | Some("mean") => Pooling::Mean,
                Some("cls") => Pooling::Cls,
                Some(other) => bail!("pooling is '{other}', expected mean or cls"),
            },
            labels: labels(&raw)?,
            raw: raw.clone(),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if !self.hidden_size.is_multiple_of(self.heads) {
            bail!(
                "the hidden size ({}) is not a multiple of the attention heads ({})",
                self.hidden_size,
                self.heads
            );
        }
        if self.pad_token_id >= self.vocab_size {
            bail!(
                "pad_token_id is {}, expected less than vocab_size ({})",
                self.pad_token_id,
                self.vocab_size
            );
        }
        if self.max_positions <= self.position_offset() {
            bail!(
                "max_position_embeddings is {}, expected more than {}",
                self.max_positions,
                self.position_offset()
            );
        }
        Ok(())
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.heads
    }

    /// Position id of a text's first token.
    pub fn position_offset(&self) -> usize {
        if self.family == Family::Roberta { self.pad_token_id + 1 } else { 0 }
    }

    /// The longest text the position embedding can hold, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_positions - self.position_offset()
    }

    /// Tensor names of layer `i`, counted from 0, without the family's prefix.
    pub fn layer_names(&self, i: usize) -> LayerNames {
        let (stem, names) = match self.family {
            Family::DistilBert => (
                format!("transformer.layer.{i}."),
                [
                    "attention.q_lin",
                    "attention.k_lin",
                    "attention.v_lin",
                    "attention.out_lin",
                    "sa_layer_norm",
                    "ffn.lin1",
                    "ffn.lin2",
                    "output_layer_norm",
                ],
            ),
            Family::Bert | Family::Roberta => (
                format!("encoder.layer.{i}."),
                [
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                    "attention.output.LayerNorm",
                    "intermediate.dense",
                    "output.dense",
                    "output.LayerNorm",
                ],
            ),
        };
        let [query, key, value, attention_output, attention_norm, intermediate, output, output_norm] =
            names.map(|n| format!("{stem}{n}"));
        LayerNames { query, key, value, attention_output, attention_norm, intermediate, output, output_norm }
    }

    /// Every tensor of the encoder with its shape, in a fixed order, without the family's prefix.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, wide) = (self.hidden_size, self.intermediate_size);
        let mut all = vec![
            ("embeddings.word_embeddings.weight".into(), vec![self.vocab_size, h]),
            ("embeddings.position_embeddings.weight".into(), vec![self.max_positions, h]),
        ];
        if self.type_vocab_size > 0 {
            all.push(("embeddings.token_type_embeddings.weight".into(), vec![self.type_vocab_size, h]));
        }
        let mut pair = |name: &str, weight: Vec<usize>| {
            let bias = vec![weight[0]];
            all.push((format!("{name}.weight"), weight));
            all.push((format!("{name}.bias"), bias));
        };
        pair("embeddings.LayerNorm", vec![h]);
        for i in 0..self.layers {
            let n = self.layer_names(i);
            pair(&n.query, vec![h, h]);
            pair(&n.key, vec![h, h]);
            pair(&n.value, vec![h, h]);
            pair(&n.attention_output, vec![h, h]);
            pair(&n.attention_norm, vec![h]);
            pair(&n.intermediate, vec![wide, h]);
            pair(&n.output, vec![h, wide]);
            pair(&n.output_norm, vec![h]);
        }
        all
    }

    /// The same encoder with other labels and pooling, and `raw` saying so: what a run folder gets.
    pub fn with_head(&self, labels: &[String], pooling: Pooling) -> Self {
        let mut config = self.clone();
        let architecture = match self.family {
            Family::Bert => "BertForSequenceClassification",
            Family::DistilBert => "DistilBertForSequenceClassification",
            Family::Roberta => "RobertaForSequenceClassification",
        };
        let by_id: Map<String, Value> =
            labels.iter().enumerate().map(|(i, l)| (i.to_string(), json!(l))).collect();
        let by_label: Map<String, Value> =
            labels.iter().enumerate().map(|(i, l)| (l.clone(), json!(i))).collect();
        for (key, value) in [
            ("architectures", json!([architecture])),
            ("id2label", Value::Object(by_id)),
            ("label2id", Value::Object(by_label)),
            ("pooling", json!(pooling.as_str())),
            ("torch_dtype", json!("float32")),
        ] {
            config.raw.insert(key.into(), value);
        }
        config.raw.remove("_name_or_path");
        config.labels = labels.to_vec();
        config.pooling = pooling;
        config
    }
}

impl EncoderConfig {
    /// Changes both dropout rates, in `raw` too.
    pub fn set_dropout(&mut self, p: f64) {
        (self.hidden_dropout, self.attention_dropout) = (p, p);
        let keys = match self.family {
            Family::DistilBert => ["dropout", "attention_dropout"],
            Family::Bert | Family::Roberta => ["hidden_dropout_prob", "attention_probs_dropout_prob"],
        };
        for key in keys {
            self.raw.insert(key.into(), json!(p));
        }
    }
}

/// `id2label` in index order; Hugging Face's placeholder names (`LABEL_0`) count as none.
fn labels(raw: &Map<String, Value>) -> Result<Vec<String>> {
    let Some(value) = raw.get("id2label") else { return Ok(Vec::new()) };
    let map = value.as_object().ok_or_else(|| anyhow!("id2label is {value}, expected an object"))?;
    let mut by_id = map
        .iter()
        .map(|(id, label)| match (id.parse::<usize>(), label.as_str()) {
            (Ok(id), Some(label)) => Ok((id, label.to_owned())),
            _ => Err(anyhow!("id2label has '{id}': {label}, expected a number and a name")),
        })
        .collect::<Result<Vec<_>>>()?;
    by_id.sort();
    if by_id.iter().enumerate().any(|(i, (id, _))| i != *id) {
        bail!(
            "id2label has the ids {:?}, expected 0, 1, … without a gap",
            by_id.iter().map(|x| x.0).collect::<Vec<_>>()
        );
    }
    if by_id.iter().all(|(_, l)| l.starts_with("LABEL_")) {
        return Ok(Vec::new());
    }
    Ok(by_id.into_iter().map(|(_, l)| l).collect())
}

/// Typed look-ups whose errors name the key, the value found and what was expected.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn found(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let text = |v: &'a Value| v.as_str().ok_or_else(|| anyhow!("{key} is {v}, expected a string"));
        self.found(key).map(text).transpose()
    }

    fn expect_text(&self, key: &str, only: &str) -> Result<()> {
        match self.text(key)? {
            Some(v) if v != only => bail!("{key} is '{v}', only '{only}' is supported"),
            _ => Ok(()),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        let v = self.found(key).ok_or_else(|| anyhow!("{key} is missing"))?;
        match v.as_u64() {
            Some(n) if n > 0 => Ok(usize::try_from(n)?),
            _ => bail!("{key} is {v}, expected a whole number above 0"),
        }
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        let Some(v) = self.found(key) else { return Ok(default) };
        let n = v.as_u64().ok_or_else(|| anyhow!("{key} is {v}, expected a whole number"))?;
        Ok(usize::try_from(n)?)
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(v) = self.found(key) else { return Ok(default) };
        v.as_f64().filter(|n| *n > 0.0).ok_or_else(|| anyhow!("{key} is {v}, expected a number above 0"))
    }

    fn probability(&self, key: &str) -> Result<f64> {
        let Some(v) = self.found(key) else { return Ok(0.1) };
        v.as_f64()
            .filter(|p| (0.0..1.0).contains(p))
            .ok_or_else(|| anyhow!("{key} is {v}, expected a number from 0 up to, not including, 1"))
    }
}
