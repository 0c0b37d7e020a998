//! A model folder that is not right is refused before anything starts, in one line that says which file
//! and why.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use sentistream::{
    classify::{artifact::Artifact, engine::Engine},
    config::{Config, Device, VariantChoice},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const GRAPH: &str = "model.int8.onnx";

/// A copy of the shipped model, to be damaged.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sentiment-en");
        for entry in fs::read_dir(shipped).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    /// Makes `artifact.json` agree with a file that was changed, so that what is wrong with the file
    /// itself shows.
    fn rehash(&self, name: &str) {
        let hash = hex::encode(Sha256::digest(fs::read(self.path(name)).unwrap()));
        self.edit("artifact.json", |v| v["files"][name] = json!(hash));
    }

    fn refusal(&self) -> String {
        let mut config = Config::defaults();
        config.model.dir = self.dir.path().to_owned();
        config.model.device = Device::Cpu;
        config.model.variant = VariantChoice::Int8;
        config.model.sessions = 1;
        let message = match Artifact::load(&config.model.dir) {
            Err(e) => e.to_string(),
            Ok(a) => match Engine::start(&config.model, &config.batch, &a) {
                Err(e) => e.to_string(),
                Ok(_) => panic!("the folder was accepted"),
            },
        };
        assert!(!message.contains('\n'), "more than one line: {message}");
        message
    }

    fn refused(&self, words: &[&str]) {
        let message = self.refusal();
        for w in words {
            assert!(message.contains(w), "'{w}' is not in: {message}");
        }
    }
}

#[test]
fn a_changed_file_is_told_by_its_hash() {
    let f = Folder::new();
    let mut bytes = fs::read(f.path(GRAPH)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(f.path(GRAPH), bytes).unwrap();
    f.refused(&[GRAPH, "sha256", "changed after export"]);
}

#[test]
fn missing_files_are_named() {
    for name in ["config.json", "tokenizer.json"] {
        let f = Folder::new();
        fs::remove_file(f.path(name)).unwrap();
        f.refused(&[name, "cannot read"]);
    }
    let f = Folder::new();
    fs::remove_file(f.path(GRAPH)).unwrap();
    f.refused(&[GRAPH, "int8", "not in the folder"]);
}

#[test]
fn a_graph_with_other_labels_is_refused() {
    let f = Folder::new();
    f.edit("artifact.json", |v| v["labels"] = json!(["negative", "positive"]));
    f.edit("config.json", |v| v["id2label"] = json!({"0": "negative", "1": "positive"}));
    f.rehash("config.json");
    f.refused(&[GRAPH, "logits", "2 labels"]);
}

#[test]
fn a_truncated_graph_is_refused() {
    let f = Folder::new();
    let bytes = fs::read(f.path(GRAPH)).unwrap();
    fs::write(f.path(GRAPH), &bytes[..bytes.len() / 2]).unwrap();
    f.rehash(GRAPH);
    f.refused(&[GRAPH, "cannot load the graph"]);
}

#[test]
fn a_graph_with_other_inputs_is_refused() {
    let f = Folder::new();
    let mut bytes = fs::read(f.path(GRAPH)).unwrap();
    let (from, to) = (b"attention_mask", b"attention_hood");
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|&i| bytes[i..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for i in places {
        bytes[i..i + to.len()].copy_from_slice(to);
    }
    fs::write(f.path(GRAPH), bytes).unwrap();
    f.rehash(GRAPH);
    f.refused(&[GRAPH, "attention_hood", "expected input_ids, attention_mask"]);
}

#[test]
fn a_tokenizer_that_drifted_is_told_from_a_graph_that_did() {
    let f = Folder::new();
    f.edit("artifact.json", |v| v["golden"][1]["ids"][1] = json!(7));
    f.refused(&["golden example 1", "token ids", "position 1", "expected 7"]);

    let f = Folder::new();
    f.edit("artifact.json", |v| {
        let logit = v["golden"][2]["logits"]["int8"][0].as_f64().unwrap();
        v["golden"][2]["logits"]["int8"][0] = json!(logit + 5.0);
    });
    f.refused(&["golden example 2", "int8 on cpu", "expected logits", "tolerance"]);
}

#[test]
fn a_tokenizer_that_is_none_is_refused() {
    let f = Folder::new();
    fs::write(f.path("tokenizer.json"), "{}").unwrap();
    f.rehash("tokenizer.json");
    f.refused(&["tokenizer.json", "cannot read the tokenizer"]);
}

#[test]
fn a_variant_for_another_device_is_refused() {
    let f = Folder::new();
    f.edit("artifact.json", |v| v["variants"]["int8"]["devices"] = json!(["cuda"]));
    f.refused(&["int8", "cuda", "model.device is cpu"]);
}
