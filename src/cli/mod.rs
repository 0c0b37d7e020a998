//! Commands, one file each. What was typed is parsed here once; exit codes are decided here alone.

pub mod check;
pub mod dead_letters;
pub mod demo;
pub mod evaluate;
pub mod label;
pub mod replay;
pub mod run;
pub mod verify_rollups;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::{
    config::{Config, ConfigError, Log, LogFormat},
    source::client,
    telemetry,
};

/// Streaming social-media sentiment: Kafka in, labelled posts and exact Parquet rollups out.
#[derive(Debug, Parser)]
#[command(name = "sentistream", version, after_long_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Try it:
  sentistream demo --duration 60s           everything in one process, no broker needed
  sentistream label posts.csv -o out.csv    label a file
  sentistream check --config my.toml        is this configuration ready to run?
  sentistream run --config my.toml          run it

Every key of the configuration is explained in config/default.toml and can be set by the environment,
as SENTISTREAM__KAFKA__BROKERS=broker:9092.

Exit codes:
  0  done; for run: stopped by a signal with nothing lost
  1  failed: the last line says why; for check, verify-rollups and label --strict: a finding
  2  the command line, the configuration or the model folder is wrong";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the processor until it is told to stop
    Run(run::Args),
    /// Check a configuration: settings, model, broker, topics, store
    Check(check::Args),
    /// See it work: embedded broker, generated posts, both stages, Parquet in ./demo-data
    Demo(demo::Args),
    /// Label a file of posts
    Label(label::Args),
    /// Measure a model on labelled posts
    Evaluate(evaluate::Args),
    /// Produce a file's posts to a topic, at a rate or in their own rhythm
    Replay(replay::Args),
    /// Walk the chains of rollup parts and recount them from the labelled topic
    VerifyRollups(verify_rollups::Args),
    /// List dead letters, or put them back into their source topic
    DeadLetters(dead_letters::Args),
}

/// The configuration file, for commands that take one.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArg {
    /// Configuration file (TOML); without it the defaults and the environment
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl ConfigArg {
    /// Defaults, file, environment.
    pub fn load(&self) -> anyhow::Result<Config> {
        let config = Config::load(self.config.as_deref())?;
        client::check(&config.kafka)?;
        telemetry::check(&config.log)?;
        Ok(config)
    }

    /// The file, where one was named.
    pub fn path(&self) -> Option<&Path> {
        self.config.as_deref()
    }
}

/// How a command ended when it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1: it ran, and found what it was asked to find.
    Findings,
}

/// Runs a command; the exit code is its result.
pub fn main(cli: Cli) -> ExitCode {
    telemetry::init_panics();
    let result = match cli.command {
        Command::Run(a) => run::run(&a),
        Command::Check(a) => with_logs(|| check::run(&a)),
        Command::Demo(a) => with_logs(|| demo::run(&a)),
        Command::Label(a) => with_logs(|| label::run(&a)),
        Command::Evaluate(a) => with_logs(|| evaluate::run(&a)),
        Command::Replay(a) => with_logs(|| replay::run(&a)),
        Command::VerifyRollups(a) => with_logs(|| verify_rollups::run(&a)),
        Command::DeadLetters(a) => with_logs(|| dead_letters::run(&a)),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(1),
        Err(error) => {
            say(&format!("error: {}", chain(&error)));
            ExitCode::from(code(&error))
        }
    }
}

/// Commands for people log warnings only; `RUST_LOG` asks for more.
fn with_logs(command: impl FnOnce() -> anyhow::Result<Outcome>) -> anyhow::Result<Outcome> {
    let level =
        std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,ort=error,rdkafka=off,librdkafka=off".into());
    telemetry::init_logs(&Log { level, format: LogFormat::Text }).context("RUST_LOG")?;
    command()
}

/// An error and its causes on one line. Some errors quote their cause themselves; it is not said twice.
pub fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    line
}

/// A line on standard error. That nobody can read it (a closed pipe, a full disk) is no reason to fail.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// 2 where the user's own input is at fault, else 1.
fn code(error: &anyhow::Error) -> u8 {
    use crate::{
        classify::{artifact::ArtifactError, engine::EngineError},
        config::SettingError,
        front::FrontError,
        telemetry::TelemetryError,
    };
    let input = error.chain().any(|e| {
        e.is::<ConfigError>()
            || e.is::<SettingError>()
            || e.is::<FrontError>()
            || e.is::<ArtifactError>()
            || e.is::<EngineError>()
            || matches!(e.downcast_ref(), Some(TelemetryError::Filter { .. }))
    });
    if input { 2 } else { 1 }
}
