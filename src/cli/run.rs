//! `run`: the processor.

use clap::ValueEnum;

use super::{ConfigArg, Outcome};
use crate::{app, telemetry};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Runs until SIGTERM or Ctrl-C, then drains: windows in flight are finished and committed, the open parts
are sealed, the groups are left. Several instances share the work; roles can be split, classify where the
GPUs are and rollup anywhere.

  sentistream run --config my.toml
  sentistream run --config my.toml --roles classify

Metrics, liveness and readiness: http://127.0.0.1:9464/metrics, /healthz, /readyz (http.listen).")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Stages to run in this process
    #[arg(long, value_delimiter = ',', default_value = "classify,rollup", value_name = "ROLE,…")]
    roles: Vec<Role>,
}

/// A stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Posts in, labelled posts and dead letters out
    Classify,
    /// Labelled posts in, Parquet parts out
    Rollup,
}

/// Runs until a signal or a fatal error.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let config = args.config.load()?;
    telemetry::init_logs(&config.log)?;
    app::run_until_signal(&config, &args.roles)?;
    Ok(Outcome::Done)
}
