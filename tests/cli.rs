//! The command line as a user meets it: what it says and how it exits when something is wrong.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use assert_cmd::Command;
use predicates::prelude::*;

fn sentistream() -> Command {
    let mut c = Command::cargo_bin("sentistream").unwrap();
    c.current_dir(env!("CARGO_MANIFEST_DIR"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("SENTISTREAM__")) {
        c.env_remove(name);
    }
    c
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Runs `check` with a configuration and expects exit code 2 and every one of `said` on standard error.
fn refused(config: &str, said: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "my.toml", config);
    let mut run = sentistream();
    let mut out = run.args(["check", "--config", &path]).assert().code(2);
    for s in said {
        out = out.stderr(predicate::str::contains(*s));
    }
}

#[test]
fn every_command_has_help_that_teaches() {
    for command in ["run", "check", "demo", "label", "evaluate", "replay", "verify-rollups", "dead-letters"] {
        sentistream()
            .args([command, "--help"])
            .assert()
            .success()
            .stdout(predicate::str::contains("Usage: sentistream"));
    }
    sentistream().arg("--help").assert().success().stdout(predicate::str::contains("Exit codes:"));
}

#[test]
fn a_wrong_key_names_the_file_the_key_and_what_is_allowed() {
    refused("[kafka]\nbroker = 'x:1'", &["my.toml", "broker", "brokers"]);
    refused("[rolup]\nwindow_s = 60", &["my.toml", "rolup", "rollup"]);
}

#[test]
fn a_wrong_value_names_the_key_the_value_and_what_is_allowed() {
    refused(
        "[delivery]\nmode = 'most_once'",
        &["delivery.mode", "most_once", "exactly_once", "at_least_once"],
    );
    refused("[rollup]\nwindow_s = 7", &["rollup.window_s", "7", "divide a day"]);
    refused("[batch]\nmax_rows = 'many'", &["batch.max_rows", "many"]);
    refused("[http]\nlisten = 'here'", &["http.listen", "here", "ADDRESS:PORT"]);
    refused("[kafka]\nbrokers = [", &["my.toml", "TOML", "line"]);
}

#[test]
fn a_wrong_environment_variable_is_named() {
    sentistream().env("SENTISTREAM__BATCH__LINGER_MS", "soon").arg("check").assert().code(2).stderr(
        predicate::str::contains("SENTISTREAM__BATCH__LINGER_MS").and(predicate::str::contains("soon")),
    );
}

#[test]
fn a_missing_configuration_is_one_clear_line() {
    sentistream().args(["run", "--config", "/nonexistent/my.toml"]).assert().code(2).stderr(
        predicate::str::contains("/nonexistent/my.toml").and(predicate::str::contains("cannot read")),
    );
}

#[test]
fn a_folder_that_is_no_model_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let posts = file(dir.path(), "posts.ndjson", "{\"id\":\"1\",\"text\":\"hello\"}\n");
    let model = dir.path().display().to_string();
    sentistream()
        .args(["label", &posts, "--model", &model])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("config.json").and(predicate::str::contains("cannot read")));
}

#[test]
fn an_input_that_is_not_there_is_named() {
    sentistream()
        .args(["label", "/nonexistent/posts.csv"])
        .assert()
        .failure()
        .stderr(predicate::str::contains("/nonexistent/posts.csv"));
}

#[test]
fn check_says_each_part_and_fails_without_a_broker() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(
        dir.path(),
        "my.toml",
        &format!("[kafka]\nbrokers='127.0.0.1:1'\n[store]\nurl='file:{}/data'", dir.path().display()),
    );
    sentistream()
        .args(["check", "--config", &config])
        .assert()
        .code(1)
        .stdout(predicate::str::is_match("ok +model").unwrap())
        .stdout(predicate::str::is_match("FAILED +broker +kafka.brokers: '127.0.0.1:1'").unwrap())
        .stdout(predicate::str::is_match("ok +store").unwrap());
}

#[test]
fn a_secret_is_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    let secret = file(dir.path(), "password", "hunter2-from-file\n");
    let config = file(
        dir.path(),
        "my.toml",
        &format!(
            "[kafka]\nbrokers='127.0.0.1:1'\n[kafka.properties]\n'sasl.username'='u'\n'sasl.mechanism'='PLAIN'\n\
             'security.protocol'='sasl_plaintext'\n[kafka.secret_files]\n\
             'sasl.password'='{secret}'\n[store]\nurl='file:{}/data'\n[log]\nlevel='debug'",
            dir.path().display()
        ),
    );
    sentistream()
        .env("RUST_LOG", "debug")
        .args(["check", "--config", &config])
        .assert()
        .stdout(predicate::str::contains("hunter2").not())
        .stderr(predicate::str::contains("hunter2").not());
}

#[test]
fn a_property_that_librdkafka_refuses_is_named_without_its_value() {
    for (key, value) in
        [("sasl.mechnism", "hunter2"), ("ssl.key.password.x", "hunter2"), ("queued.min.messages", "hunter2")]
    {
        let dir = tempfile::tempdir().unwrap();
        let config = file(dir.path(), "my.toml", &format!("[kafka.properties]\n'{key}'='{value}'"));
        sentistream()
            .args(["check", "--config", &config])
            .assert()
            .code(2)
            .stderr(predicate::str::contains(key).and(predicate::str::contains("hunter2").not()));
    }
}

#[test]
fn label_names_a_column_that_is_not_there_and_fails_where_nothing_could_be_labelled() {
    let dir = tempfile::tempdir().unwrap();
    let posts = file(dir.path(), "posts.csv", "id,text\n1,I love this\n2,awful\n");
    sentistream()
        .args(["label", &posts, "--text", "tweet"])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("no column 'tweet' (columns: id, text)"));
    let other = file(dir.path(), "other.ndjson", "{\"a\":1}\nnot json\n");
    sentistream()
        .args(["label", &other])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("other.ndjson:2: not_json"));
    sentistream()
        .args(["label", &posts])
        .assert()
        .success()
        .stdout(
            predicate::str::contains("\"label\":\"positive\"")
                .and(predicate::str::contains("\"label\":\"negative\"")),
        )
        .stdout(predicate::str::contains(dir.path().to_str().unwrap()).not());
}

#[test]
fn a_closed_standard_error_is_no_reason_to_fail() {
    let dir = tempfile::tempdir().unwrap();
    let posts = file(dir.path(), "posts.ndjson", "{\"id\":\"1\",\"text\":\"fine\"}\n");
    let binary = assert_cmd::cargo::cargo_bin("sentistream");
    let status = std::process::Command::new("sh")
        .args(["-c", "\"$0\" label \"$1\" 2>/dev/full >/dev/null"])
        .arg(binary)
        .arg(posts)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
