//! `sentistream replay`

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{ConfigArg, Outcome, say};
use crate::{
    config::Config,
    record::{RawRecord, Timestamp},
    sink::{
        message::Outgoing,
        producer::{self, Sender},
    },
    source::{client, file::FileSource, probe},
};

/// Produce a file's posts to a topic
///
/// Reads NDJSON, CSV or TSV (`-` is standard input, NDJSON) and produces each record as it stands; a CSV row
/// becomes a JSON object. The key is the post's id where it has one, so that a post lands in the same partition
/// every time.
///
/// Exit code 0: every record was acknowledged; 1: some were not, or some lines could not be read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File to read, or `-`
    file: PathBuf,
    /// Topic to produce to
    #[arg(long)]
    topic: String,
    /// At most this many posts a second
    #[arg(long, value_name = "N", conflicts_with = "speed")]
    rate: Option<f64>,
    /// Pace by the posts' own times, X times as fast
    #[arg(long, value_name = "X")]
    speed: Option<f64>,
    /// Set each record's time stamp to the post's created_at
    ///
    /// Off by default: brokers delete records older than the topic's retention, whatever their arrival, and
    /// refuse ones from the future.
    #[arg(long)]
    event_time: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// When each record is due.
#[derive(Clone, Copy, Debug)]
enum Pace {
    Free,
    Rate(f64),
    Speed(f64),
}

impl Pace {
    /// Time from the start at which record number `n` is due; `since` is its time after the first post's.
    fn due(self, n: u64, since: Option<i64>) -> Duration {
        let seconds = match self {
            Self::Free => 0.0,
            Self::Rate(per_second) => n as f64 / per_second,
            Self::Speed(factor) => since.unwrap_or(0).max(0) as f64 / 1e6 / factor,
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let pace = match (args.rate, args.speed) {
        (Some(n), _) => Pace::Rate(n),
        (_, Some(x)) => Pace::Speed(x),
        _ => Pace::Free,
    };
    if let Pace::Rate(n) | Pace::Speed(n) = pace {
        ensure!(n.is_finite() && n > 0.0, "--rate and --speed take a positive number, not {n}");
    }
    let config = args.config.load()?;
    let source = FileSource::open(&args.file, None)?;
    // Before the first record: a broker that is down, or a topic that is not there, is said at once.
    let found = probe::partitions(&config.kafka, &[&args.topic], Duration::from_secs(10))?;
    ensure!(found[0].is_some(), "topic '{}' does not exist; create it first", args.topic);
    let mut settings = client::base(&config.kafka, "replay");
    producer::settings(&mut settings, config.decode.limits.max_record_bytes.max(1_000_000) + 65_536);
    let sender = Sender::new(&settings).context("start the producer")?;
    let mut replay = Replay { args, config: &config, pace, sender, sent: 0, unread: 0, first: None };
    let start = Instant::now();
    replay.all(source, start)?;
    replay.report(start)
}

struct Replay<'a> {
    args: &'a Args,
    config: &'a Config,
    pace: Pace,
    sender: Sender,
    sent: u64,
    unread: u64,
    first: Option<Timestamp>,
}

impl Replay<'_> {
    fn all(&mut self, mut source: FileSource, start: Instant) -> anyhow::Result<()> {
        let bar = match source.total_bytes() {
            Some(n) => ProgressBar::new(n),
            None => ProgressBar::new_spinner(),
        };
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg} {elapsed} (eta {eta})");
        bar.set_style(style.context("progress bar")?);
        while let Some(record) = source.next() {
            match record {
                Ok(record) => self.one(&record, start)?,
                Err(e) => {
                    self.unread += 1;
                    bar.suspend(|| say(&e.to_string()));
                }
            }
            if self.sent.is_multiple_of(200) {
                bar.set_position(source.bytes_read());
                bar.set_message(format!("{} posts", self.sent));
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn one(&mut self, record: &RawRecord, start: Instant) -> anyhow::Result<()> {
        let (id, created_at) = glance(record, self.config);
        if let Some(t) = created_at {
            self.first.get_or_insert(t);
        }
        let since = created_at.zip(self.first).map(|(t, first)| t.0.saturating_sub(first.0));
        let wait = self.pace.due(self.sent, since).saturating_sub(start.elapsed());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        let out = Outgoing {
            dead: false,
            key: id.map(Into::into),
            value: record.payload.clone(),
            headers: Vec::new(),
            timestamp: created_at.filter(|_| self.args.event_time),
        };
        let limit = Duration::from_secs(60);
        self.sender
            .send(&self.args.topic, &out, limit)
            .with_context(|| format!("produce {}", record.position))?;
        self.sent += 1;
        Ok(())
    }

    fn report(&self, start: Instant) -> anyhow::Result<Outcome> {
        self.sender.settle(Duration::from_secs(120));
        let (done, seconds) = (self.sender.delivered(), start.elapsed().as_secs_f64());
        println!(
            "{done} posts to topic {} in {seconds:.1} s ({:.0}/s)",
            self.args.topic,
            done as f64 / seconds
        );
        if let Some(e) = self.sender.failure() {
            anyhow::bail!("{} of {} posts were not acknowledged: {e}", self.sent - done, self.sent);
        }
        ensure!(
            done == self.sent,
            "{} of {} posts were not acknowledged in time",
            self.sent - done,
            self.sent
        );
        if self.unread > 0 {
            say(&format!("{} records could not be read", self.unread));
            return Ok(Outcome::Findings);
        }
        Ok(Outcome::Done)
    }
}

/// Id and time of a record, as far as they can be told at a glance. A record that is no JSON has neither and
/// is produced all the same: refusing it is the processor's business.
fn glance(record: &RawRecord, config: &Config) -> (Option<String>, Option<Timestamp>) {
    let json = record.payload.as_deref().and_then(|p| serde_json::from_slice::<Value>(p).ok());
    let at = |pointer: &Option<String>, usual: &str| {
        json.as_ref().and_then(|j| j.pointer(pointer.as_deref().unwrap_or(usual))).cloned()
    };
    let id = match at(&config.decode.fields.id, "/id") {
        Some(Value::String(s)) if !s.is_empty() => Some(s),
        Some(Value::Number(n)) => Some(n.to_string()),
        _ => None,
    };
    let created_at = match at(&config.decode.fields.created_at, "/created_at") {
        Some(Value::String(s)) => s.parse().ok().or_else(|| s.parse().ok().and_then(epoch)),
        Some(Value::Number(n)) => n.as_i64().and_then(epoch),
        _ => None,
    };
    (id, created_at)
}

/// Seconds below the year 5138, else milliseconds.
fn epoch(n: i64) -> Option<Timestamp> {
    let millis = if n < 100_000_000_000 { n.checked_mul(1000)? } else { n };
    Some(Timestamp::from_millis(millis))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::{Offset, Position, TopicPartition};

    fn of(payload: &str) -> (Option<String>, Option<Timestamp>) {
        let position = Position { partition: TopicPartition::new("f", 0), offset: Offset(0) };
        let payload = Some(payload.to_owned().into());
        glance(&RawRecord { position, key: None, payload, timestamp: None }, &Config::defaults())
    }

    #[test]
    fn id_and_time_are_taken_in_the_forms_that_feeds_use() {
        let second = Some(Timestamp(1_500_000_000_000_000));
        assert_eq!(of(r#"{"id":"a","created_at":"2017-07-14T02:40:00Z"}"#), (Some("a".into()), second));
        assert_eq!(of(r#"{"id":17,"created_at":1500000000}"#), (Some("17".into()), second));
        assert_eq!(of(r#"{"id":"","created_at":"1500000000000"}"#), (None, second));
        assert_eq!(of("not json"), (None, None));
    }

    #[test]
    fn records_are_due_by_rate_or_by_their_own_times() {
        assert_eq!(Pace::Rate(4.0).due(10, None), Duration::from_millis(2500));
        assert_eq!(Pace::Speed(10.0).due(3, Some(5_000_000)), Duration::from_millis(500));
        assert_eq!(Pace::Speed(10.0).due(3, Some(-5)), Duration::ZERO);
        assert_eq!(Pace::Free.due(1 << 40, None), Duration::ZERO);
    }
}
