//! `label`: a file of posts in, a file of labelled posts out.

mod output;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use self::output::Output;
use super::{ConfigArg, Outcome, say};
use crate::{
    app,
    config::Fields,
    pipeline::{Busy, Pipeline, Settled, Window},
    record::{Map, Timestamp},
    source::file::{FileError, FileSource},
};

/// Refused records that are listed; the rest are counted.
const LISTED: usize = 20;

/// Arguments of `label`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
In: NDJSON (.ndjson, .jsonl, .json), CSV or TSV with a header row, or - for NDJSON on standard input.
Out: NDJSON, CSV or Parquet by the extension; without --out NDJSON on standard output.
decode.preset says the shape of the posts; --text and the others name a column or a JSON pointer. A post
without a time of its own gets the file's.

  sentistream label posts.csv --out labelled.csv
  sentistream label posts.csv --text tweet --id tweet_id --out labelled.parquet
  SENTISTREAM__DECODE__PRESET=bluesky sentistream label jetstream.ndjson > labelled.ndjson

Records that cannot be read are listed with line and reason and left out; --strict makes them exit code 1, and so
does a file of which nothing could be labelled.")]
pub struct Args {
    /// Posts
    #[arg(value_name = "FILE")]
    input: PathBuf,
    #[command(flatten)]
    config: ConfigArg,
    /// Model folder (model.dir)
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where labelled posts go: .ndjson, .csv or .parquet
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Column or JSON pointer of the text
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Column or JSON pointer of the id; empty: the posts have none, the line stands for it
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// Column or JSON pointer of the time
    #[arg(long, value_name = "COLUMN")]
    created_at: Option<String>,
    /// Column or JSON pointer of the author
    #[arg(long, value_name = "COLUMN")]
    author: Option<String>,
    /// Column or JSON pointer of the language
    #[arg(long, value_name = "COLUMN")]
    lang: Option<String>,
    /// Column or JSON pointer of the channel
    #[arg(long, value_name = "COLUMN")]
    channel: Option<String>,
    /// Column or JSON pointer of the reach
    #[arg(long, value_name = "COLUMN")]
    reach: Option<String>,
    /// Exit with code 1 when a record was refused
    #[arg(long)]
    strict: bool,
}

/// Labels and says how it went.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut config = args.config.load()?;
    if let Some(dir) = &args.model {
        config.model.dir.clone_from(dir);
    }
    args.places(&mut config.decode.fields);
    let source = FileSource::open(&args.input, None)?;
    if let Some(columns) = source.columns() {
        args.in_header(columns)?;
    }
    let pipeline = app::pipeline(&config)?;
    let mut output = Output::open(args.out.as_deref())?;
    let time = file_time(&args.input);
    let begun = Instant::now();
    let tally = through(source, time, &pipeline, &mut output, config.batch.window_rows)?;
    let writing = Instant::now();
    output.finish()?;
    let tally = Tally { output: tally.output + writing.elapsed(), ..tally };
    say(tally.summary(&pipeline.busy(), begun.elapsed()).trim_end());
    // Nothing but refusals is a wrong column or shape, not a few bad lines.
    let nothing = tally.labelled == 0 && tally.refused > 0;
    Ok(if nothing || (args.strict && tally.refused > 0) { Outcome::Findings } else { Outcome::Done })
}

impl Args {
    /// The columns that were asked for by name.
    fn named(&self) -> impl Iterator<Item = &String> {
        let all =
            [&self.text, &self.id, &self.created_at, &self.author, &self.lang, &self.channel, &self.reach];
        all.into_iter().flatten().filter(|name| !name.is_empty() && !name.starts_with('/'))
    }

    fn in_header(&self, columns: &[String]) -> anyhow::Result<()> {
        for name in self.named() {
            ensure!(
                columns.contains(name),
                "{}: no column '{name}' (columns: {})",
                self.input.display(),
                columns.join(", ")
            );
        }
        Ok(())
    }

    /// A column name is a JSON pointer to a member of the row's object.
    fn places(&self, fields: &mut Fields) {
        let pointer = |name: &String| {
            if name.is_empty() || name.starts_with('/') {
                name.clone()
            } else {
                format!("/{}", name.replace('~', "~0").replace('/', "~1"))
            }
        };
        for (given, field) in [
            (&self.text, &mut fields.text),
            (&self.id, &mut fields.id),
            (&self.created_at, &mut fields.created_at),
            (&self.author, &mut fields.author),
            (&self.lang, &mut fields.lang),
            (&self.channel, &mut fields.channel),
            (&self.reach, &mut fields.reach),
        ] {
            if let Some(name) = given {
                *field = Some(pointer(name));
            }
        }
    }
}

/// The time of posts that have none: when the file was written; now for standard input.
fn file_time(path: &Path) -> Timestamp {
    let time = std::fs::metadata(path).and_then(|m| m.modified()).unwrap_or_else(|_| SystemTime::now());
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// What happened to the records.
#[derive(Debug, Default)]
struct Tally {
    labelled: u64,
    refused: u64,
    skipped: Map<&'static str, u64>,
    read: Duration,
    output: Duration,
}

/// Reads on a thread of its own and writes on this one, the pipeline between them.
fn through(
    source: FileSource,
    time: Timestamp,
    pipeline: &Pipeline,
    output: &mut Output,
    window_rows: usize,
) -> anyhow::Result<Tally> {
    let bar = progress(source.total_bytes());
    let reading_ns = AtomicU64::new(0);
    let unreadable = AtomicU64::new(0);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let ended = read(source, time, pipeline, window_rows, &bar, (&reading_ns, &unreadable));
            pipeline.close();
            ended
        });
        let written = pipeline.results().iter().try_for_each(|window| {
            let begun = Instant::now();
            let done = window.items.into_iter().try_for_each(|item| tally.write(item, output, &bar));
            tally.output += begun.elapsed();
            bar.set_message(format!("{} posts", tally.labelled));
            done
        });
        if written.is_err() {
            // The reader waits for room: make some until it notices.
            pipeline.close();
            pipeline.results().iter().for_each(drop);
        }
        let ended = reader.join().map_err(|_| anyhow::anyhow!("the reading thread panicked"))?;
        written?;
        match pipeline.error() {
            Some(e) => Err(e.into()),
            None => ended,
        }
    })?;
    bar.finish_and_clear();
    tally.read = Duration::from_nanos(reading_ns.into_inner());
    tally.refused += unreadable.into_inner();
    Ok(tally)
}

/// Cuts the file into windows. Lines that are none are listed and counted in `unreadable`.
fn read(
    mut source: FileSource,
    time: Timestamp,
    pipeline: &Pipeline,
    window_rows: usize,
    bar: &ProgressBar,
    (reading_ns, unreadable): (&AtomicU64, &AtomicU64),
) -> anyhow::Result<()> {
    for seq in 0.. {
        let begun = Instant::now();
        let mut records = Vec::with_capacity(window_rows);
        while records.len() < window_rows {
            match source.next() {
                Some(Ok(mut record)) => {
                    record.timestamp = record.timestamp.or(Some(time));
                    records.push(record);
                }
                Some(Err(e @ FileError::Record { fatal: false, .. })) => {
                    if unreadable.fetch_add(1, Ordering::Relaxed) < LISTED as u64 {
                        bar.suspend(|| say(&e.to_string()));
                    }
                }
                Some(Err(e)) => return Err(e.into()),
                None => break,
            }
        }
        reading_ns.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        bar.set_position(source.bytes_read());
        // A pipeline that has stopped says why through its error.
        if records.is_empty() || pipeline.submit(Window { seq, records }).is_err() {
            break;
        }
    }
    Ok(())
}

fn progress(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(n) => (ProgressBar::new(n), "{bar:40} {percent:>3} %  {msg}  {elapsed} (left: {eta})"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl Tally {
    fn write(&mut self, item: Settled, output: &mut Output, bar: &ProgressBar) -> anyhow::Result<()> {
        match item {
            Settled::Labelled { labelled, .. } => {
                self.labelled += 1;
                output.write(labelled).context("cannot write the labelled posts")?;
            }
            Settled::Skipped { reason, .. } => *self.skipped.entry(reason).or_default() += 1,
            Settled::Dead(letter) => {
                self.refused += 1;
                if self.refused <= LISTED as u64 {
                    let at = &letter.record.position;
                    bar.suspend(|| {
                        let (file, line) = (&at.partition.topic, at.offset.next());
                        say(&format!("{file}:{line}: {}: {}", letter.reason, letter.message));
                    });
                }
            }
        }
        Ok(())
    }

    fn summary(&self, busy: &Busy, took: Duration) -> String {
        use std::fmt::Write;
        let mut out = String::new();
        let rate = self.labelled as f64 / took.as_secs_f64();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} posts labelled in {:.1} s: {rate:.1} posts/s",
            self.labelled,
            took.as_secs_f64()
        );
        if self.refused > 0 {
            let _ = writeln!(
                out,
                "{} records refused (the first {LISTED} of each kind are listed)",
                self.refused
            );
        }
        for (reason, n) in &self.skipped {
            let _ = writeln!(out, "{n} records skipped: {reason}");
        }
        let stages = [
            ("read", self.read),
            ("decode, prepare, brands, language", busy.front),
            ("tokenize", busy.tokenize),
            ("inference", busy.inference),
            ("decide and write", busy.settle + self.output),
        ];
        let total: f64 = stages.iter().map(|s| s.1.as_secs_f64()).sum();
        let _ = writeln!(out, "time at work, summed over threads: {total:.1} s");
        for (name, time) in stages {
            let share = if total > 0.0 { 100.0 * time.as_secs_f64() / total } else { 0.0 };
            let _ = writeln!(out, "  {name:<34} {share:>5.1} %");
        }
        out
    }
}
