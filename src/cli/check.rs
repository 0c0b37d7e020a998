//! `check`: is this configuration ready to run? Each part is said plainly.

use std::time::Duration;

use super::{ConfigArg, Outcome, chain};
use crate::{
    classify::{artifact::Artifact, engine::Engine, runtime},
    config::Config,
    front::Front,
    rollup::store::PartStore,
    source::probe,
};

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Checks, and says of each what is wrong and what to do: the settings, the model folder (hashes, labels,
inputs, golden examples on the real device), the broker, the topics, the object store (that a conditional
write really is one). Starts nothing; of the store it creates the folder, if that was missing.

Exit code 0 when all is well, 1 when a check failed, 2 when the configuration cannot be read.")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

/// Runs every check, also after one has failed.
pub fn run(args: &Args) -> anyhow::Result<Outcome> {
    let config = args.config.load()?;
    let from = args.config.path().map_or("the defaults".into(), |p| p.display().to_string());
    let mut findings = 0;
    let mut say = |part: &str, result: Result<String, String>| match result {
        Ok(text) => println!("ok      {part:<8} {text}"),
        Err(text) => {
            findings += 1;
            println!("FAILED  {part:<8} {text}");
        }
    };
    say("config", Ok(format!("{from} and the environment, {} brands", config.brands.len())));
    say("model", model(&config).map_err(|e| chain(&e)));
    let topics = broker(&config);
    match topics {
        Ok((broker, topics)) => {
            say("broker", Ok(broker));
            say("topics", topics);
        }
        Err(e) => say("broker", Err(e)),
    }
    say("store", store(&config).map_err(|e| chain(&e)));
    Ok(if findings == 0 { Outcome::Done } else { Outcome::Findings })
}

fn model(config: &Config) -> anyhow::Result<String> {
    let artifact = Artifact::load(&config.model.dir)?;
    let library = runtime::init(&config.model.runtime)?;
    let engine = Engine::start(&config.model, &config.batch, &artifact)?;
    Front::new(config, &artifact)?;
    let golden = artifact.manifest.as_ref().map_or(0, |m| m.golden.len());
    Ok(format!(
        "{} ({}), {} on {}, {} sessions, {golden} golden examples agree; {}",
        artifact.id.name,
        artifact.id.hash,
        engine.variant(),
        engine.provider(),
        engine.sessions(),
        library.display(),
    ))
}

/// What the broker is, and whether the topics are there.
fn broker(config: &Config) -> Result<(String, Result<String, String>), String> {
    let k = &config.kafka;
    let names = [k.posts_topic.as_str(), k.labelled_topic.as_str(), k.dead_letter_topic.as_str()];
    let partitions = probe::partitions(k, &names, Duration::from_secs(10)).map_err(|e| e.to_string())?;
    let (mut have, mut missing) = (Vec::new(), Vec::new());
    for (name, partitions) in names.iter().zip(partitions) {
        match partitions {
            Some(n) => have.push(format!("{name} (partitions: {n})")),
            None => missing.push(*name),
        }
    }
    let topics = if missing.is_empty() {
        Ok(have.join(", "))
    } else if k.create_topics {
        have.push(format!("created at start: {}", missing.join(", ")));
        Ok(have.join("; "))
    } else {
        Err(format!("missing: {}; create them, or set kafka.create_topics = true", missing.join(", ")))
    };
    Ok((format!("{} answers", k.brokers), topics))
}

fn store(config: &Config) -> anyhow::Result<String> {
    PartStore::open(&config.store)?.probe()?;
    Ok(format!("{}: a conditional write is refused where the key exists, as it must be", config.store.url))
}
