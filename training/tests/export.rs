//! Exported graphs in ONNX Runtime against libtorch (which `encoder.rs` holds against plain loops), for
//! every family; int8's independence of the batch; broken limits; the written folder.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use clap::Parser;
use prost::Message;
use sentistream::classify::artifact::Artifact;
use serde_json::json;
use tch::{Device, Kind};
use training::{
    config::{EncoderConfig, Family},
    export::{
        self,
        calibrate::Calibration,
        encoder::{Numbers, Site, build},
        int8::{self, Plan, Settings},
        proto::ModelProto,
        runtime::Runner,
        verify::{self, Reference},
    },
    finetune::{self, Outcome},
    model::Model,
    weights::Weights,
};

const FAMILIES: [Family; 3] = [Family::Bert, Family::DistilBert, Family::Roberta];

fn labelled(family: Family, pooling: &str) -> (EncoderConfig, Weights) {
    let labels = json!({"0": "negative", "1": "neutral", "2": "positive"});
    let config = common::config(family, &[("id2label", labels), ("pooling", json!(pooling))]);
    let weights = common::weights(&config, 11);
    (config, weights)
}

/// Posts of 1 to 14 tokens, none of them padding.
fn posts(config: &EncoderConfig, n: usize) -> Vec<Vec<u32>> {
    let word = |i: usize| 2 + (i * 7919 + i / 3) % (config.vocab_size - 2);
    (0..n).map(|p| (0..1 + (p * 5) % 14).map(|t| word(p * 31 + t) as u32).collect()).collect()
}

fn torch(config: &EncoderConfig, weights: &Weights, posts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let model = Model::new(config.clone(), weights, Device::Cpu, Kind::Float, 1).unwrap();
    let rows: Vec<&[u32]> = posts.iter().map(Vec::as_slice).collect();
    model.logits(&rows, 1).unwrap()
}

fn runner(config: &EncoderConfig, weights: &Weights, numbers: Numbers<'_>) -> Runner {
    let graph = build(config, weights, numbers).unwrap().to_bytes();
    Runner::new(&graph, config.pad_token_id as u32).unwrap()
}

/// All posts in one batch: every length from 1 to 14 beside each other.
fn together(runner: &mut Runner, posts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    runner.logits(&posts.iter().collect::<Vec<_>>()).unwrap()
}

fn alone(runner: &mut Runner, posts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    posts.iter().map(|p| runner.logits(&[p]).unwrap().remove(0)).collect()
}

fn plan(config: &EncoderConfig, weights: &Weights) -> Plan {
    let seen = Calibration::run(config, weights, &posts(config, 64)).unwrap();
    int8::plan(config, weights, &seen, &Settings::default()).unwrap()
}

#[test]
fn fp32_is_libtorch_for_every_family_and_pooling() {
    for family in FAMILIES {
        for pooling in ["mean", "cls"] {
            let (config, weights) = labelled(family, pooling);
            let posts = posts(&config, 28);
            let expected = torch(&config, &weights, &posts);
            let mut graph = runner(&config, &weights, Numbers::Fp32);
            let found = together(&mut graph, &posts);
            let difference = verify::largest_difference(&found, &expected);
            assert!(difference < 1e-4, "{family:?} {pooling}: {difference}");
            // The comparison can tell posts apart.
            assert!(verify::largest_difference(&found[1..], &expected[..27]) > 0.1);
        }
    }
}

#[test]
fn fp16_is_near_and_its_outputs_are_fp32() {
    let (config, weights) = labelled(Family::Bert, "mean");
    let posts = posts(&config, 14);
    let mut graph = runner(&config, &weights, Numbers::Fp16);
    let difference =
        verify::largest_difference(&together(&mut graph, &posts), &torch(&config, &weights, &posts));
    assert!(difference > 0.0 && difference < 0.05, "{difference}");
    let embedding = graph.run(&[&posts[3]], &["embedding"]).unwrap();
    assert_eq!(embedding[0].len(), config.hidden_size);
}

#[test]
fn int8_is_near_and_does_not_know_its_neighbours() {
    for family in FAMILIES {
        let (config, weights) = labelled(family, "mean");
        let plan = plan(&config, &weights);
        assert_eq!(plan.sites.len(), 4 * config.layers);
        let posts = posts(&config, 42);
        let mut graph = runner(&config, &weights, Numbers::Int8(&plan));
        let one_by_one = alone(&mut graph, &posts);
        let batch = verify::largest_difference(&one_by_one, &together(&mut graph, &posts));
        assert!(batch < 1e-4, "{family:?}: {batch}");
        let expected = torch(&config, &weights, &posts);
        let spread = verify::largest_difference(&expected[1..], &expected[..41]);
        let difference = verify::largest_difference(&one_by_one, &expected);
        assert!(difference > 0.0 && difference < 0.1 * spread, "{family:?}: {difference} of {spread}");
    }
}

#[test]
fn posts_of_one_length_get_the_same_bits_in_any_batch() {
    let (config, weights) = labelled(Family::Bert, "mean");
    let plan = plan(&config, &weights);
    let same: Vec<Vec<u32>> = posts(&config, 200).into_iter().filter(|p| p.len() == 6).collect();
    assert!(same.len() > 8);
    for numbers in [Numbers::Fp32, Numbers::Int8(&plan)] {
        let mut graph = runner(&config, &weights, numbers);
        assert_eq!(alone(&mut graph, &same), together(&mut graph, &same));
    }
}

#[test]
fn int8_weights_are_bytes_in_the_file() {
    let (config, weights) = labelled(Family::Bert, "mean");
    let plan = plan(&config, &weights);
    let bytes = build(&config, &weights, Numbers::Int8(&plan)).unwrap().to_bytes();
    let graph = ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap();
    let of_type = |t| -> usize {
        let tensors = graph.initializer.iter().filter(|i| i.data_type == Some(t));
        tensors.map(|i| i.dims.iter().product::<i64>() as usize).sum()
    };
    let (h, wide) = (config.hidden_size, config.intermediate_size);
    let matrices = config.layers * (4 * h * h + 2 * h * wide);
    let tables = (config.vocab_size + config.max_positions) * h;
    assert_eq!(of_type(3), matrices + tables);
    assert_eq!(
        graph.node.iter().filter(|n| n.op_type() == "MatMulIntegerToFloat").count(),
        6 * config.layers
    );
}

#[test]
fn a_wrong_scale_breaks_the_limits() {
    let (config, weights) = labelled(Family::Bert, "mean");
    let rows = posts(&config, 210);
    let logits = torch(&config, &weights, &rows);
    let truth = logits.iter().map(|l| verify::argmax(l)).collect();
    let reference = Reference { rows, truth, logits, labels: config.labels.clone() };
    let mut plan = plan(&config, &weights);
    let site = plan.sites.get_mut(&(1, Site::Up)).unwrap();
    site.matrices[0].scale.iter_mut().for_each(|s| *s *= 4.0);
    let mut graph = runner(&config, &weights, Numbers::Int8(&plan));
    let report = verify::measure("int8", &mut graph, &reference, 1).unwrap();
    let message = verify::check(&[&report]).unwrap_err().to_string();
    assert!(message.contains("int8: share of libtorch's labels"), "{message}");

    let mut wrong = weights.clone();
    wrong.tensors.get_mut("encoder.layer.0.output.dense.bias").unwrap().data[3] += 0.01;
    let mut graph = runner(&config, &wrong, Numbers::Fp32);
    let report = verify::measure("fp32", &mut graph, &reference, 1).unwrap();
    let message = verify::check(&[&report]).unwrap_err().to_string();
    assert!(message.contains("fp32: largest logit difference to libtorch"), "{message}");
}

fn export_args(dir: &Path, extra: &[&str]) -> export::Args {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: export::Args,
    }
    let path = |name: &str| dir.join(name).display().to_string();
    let mut line = vec!["training".to_owned()];
    for (flag, value) in [
        ("--model", path("run")),
        ("--valid", path("valid.csv")),
        ("--calibration", path("train.csv")),
        ("--out", path("model")),
        ("--name", "tiny".into()),
        ("--languages", "en,de".into()),
        ("--threads", "1".into()),
    ] {
        line.extend([flag.to_owned(), value]);
    }
    line.extend(extra.iter().map(|s| (*s).to_owned()));
    Cli::parse_from(line).args
}

/// A run folder that `finetune` itself made.
fn trained() -> tempfile::TempDir {
    let dir = common::scene();
    common::csv(&dir.path().join("train.csv"), 300, 1);
    common::csv(&dir.path().join("valid.csv"), 240, 2);
    let args = common::args(dir.path(), "run", &["--epochs", "4", "--lr", "5e-3", "--batch-size", "16"]);
    let outcome = finetune::run(&args, &std::sync::atomic::AtomicBool::new(false)).unwrap();
    assert!(matches!(outcome, Outcome::Finished(_)));
    dir
}

#[test]
fn a_run_folder_becomes_a_folder_that_the_processor_loads() {
    let dir = trained();
    export::run(&export_args(dir.path(), &[])).unwrap();
    let out = dir.path().join("model");
    let artifact = Artifact::load(&out).unwrap();
    let manifest = artifact.manifest.as_ref().unwrap();
    assert_eq!((manifest.name.as_str(), manifest.base_model.as_str()), ("tiny", "tiny-base"));
    assert_eq!(manifest.languages, ["en", "de"]);
    assert_eq!(manifest.max_tokens, 16);
    assert_eq!(manifest.variants.keys().collect::<Vec<_>>(), ["fp16", "fp32", "int8"]);
    assert_eq!(artifact.graph(None, false).unwrap().0, "int8");
    assert_eq!(artifact.graph(None, true).unwrap().0, "fp16");
    assert_eq!(manifest.files.len(), 5, "config, tokenizer and three graphs");
    let int8 = &manifest.variants["int8"];
    assert!(int8.measured.rows == 240 && int8.measured.label_agreement >= 0.98);

    // The golden examples hold for the graphs on disk, to the last bit on the machine that made them.
    assert!(manifest.golden.len() >= 12);
    for (variant, found) in &manifest.variants {
        let mut graph = Runner::new(&std::fs::read(out.join(&found.file)).unwrap(), 0).unwrap();
        for g in &manifest.golden {
            assert_eq!(graph.logits(&[&g.ids]).unwrap()[0], g.logits[variant], "{variant}");
        }
    }
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    for part in
        ["# tiny", "Confusion of int8", "| negative |", "training finetune --base tiny-base", "`make model`"]
    {
        assert!(card.contains(part), "{part} in\n{card}");
    }

    // The same command writes the same bytes.
    let before: Vec<Vec<u8>> = files(&out);
    export::run(&export_args(dir.path(), &[])).unwrap();
    assert!(before == files(&out));

    // A graph that is not shipped is allowed; a changed one is not.
    std::fs::remove_file(out.join("model.onnx")).unwrap();
    Artifact::load(&out).unwrap();
    std::fs::write(out.join("model.int8.onnx"), b"x").unwrap();
    assert!(Artifact::load(&out).unwrap_err().to_string().contains("sha256"));
}

fn files(dir: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

#[test]
fn what_is_missing_is_named_and_nothing_is_written() {
    let dir = common::scene();
    common::csv(&dir.path().join("valid.csv"), 240, 2);
    let (config, weights) = labelled(Family::Bert, "mean");
    let run = dir.path().join("run");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("config.json"), serde_json::to_vec(&config.raw).unwrap()).unwrap();
    std::fs::write(run.join("tokenizer.json"), common::tokenizer_json()).unwrap();
    std::fs::write(run.join("model.safetensors"), weights.to_bytes(&config).unwrap()).unwrap();
    let error = |extra: &[&str]| format!("{:#}", export::run(&export_args(dir.path(), extra)).unwrap_err());
    assert!(error(&[]).contains("--base-model"), "{}", error(&[]));
    assert!(error(&["--base-model", "b", "--max-tokens", "21"]).contains("allow 1 to 20"));
    let e = error(&["--base-model", "b", "--max-tokens", "16", "--smoothing", "1.5"]);
    assert!(e.contains("--smoothing"), "{e}");
    common::csv(&dir.path().join("valid.csv"), 199, 2);
    let e = error(&["--base-model", "b", "--max-tokens", "16"]);
    assert!(e.contains("199 usable rows"), "{e}");
    assert!(!dir.path().join("model").exists());
}
