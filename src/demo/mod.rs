//! `demo`: the whole path in one process, on posts that the demo makes up.

pub mod broker;
pub mod generator;
mod phrases;
pub mod summary;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    app,
    cli::run::Role,
    config::{Config, DeliveryMode},
    record::Timestamp,
    rollup::{store::PartStore, verify::verify},
    shutdown::Shutdown,
    source::scan::LabelledTopic,
};
use broker::{Broker, Feed};
use generator::{Generator, Kind};
use summary::{Screen, Summary};

/// Marks a folder as the demo's own, which the next demo may replace.
const MARKER: &str = ".sentistream-demo";
/// How long the last posts may take after the feed has ended.
const SETTLE: Duration = Duration::from_secs(120);
const SCREEN: Duration = Duration::from_secs(1);

/// What the demo was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where Parquet goes.
    pub data: PathBuf,
    /// Ends by itself after this long; `None` runs until a signal.
    pub duration: Option<Duration>,
    /// Posts a second on average.
    pub rate: f64,
    /// Seed of the generator.
    pub seed: u64,
    /// The model folder.
    pub model: PathBuf,
}

/// What went in and what came out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Records produced.
    pub produced: u64,
    /// Of these, posts that must be labelled.
    pub posts: u64,
    /// Of these, records that must become dead letters.
    pub broken: u64,
    /// Labelled posts seen on the topic.
    pub labelled: u64,
    /// Dead letters seen on the topic.
    pub dead: u64,
    /// Parquet parts, their sums equal to a recount of the topic.
    pub parts: usize,
}

/// Runs the demo; `interrupted` ends it early.
pub fn run(options: &Options, interrupted: &Shutdown) -> anyhow::Result<Report> {
    fresh_folder(&options.data)?;
    let mut config = configuration(options);
    let broker = Broker::start(&config.kafka).context("starting the embedded broker")?;
    config.kafka.brokers = broker.address();
    let (stop_follower, follower_stop) = Shutdown::new();
    let summary = Arc::new(Summary::default());
    let follower = broker::follow(&config.kafka, summary.clone(), follower_stop)?;
    println!(
        "broker on {}; topics {}, {}, {}",
        broker.address(),
        config.kafka.posts_topic,
        config.kafka.labelled_topic,
        config.kafka.dead_letter_topic
    );
    println!("verifying the model and joining the groups …");
    let running = app::start(&config, &[Role::Classify, Role::Rollup])?;
    let mut report = feed(options, &config, &summary, interrupted)?;
    let settled = wait_for(&summary, report, &running)?;
    let verified = verified(&config, settled)?;
    running.stop();
    running.wait()?;
    stop_follower.set();
    follower.join().ok();
    (report.labelled, report.dead) = summary.seen();
    report.parts = verified;
    if !settled {
        bail!(
            "{} labelled and {} dead of {} posts and {} broken records after {SETTLE:?}",
            report.labelled,
            report.dead,
            report.posts,
            report.broken
        );
    }
    Ok(report)
}

/// The defaults, with what a short demo needs: parts sealed within seconds, the generator's brands.
fn configuration(options: &Options) -> Config {
    let mut c = Config::defaults();
    c.kafka.group = "demo".into();
    c.kafka.session_timeout_ms = 6000;
    c.delivery.mode = DeliveryMode::AtLeastOnce;
    c.model.dir.clone_from(&options.model);
    c.brands = generator::brands();
    c.store.url = format!("file:{}", options.data.display());
    c.rollup.seal_age_s = 5;
    c.rollup.seal_idle_s = 3;
    c
}

/// An empty folder, or one that an earlier demo left. Anything else is somebody's and stays.
fn fresh_folder(dir: &Path) -> anyhow::Result<()> {
    let occupied =
        dir.exists() && fs::read_dir(dir).with_context(|| format!("{}", dir.display()))?.next().is_some();
    if occupied {
        if !dir.join(MARKER).exists() {
            bail!("{}: not empty and not left by a demo; name another folder with --data", dir.display());
        }
        fs::remove_dir_all(dir)
            .with_context(|| format!("{}: cannot remove the last demo's data", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot create", dir.display()))?;
    fs::write(dir.join(MARKER), "").with_context(|| format!("{}: cannot write", dir.display()))
}

/// Produces posts in their rhythm. A day of event time passes in the demo's duration (a minute when it
/// has none), so that the daily rhythm and the crisis can be seen.
fn feed(
    options: &Options,
    config: &Config,
    summary: &Summary,
    interrupted: &Shutdown,
) -> anyhow::Result<Report> {
    let day = options.duration.unwrap_or(Duration::from_secs(60));
    let speed = 86_400.0 / day.as_secs_f64();
    let start = Timestamp(1_767_225_600_000_000); // 2026-01-01T00:00:00Z: the same demo every day
    let mut generator = Generator::new(options.seed, start, options.rate / speed);
    let feed = Feed::new(&config.kafka)?;
    let (begin, mut screen, mut shown) = (Instant::now(), Screen::new(), Instant::now());
    let mut report = Report::default();
    loop {
        let elapsed = begin.elapsed();
        if options.duration.is_some_and(|d| elapsed >= d)
            || interrupted.wait_timeout(Duration::from_millis(20))
        {
            break;
        }
        let now = Timestamp(start.0 + (elapsed.as_secs_f64() * speed * 1e6) as i64);
        for record in generator.until(now) {
            feed.send(record.key.as_deref(), &record.payload, record.created_at)?;
            report.produced += 1;
            match record.kind {
                Kind::Post => report.posts += 1,
                Kind::Broken => report.broken += 1,
                Kind::NoPost => {}
            }
        }
        if shown.elapsed() >= SCREEN {
            shown = Instant::now();
            let head = format!(
                "sentistream demo   {}   {} records in",
                now.to_string().get(..16).unwrap_or(""),
                report.produced
            );
            screen.show(&summary.render(&head))?;
        }
    }
    feed.flush()?;
    Ok(report)
}

/// Waits until every labelled post is in a part and all sums equal a recount of the topic.
fn verified(config: &Config, settled: bool) -> anyhow::Result<usize> {
    let store = PartStore::open(&config.store)?;
    let log = LabelledTopic::open(&config.kafka)?;
    let until = Instant::now() + SETTLE;
    loop {
        let report = verify(&store, &config.kafka.labelled_topic, &log)?;
        let unsealed: u64 = report.partitions.iter().map(|p| p.unsealed).sum();
        // Without all posts labelled the run has failed and is told so elsewhere: nothing is waited for.
        if report.ok && (unsealed == 0 || !settled) {
            return Ok(report.partitions.iter().map(|p| p.parts).sum());
        }
        if !settled || Instant::now() > until {
            bail!("the Parquet does not agree with the topic: {}", serde_json::to_string(&report)?);
        }
        std::thread::sleep(SCREEN);
    }
}

/// Waits until every post has come out, or a role has died.
fn wait_for(summary: &Summary, report: Report, running: &app::Running) -> anyhow::Result<bool> {
    let until = Instant::now() + SETTLE;
    let mut screen = Screen::new();
    loop {
        let (labelled, dead) = summary.seen();
        if labelled >= report.posts && dead >= report.broken {
            return Ok(true);
        }
        if Instant::now() > until || running.ended() {
            return Ok(false);
        }
        screen.show(&summary.render(&format!(
            "the feed has ended; {} still in flight",
            (report.posts + report.broken).saturating_sub(labelled + dead)
        )))?;
        std::thread::sleep(SCREEN);
    }
}
