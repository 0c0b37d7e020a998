//! `sentistream verify-rollups`

use std::io::{self, Write};

use anyhow::Context;

use super::{ConfigArg, Outcome};
use crate::{
    rollup::{
        store::PartStore,
        verify::{Report, verify},
    },
    source::scan::LabelledTopic,
};

/// Arguments of `verify-rollups`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Walks the chain of parts of every partition (gaps, overlaps), compares footers, rows and archived posts with
each other, counts the labelled topic again (read_committed) and compares every sum. Records that are not
sealed yet are reported and are no error. Reads only.

Exit code 0: all right; 1: a problem or a difference, or it could not be checked.")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the command. An error means that nothing could be checked.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let config = args.config.load()?;
    let store = PartStore::open(&config.store)?;
    let log = LabelledTopic::open(&config.kafka)?;
    let report = verify(&store, &config.kafka.labelled_topic, &log)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report).context("print the report")?;
        writeln!(out)?;
    } else {
        print(&report, &mut out).context("print the report")?;
    }
    Ok(if report.ok { Outcome::Done } else { Outcome::Findings })
}

fn print(r: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:>9} {:>7} {:>10} {:>10} {:>12} {:>12} {:>8} {:>9}  chain",
        "partition", "parts", "first", "tip", "posts/parts", "posts/log", "skipped", "unsealed"
    )?;
    let offset = |o: Option<i64>| o.map_or_else(|| "-".to_owned(), |o| o.to_string());
    for p in &r.partitions {
        let state = if p.problems.is_empty() { "ok" } else { "BROKEN" };
        writeln!(
            out,
            "{:>9} {:>7} {:>10} {:>10} {:>12} {:>12} {:>8} {:>9}  {state}",
            p.partition,
            p.parts,
            offset(p.first),
            offset(p.tip),
            p.posts_in_parts,
            p.posts_in_log,
            p.skipped,
            p.unsealed
        )?;
        if p.parts_older_than_log > 0 {
            writeln!(
                out,
                "          the log no longer holds the records of its first {} parts",
                p.parts_older_than_log
            )?;
        }
        for problem in &p.problems {
            writeln!(out, "          {problem}")?;
        }
    }
    for d in &r.differences {
        writeln!(
            out,
            "{} {} {} {} {}: {} is {} in the parts, {} in the log",
            d.window_start,
            d.brand.escape_debug(),
            d.channel.escape_debug(),
            d.lang.escape_debug(),
            d.model,
            d.column,
            d.parts,
            d.log
        )?;
    }
    writeln!(
        out,
        "{} keys compared, {} differ: {}",
        r.keys,
        r.differing_keys,
        if r.ok { "ok" } else { "NOT OK" }
    )
}
