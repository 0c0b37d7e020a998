//! Whole runs over a tiny random encoder: learning, resuming, refusing.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, atomic::AtomicBool},
    time::{Duration, Instant},
};

use common::{args, csv, scene};
use serde_json::Value;
use training::finetune::{Outcome, run};

/// libtorch's generator belongs to the process: runs that must be repeatable run alone.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn go(args: &training::args::Args) -> anyhow::Result<Outcome> {
    run(args, &AtomicBool::new(false))
}

fn report(dir: &Path, out: &str) -> Value {
    serde_json::from_slice(&fs::read(dir.join(out).join("training.json")).unwrap()).unwrap()
}

fn model(dir: &Path, out: &str) -> Vec<u8> {
    fs::read(dir.join(out).join("model.safetensors")).unwrap()
}

const SHORT: [&str; 10] =
    ["--epochs", "4", "--batch-size", "16", "--lr", "0.01", "--save-every", "3", "--eval-every", "2"];

#[test]
fn separable_texts_are_learnt_and_the_run_folder_is_complete() {
    let _alone = alone();
    let dir = scene();
    let line = [
        "--epochs",
        "30",
        "--batch-size",
        "8",
        "--lr",
        "0.01",
        "--dropout",
        "0",
        "--class-weights",
        "balanced",
    ];
    let Outcome::Finished(best) = go(&args(dir.path(), "run", &line)).unwrap() else {
        panic!("not finished")
    };
    assert_eq!(best.evaluation.accuracy, 1.0, "{:?}", best.evaluation.confusion);
    assert_eq!(best.evaluation.rows, 30);

    let report = report(dir.path(), "run");
    assert_eq!(report["finished"], true);
    assert_eq!(report["base_model"], "tiny-base");
    assert_eq!(report["settings"]["class_weights"], "balanced");
    assert_eq!(report["history"].as_array().unwrap().len(), 30);
    assert_eq!(report["best"]["step"], best.step);
    let counts = &report["train"]["rows"];
    let number = |key: &str| counts[key].as_u64().unwrap();
    assert_eq!(number("read"), 90);
    assert_eq!(number("kept") + number("repeated") + number("in_validation") + number("empty"), 90);

    // What export reads: the encoder, its head, the labels, the tokenizer.
    let run = dir.path().join("run");
    let config = training::config::EncoderConfig::load(&run).unwrap();
    assert_eq!(config.labels, ["negative", "neutral", "positive"]);
    training::weights::Weights::load(&run, &config).unwrap().head().unwrap();
    assert_eq!(fs::read_to_string(run.join("tokenizer.json")).unwrap(), common::tokenizer_json());
    assert!(!run.join("state.safetensors").exists());
}

#[test]
fn a_run_resumed_at_every_other_step_is_the_unbroken_run() {
    let _alone = alone();
    let dir = scene();
    go(&args(dir.path(), "whole", &SHORT)).unwrap();
    let mut broken = args(dir.path(), "broken", &SHORT);
    // A stop that is asked for at once comes after one step, so this crosses the first epoch's end.
    for step in 1..=8 {
        assert_eq!(run(&broken, &AtomicBool::new(true)).unwrap(), Outcome::Interrupted(step));
        broken.resume = true;
    }
    go(&broken).unwrap();
    assert_eq!(model(dir.path(), "whole"), model(dir.path(), "broken"));
    let (whole, broken) = (report(dir.path(), "whole"), report(dir.path(), "broken"));
    assert_eq!(whole["history"], broken["history"]);
    assert!(whole["history"].as_array().unwrap().len() > 4, "--eval-every adds evaluations");
    // Another seed is another run.
    go(&args(dir.path(), "other", &[&SHORT[..], &["--seed", "43"]].concat())).unwrap();
    assert_ne!(model(dir.path(), "whole"), model(dir.path(), "other"));
}

#[test]
fn a_process_killed_or_interrupted_goes_on_where_it_stood() {
    let _alone = alone();
    let dir = scene();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let start = |out: &str, resume: bool| -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_training"));
        command.args(["finetune", "--base", &path("tiny-base"), "--train", &path("train.csv")]);
        command.args(["--valid", &path("valid.csv"), "--out", &path(out), "--max-tokens", "16"]);
        command.args(["--device", "cpu", "--precision", "fp32", "--threads", "1", "--epochs", "30"]);
        command.args(["--batch-size", "16", "--lr", "0.003", "--save-every", "2"]);
        command.args(resume.then_some("--resume"));
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    assert!(start("whole", false).wait().unwrap().success());

    let state = dir.path().join("broken/state.safetensors");
    let mut child = start("broken", false);
    wait_for(&mut child, || state.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let before = fs::metadata(&state).unwrap().modified().unwrap();
    let mut child = start("broken", true);
    wait_for(&mut child, || fs::metadata(&state).is_ok_and(|m| m.modified().unwrap() > before));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start("broken", true).wait().unwrap().success());
    assert_eq!(model(dir.path(), "whole"), model(dir.path(), "broken"));
    assert_eq!(report(dir.path(), "whole")["history"], report(dir.path(), "broken")["history"]);
}

fn wait_for(child: &mut Child, ready: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !ready() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it could be stopped");
        assert!(Instant::now() < limit, "no state was saved within a minute");
        std::thread::yield_now();
    }
}

#[test]
fn a_run_folder_belongs_to_one_run() {
    let _alone = alone();
    let dir = scene();
    let fails = |extra: &[&str], parts: &[&str]| {
        let error = format!("{:#}", go(&args(dir.path(), "run", extra)).unwrap_err());
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    };
    fails(&["--resume"], &["run: nothing to resume", "state.safetensors"]);
    let first = args(dir.path(), "run", &SHORT);
    run(&first, &AtomicBool::new(true)).unwrap();
    fails(&SHORT, &["already holds state.safetensors", "--resume"]);
    let mut other = SHORT;
    other[5] = "0.02";
    fails(&[&other[..], &["--resume"]].concat(), &["state.safetensors", "learning_rate = 0.01", "0.02"]);
    csv(&dir.path().join("train.csv"), 60, 9);
    fails(&[&SHORT[..], &["--resume"]].concat(), &["state.safetensors", "train.sha256"]);
}

#[test]
fn bad_rows_name_file_line_column_and_value() {
    let _alone = alone();
    let dir = scene();
    let fails = |file: &str, content: &str, extra: &[&str], parts: &[&str]| {
        let path = dir.path().join(file);
        fs::write(&path, content).unwrap();
        let mut args = args(dir.path(), "run", extra);
        args.train = path;
        let error = format!("{:#}", go(&args).unwrap_err());
        for part in [&[file], parts].concat() {
            assert!(error.contains(part), "{error}");
        }
    };
    let bad = "label,text\npositive,\"good\nday\"\nhappy,x\n";
    fails("bad.csv", bad, &[], &["line 4", "column 'label'", "'happy'", "negative, neutral or positive"]);
    fails("bad.csv", "label,text\n", &[], &["has no rows"]);
    fails("bad.csv", "label,text\npositive\n", &[], &["line: 2", "1 field"]);
    fails("bad.csv", "sentiment,text\npositive,x\n", &[], &["no column 'label'", "sentiment, text"]);
    let named = ["--label-column", "y", "--text-column", "t"];
    fails("bad.tsv", "y\tt\npositive\tgood\nmeh\tx\n", &named, &["line 3", "column 'y'", "'meh'"]);
    fails(
        "bad.jsonl",
        "{\"label\":\"positive\",\"text\":\"x\"}\n{\"label\":\"positive\"}\n",
        &[],
        &["line 2", "'text' is missing"],
    );
    fails("bad.ndjson", "{\"label\":\n", &[], &["line 1", "not JSON"]);
    fails("bad.xlsx", "", &[], &[".csv, .tsv, .jsonl, .ndjson"]);
    fails("one.csv", "label,text\npositive,x y\n", &[], &["no row is labelled negative or neutral"]);
}

#[test]
fn empty_repeated_and_leaked_rows_are_left_out_and_counted() {
    let _alone = alone();
    let dir = scene();
    let rows = "label,text\npositive,good\npositive,  good \nneutral,good\nneutral,\"  \"\n\
                negative,hate @bob\nnegative,hate @ann\nneutral,a table\n";
    fs::write(dir.path().join("train.csv"), rows).unwrap();
    let valid = "{\"text\":\"a  table\",\"label\":\"neu\"}\n{\"text\":\"bad\",\"label\":\"NEG\"}\n\n\
                 {\"text\":\"\",\"label\":\"neg\"}\n{\"text\":\"love\",\"label\":\"pos\"}\n";
    fs::write(dir.path().join("valid.jsonl"), valid).unwrap();
    let mut args = args(dir.path(), "run", &["--epochs", "1"]);
    args.valid = dir.path().join("valid.jsonl");
    go(&args).unwrap();
    let report = report(dir.path(), "run");
    let counts = serde_json::json!({"read": 7, "empty": 1, "repeated": 2, "in_validation": 1, "kept": 3});
    assert_eq!(report["train"]["rows"], counts);
    assert_eq!(report["train"]["by_label"], serde_json::json!([1, 1, 1]));
    assert_eq!(report["valid"]["rows"]["kept"], 3);
    assert_eq!(report["valid"]["rows"]["empty"], 1);
}

#[test]
fn arguments_out_of_range_are_refused_by_name() {
    let _alone = alone();
    let dir = scene();
    for (extra, part) in [
        (["--epochs", "0"], "--epochs is 0"),
        (["--lr", "0"], "--lr is 0"),
        (["--lr", "NaN"], "--lr is NaN"),
        (["--warmup", "1.5"], "--warmup is 1.5"),
        (["--label-smoothing", "1"], "--label-smoothing is 1"),
        (["--max-tokens", "21"], "--max-tokens is 21, the base model's positions allow 20"),
        (["--max-tokens", "2"], "--max-tokens is 2"),
        (["--save-every", "0"], "--save-every is 0"),
    ] {
        let line = extra.map(|s| s.to_owned());
        let mut all = args(dir.path(), "run", &[]);
        match line[0].as_str() {
            "--max-tokens" => all.max_tokens = line[1].parse().unwrap(),
            _ => all = args(dir.path(), "run", &extra),
        }
        let error = format!("{:#}", go(&all).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
    assert!(!dir.path().join("run").exists());
}
