//! `demo`: see it work in a minute.

use std::{path::PathBuf, time::Duration};

use super::Outcome;
use crate::{
    app,
    demo::{self, Options},
};

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Starts a Kafka broker inside the process, makes up posts about five brands (four channels, several languages,
a day's rhythm, reposts, a crisis, some broken records), runs both stages on them, shows brand sentiment as
it changes, and leaves exact Parquet behind to query.

The embedded broker has no transactions, so the demo delivers at least once; `run` on a real broker delivers
exactly once.")]
pub struct Args {
    /// End by itself after this long (60s, 5m); without it Ctrl-C ends the demo
    #[arg(long, value_parser = duration, value_name = "TIME")]
    duration: Option<Duration>,
    /// Where the Parquet goes; a folder that an earlier demo left is replaced
    #[arg(long, default_value = "demo-data", value_name = "DIR")]
    data: PathBuf,
    /// Posts a second, on average over the day
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Seed of the generator: the same seed makes the same posts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Model folder
    #[arg(long, default_value = "models/sentiment-en", value_name = "DIR")]
    model: PathBuf,
}

/// Runs the demo and says what to look at.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let options = Options {
        data: args.data.clone(),
        duration: args.duration,
        rate: args.rate.clamp(0.1, 100_000.0),
        seed: args.seed,
        model: args.model.clone(),
    };
    let (runtime, interrupted) = app::shutdown_on_signal()?;
    let report = demo::run(&options, &interrupted)?;
    runtime.shutdown_background();
    let dir = args.data.display();
    println!(
        "\n{} records in: {} labelled, {} dead letters, {} no posts (deletes) skipped.",
        report.produced,
        report.labelled,
        report.dead,
        report.produced - report.posts - report.broken
    );
    println!("{} Parquet parts, every sum equal to a recount of the labelled topic.", report.parts);
    println!(
        "\nThe rollups are exact sums in {dir}/rollups, every post behind them in {dir}/posts. With DuckDB:\n"
    );
    println!(
        "  duckdb -c \"SELECT brand, sum(posts)::BIGINT AS posts, round(100.0 * (sum(positive) - sum(negative)) / sum(posts), 1) AS net_pct\n             FROM '{dir}/rollups/*/*.parquet' GROUP BY brand ORDER BY net_pct\""
    );
    println!(
        "\n  duckdb -c \"SELECT time_bucket(INTERVAL 1 HOUR, window_start) AS hour, sum(posts)::BIGINT AS posts,\n             round(100.0 * (sum(positive) - sum(negative)) / sum(posts), 1) AS net_pct\n             FROM '{dir}/rollups/*/*.parquet' WHERE brand = '*' GROUP BY hour ORDER BY hour\""
    );
    println!("\ndeploy/sql/duckdb.sql has ready views: minutes, hours, days, net sentiment, share of voice.");
    Ok(Outcome::Done)
}

/// `90`, `90s`, `5m`, `1h`.
fn duration(s: &str) -> Result<Duration, String> {
    let bad = || format!("'{s}' is no duration: expected a number with s, m or h, as 90s");
    let (number, unit) = s.split_at(s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len()));
    let n: u64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "" | "s" => n,
        "m" => n.saturating_mul(60),
        "h" => n.saturating_mul(3600),
        _ => return Err(bad()),
    };
    if seconds == 0 { Err(bad()) } else { Ok(Duration::from_secs(seconds)) }
}
