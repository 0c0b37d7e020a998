//! `sentistream dead-letters`

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use anyhow::Context;

use super::{ConfigArg, Outcome, say};
use crate::{
    sink::requeue::Requeue,
    source::dead_letters::{Letter, scan},
};

/// Look at records that could not be labelled, and send them back
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters: where each came from, which stage refused it, and why
    ///
    /// Post texts are personal data and are not printed unless you ask with --show.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Stop after this many
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// Print the record's value too
        #[arg(long)]
        show: bool,
    },
    /// Send dead letters back to the topic they came from, original key and bytes, once each
    ///
    /// What was sent back is remembered in consumer groups named GROUP.requeue.STAGE.REASON, so that running
    /// it again sends nothing twice. Fix the cause first, or the records come straight back.
    Requeue {
        #[command(flatten)]
        filter: Filter,
        /// Say what would be sent, send nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Filter {
    #[command(flatten)]
    config: ConfigArg,
    /// Only of this stage: decode, tokenize or classify
    #[arg(long)]
    stage: Option<String>,
    /// Only with this reason, as `list` shows it; may be given more than once
    #[arg(long)]
    reason: Vec<String>,
}

impl Filter {
    fn takes(&self, letter: &Letter) -> bool {
        self.stage.as_ref().is_none_or(|s| *s == letter.stage)
            && (self.reason.is_empty() || self.reason.contains(&letter.reason))
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    match &args.command {
        Command::List { filter, limit, json, show } => {
            list(filter, limit.unwrap_or(usize::MAX), *json, *show)
        }
        Command::Requeue { filter, dry_run } => requeue(filter, *dry_run),
    }
}

fn list(filter: &Filter, limit: usize, json: bool, show: bool) -> anyhow::Result<Outcome> {
    let config = filter.config.load()?;
    let mut out = io::stdout().lock();
    let (mut count, mut failed) = (0, None);
    let strange = scan(&config.kafka, |letter| {
        if count < limit && filter.takes(&letter) {
            count += 1;
            failed = print(&letter, json, show, &mut out).err();
        }
        count < limit && failed.is_none()
    })?;
    // `dead-letters list | head` is no error.
    match failed {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => return Err(e).context("print the list"),
        _ => {}
    }
    say(&format!("{count} dead letters"));
    if strange > 0 {
        say(&format!("{strange} records were passed over: they lack the headers of a dead letter"));
    }
    Ok(Outcome::Done)
}

fn print(l: &Letter, json: bool, show: bool, out: &mut impl Write) -> io::Result<()> {
    let value = l.value.as_deref().map(String::from_utf8_lossy).filter(|_| show);
    if json {
        let mut o = serde_json::json!({
            "partition": l.at.partition.partition,
            "offset": l.at.offset,
            "source": {
                "topic": *l.source.partition.topic,
                "partition": l.source.partition.partition,
                "offset": l.source.offset,
            },
            "stage": l.stage,
            "reason": l.reason,
            "message": l.message,
            "bytes": l.cut_from.unwrap_or(l.value.as_ref().map_or(0, bytes::Bytes::len) as u64),
        });
        if let Some(value) = value {
            o["value"] = value.into();
        }
        return writeln!(out, "{o}");
    }
    writeln!(out, "{}  {}  {}  {}  {}", l.at, l.source, l.stage, l.reason, l.message.escape_debug())?;
    match value {
        Some(v) => writeln!(out, "    {}", v.escape_debug()),
        None => Ok(()),
    }
}

fn requeue(filter: &Filter, dry: bool) -> anyhow::Result<Outcome> {
    let config = filter.config.load()?;
    let mut requeue = Requeue::new(&config, dry).context("start the producer")?;
    let (mut before, mut cut, mut failed) = (0_usize, 0_usize, None);
    let mut by_reason: BTreeMap<String, usize> = BTreeMap::new();
    scan(&config.kafka, |letter| {
        if !filter.takes(&letter) {
            return true;
        }
        if letter.cut_from.is_some() {
            // Its original bytes are only where it was read.
            cut += 1;
            return true;
        }
        match requeue.put(&letter) {
            Ok(true) => *by_reason.entry(format!("{} {}", letter.stage, letter.reason)).or_default() += 1,
            Ok(false) => before += 1,
            Err(e) => failed = Some(e),
        }
        failed.is_none()
    })?;
    if let Some(e) = failed {
        return Err(e).context("requeue; what was not committed is still to be done, run it again");
    }
    let sent =
        requeue.finish().context("requeue; what was not committed is still to be done, run it again")?;
    for (reason, n) in by_reason {
        println!("{n:>8}  {reason}");
    }
    println!("{sent} {}", if dry { "would be requeued" } else { "requeued" });
    if before > 0 {
        println!("{before} had been requeued before");
    }
    if cut > 0 {
        println!("{cut} cannot be: they were cut to fit; read the originals at their source positions");
    }
    Ok(Outcome::Done)
}
