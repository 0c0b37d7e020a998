//! The promise on real processes: posts replayed through a real broker, the processor killed with SIGKILL
//! again and again, and at the end every source offset is labelled or dead exactly once, the rollups sum
//! to a recount, and DuckDB reads the same from the Parquet.
//!
//! The posts are made up here. `SENTISTREAM_TEST_POSTS=posts.ndjson` runs the same on real ones, and
//! `SENTISTREAM_TEST_BROKERS=host:port` on any other Kafka.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sentistream::{
    demo::generator::Generator,
    record::{Labelled, Timestamp},
};
use support::{Broker, Consumed};

const KILLS: usize = 3;
const LIMIT: Duration = Duration::from_secs(600);

/// One set-up: topics, configuration, folder.
struct Trial {
    broker: Broker,
    dir: tempfile::TempDir,
    config: PathBuf,
    posts: String,
    labelled: String,
    dead: String,
}

impl Trial {
    fn new(broker: Broker) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let posts = broker.topic("posts", 3);
        let labelled = broker.topic("labelled", 3);
        let dead = broker.topic("dead", 1);
        let config = dir.path().join("my.toml");
        let group = support::unique("group");
        let text = format!(
            "[kafka]\nbrokers = '{}'\ngroup = '{group}'\nposts_topic = '{posts}'\nlabelled_topic = '{labelled}'\n\
             dead_letter_topic = '{dead}'\ninstance_id = '{group}-0'\nsession_timeout_ms = 6000\n\
             [store]\nurl = 'file:{}'\n[rollup]\nseal_records = 500\nseal_age_s = 2\nseal_idle_s = 1\n\
             [http]\nlisten = ''\n[log]\nlevel = 'info,rdkafka=error,librdkafka=error'\n\
             [[brands]]\nname = 'Apple'\naliases = ['iphone']\n[[brands]]\nname = 'Microsoft'\nhandles = ['microsoft']\n",
            broker.bootstrap(),
            dir.path().join("data").display(),
        );
        fs::write(&config, text).unwrap();
        Self { broker, dir, config, posts, labelled, dead }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_sentistream"));
        c.current_dir(env!("CARGO_MANIFEST_DIR")).args(args).arg("--config").arg(&self.config);
        c
    }

    /// Runs a command to its end and returns what it printed; it must exit 0.
    fn succeeds(&self, args: &[&str]) -> String {
        let out = self.command(args).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {}\n{stdout}\n{stderr}", out.status);
        stdout.into_owned()
    }

    fn start(&self, round: usize) -> Processor {
        let log = fs::File::create(self.dir.path().join(format!("run-{round}.log"))).unwrap();
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Processor { child }
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for round in 0..=KILLS {
            let text = fs::read_to_string(self.dir.path().join(format!("run-{round}.log"))).unwrap_or_default();
            all += &format!("--- run {round}\n{text}");
        }
        all
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

struct Processor {
    child: Child,
}

impl Processor {
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// The exit code, within a limit.
    fn ends(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "the processor did not end within a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The file to replay, and how many records are in it.
fn posts(dir: &Path) -> (PathBuf, usize) {
    if let Ok(path) = std::env::var("SENTISTREAM_TEST_POSTS") {
        let lines = fs::read_to_string(&path).unwrap().lines().filter(|l| !l.trim().is_empty()).count();
        return (fs::canonicalize(path).unwrap(), lines);
    }
    let start = Timestamp(1_767_225_600_000_000);
    let mut generator = Generator::new(7, start, 1.0);
    let mut text = String::new();
    let mut n = 0;
    for hour in 1..=24 {
        for record in generator.until(Timestamp(start.0 + hour * 3_600_000_000)) {
            if n < 3000 && record.kind == sentistream::demo::generator::Kind::Post {
                text += std::str::from_utf8(&record.payload).unwrap();
                text.push('\n');
                n += 1;
            }
        }
    }
    let path = dir.join("posts.ndjson");
    fs::write(&path, text).unwrap();
    (path, n)
}

#[test]
fn every_post_counts_once_through_three_kills() {
    let Some(broker) = support::broker("every_post_counts_once_through_three_kills") else { return };
    let trial = Trial::new(broker);
    let (file, n) = posts(trial.dir.path());
    trial.succeeds(&["replay", file.to_str().unwrap(), "--topic", &trial.posts]);
    // Some records that no decoder can take, so that dead letters are part of the count.
    trial.broker.produce(&trial.posts, &[b"not json".to_vec(), b"{\"id\":\"x\"}".to_vec()]);
    let total = n + 2;

    let mut seen = trial.broker.reader(&[&trial.labelled, &trial.dead]);
    for round in 0..KILLS {
        let mut processor = trial.start(round);
        let target = total * (round + 1) / (KILLS + 1);
        let reached = seen.until(LIMIT, |c| c.len() >= target || processor.child.try_wait().unwrap().is_some());
        assert!(reached && seen.len() < total, "round {round}: {} of {total}\n{}", seen.len(), trial.logs());
        processor.signal("-KILL");
        assert_eq!(processor.ends(), None, "killed by the signal\n{}", trial.logs());
        println!("killed after {} of {total}", seen.len());
    }
    let mut last = trial.start(KILLS);
    let reached = seen.until(LIMIT, |c| c.len() >= total || last.child.try_wait().unwrap().is_some());
    assert!(reached, "{} of {total}\n{}", seen.len(), trial.logs());
    last.signal("-TERM");
    assert_eq!(last.ends(), Some(0), "SIGTERM drains and exits 0\n{}", trial.logs());

    let counts = exactly_once(&trial, seen.settle(), total);
    let verified = trial.succeeds(&["verify-rollups"]);
    println!("{verified}");
    in_duckdb(&trial.data(), &counts);
}

/// The oracle: it knows the records and nothing of the code. Returns labels by count.
fn exactly_once(trial: &Trial, records: &[Consumed], total: usize) -> BTreeMap<String, usize> {
    let mut by_source: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    let mut labels: BTreeMap<String, usize> = BTreeMap::new();
    let mut dead = 0;
    for r in records {
        let source = if r.topic == trial.labelled {
            let l: Labelled = serde_json::from_slice(&r.payload).unwrap();
            assert_eq!(&*l.source.topic, trial.posts);
            *labels.entry(l.label.as_str().to_owned()).or_default() += 1;
            (l.source.partition, l.source.offset)
        } else {
            dead += 1;
            let number = |name: &str| r.header(name).unwrap().parse::<i64>().unwrap();
            (number("__connect.errors.partition") as i32, number("__connect.errors.offset"))
        };
        *by_source.entry(source).or_default() += 1;
    }
    let twice: Vec<_> = by_source.iter().filter(|(_, n)| **n != 1).collect();
    assert!(twice.is_empty(), "delivered more than once: {twice:?}");
    let expected: std::collections::BTreeSet<(i32, i64)> = trial.broker.offsets(&trial.posts).into_iter().collect();
    let got: std::collections::BTreeSet<(i32, i64)> = by_source.into_keys().collect();
    assert_eq!(expected.len(), total);
    assert_eq!(got, expected, "every source offset is labelled or dead");
    assert!(dead >= 2, "the broken records are dead letters");
    println!("{total} records: {} labelled, {dead} dead, each source offset once", total - dead);
    labels
}

/// An independent reader of the Parquet.
fn in_duckdb(data: &Path, labels: &BTreeMap<String, usize>) {
    let query = format!(
        "SELECT sum(posts)::BIGINT, sum(negative)::BIGINT, sum(neutral)::BIGINT, sum(positive)::BIGINT, \
         (SELECT count(*) FROM '{0}/posts/*/*.parquet'), \
         (SELECT count(DISTINCT (source_partition, source_offset)) FROM '{0}/posts/*/*.parquet'), \
         (SELECT sum(positive) - sum(negative) FROM '{0}/posts/*/*.parquet')::VARCHAR, sum(score_sum)::VARCHAR \
         FROM '{0}/rollups/*/*.parquet' WHERE brand = '*'",
        data.display()
    );
    let Some(row) = support::duckdb(&query) else { return };
    let n: usize = labels.values().sum();
    let of = |l: &str| labels.get(l).copied().unwrap_or(0).to_string();
    assert_eq!(row[..4], [n.to_string(), of("negative"), of("neutral"), of("positive")], "sums of the rollups");
    assert_eq!(row[4..6], [n.to_string(), n.to_string()], "the archived posts, each once");
    assert_eq!(row[6].parse::<f64>().unwrap(), row[7].parse::<f64>().unwrap(), "the score sum, exactly");
    println!("duckdb: {n} posts in the rollups and in the archive, score sum {}", row[7]);
}
