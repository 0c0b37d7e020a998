//! Composition root: builds the adapters, starts the roles, orders shutdown.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    classify::{artifact::Artifact, cache::RepeatCache, decide::Decider, engine::Engine, runtime},
    cli::{chain, run::Role},
    config::Config,
    front::Front,
    health::Health,
    pipeline::Pipeline,
    rollup,
    shutdown::{Shutdown, Trigger},
    source::probe,
    stage, telemetry,
    window::{SettledWindow, Window},
};

/// How long the broker may take to answer at start.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// While nothing has failed there is no deadline; the stages keep the drain's own.
const NO_LIMIT: Duration = Duration::from_secs(3600);
/// How often a quiet process looks whether a role has died.
const POLL: Duration = Duration::from_millis(200);

/// Everything between records and settled windows, from a configuration: runtime library, artifact,
/// engine (golden examples verified), front, cache.
pub fn pipeline(config: &Config) -> anyhow::Result<Pipeline> {
    let artifact = Artifact::load(&config.model.dir)?;
    let library = runtime::init(&config.model.runtime)?;
    let engine = Engine::start(&config.model, &config.batch, &artifact)?;
    tracing::debug!(runtime = %library.display(), "inference runtime");
    let front = Front::new(config, &artifact)?;
    let decider = Decider::new(&artifact, config.classify.uncertain_below);
    let cache = RepeatCache::new(config.classify.cache_entries, &artifact.id);
    Ok(Pipeline::start(Arc::new(front), Arc::new(engine), cache, decider, artifact.id.clone(), config))
}

/// Roles at work.
pub struct Running {
    trigger: Trigger,
    ends: Receiver<(Role, anyhow::Result<()>)>,
    threads: Vec<(Role, thread::JoinHandle<()>)>,
    drain: Duration,
    health: Health,
}

impl Running {
    /// Asks every role to drain.
    pub fn stop(&self) {
        self.trigger.set();
    }

    /// Health as `/readyz` shows it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether a role has ended already.
    pub fn ended(&self) -> bool {
        self.threads.iter().any(|(_, t)| t.is_finished())
    }

    /// Waits until every role has ended. The first error stops the others, which then have the drain's
    /// deadline to end; the error is returned in any case, so that a process never lives on half dead.
    pub fn wait(mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        while !self.threads.is_empty() {
            let limit = if first.is_ok() { NO_LIMIT } else { self.drain };
            let (role, result) = match self.ends.recv_timeout(limit) {
                Ok(end) => end,
                Err(RecvTimeoutError::Timeout) if first.is_ok() => continue,
                Err(_) => break,
            };
            if let Err(error) = result {
                let why = chain(&error);
                tracing::error!(role = name(role), error = why, "role failed");
                self.health.not_ready(name(role), format!("failed: {why}"));
                if first.is_ok() {
                    first = Err(explained(error).context(format!("role {}", name(role))));
                }
            }
            // A role ends by itself only when it failed; the others would go on half blind.
            self.trigger.set();
            if let Some(i) = self.threads.iter().position(|(r, _)| *r == role) {
                // The result has come through the channel already.
                drop(self.threads.swap_remove(i).1.join());
            }
        }
        first
    }
}

/// What to do, where the cause is one that a user can mend.
fn explained(error: anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}").to_ascii_lowercase();
    if text.contains("fenced") {
        return error.context(
            "another process uses the same kafka.instance_id (each instance needs its own), or has taken over",
        );
    }
    error
}

impl stage::Classifier for Pipeline {
    fn submit(&self, window: Window) -> bool {
        Self::submit(self, window).is_ok()
    }

    fn results(&self) -> &Receiver<SettledWindow> {
        Self::results(self)
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Classify => "classify",
        Role::Rollup => "rollup",
    }
}

/// Starts the roles, each on its own thread.
pub fn start(config: &Config, roles: &[Role]) -> anyhow::Result<Running> {
    let (trigger, shutdown) = Shutdown::new();
    let health = Health::default();
    let (send, ends) = unbounded();
    let mut threads = Vec::new();
    if roles.contains(&Role::Classify) {
        health.not_ready("classify", "verifying the model");
        let pipeline = pipeline(config)?;
        health.not_ready("classify", "no partition assigned yet");
        let (config, shutdown, health) = (config.clone(), shutdown.clone(), health.clone());
        let body = move || {
            let pipeline = Arc::new(pipeline);
            stage::run(&config, pipeline.clone(), &shutdown, &health).map_err(|e| match pipeline.error() {
                // Why it stopped is what the user needs; that it stopped is the stage's view of it.
                Some(cause) => anyhow::Error::new(e).context(cause.to_string()),
                None => e.into(),
            })
        };
        threads.push((Role::Classify, spawn(Role::Classify, send.clone(), body)?));
    }
    if roles.contains(&Role::Rollup) {
        health.not_ready("rollup", "no partition assigned yet");
        let (config, health) = (config.clone(), health.clone());
        let body = move || Ok(rollup::stage::run(&config, &shutdown, &health)?);
        threads.push((Role::Rollup, spawn(Role::Rollup, send, body)?));
    }
    let drain = Duration::from_secs(config.shutdown.drain_s);
    Ok(Running { trigger, ends, threads, drain, health })
}

/// A role's thread. A panic is an error like any other: counted, said, and the process ends non-zero.
fn spawn(
    role: Role,
    ends: Sender<(Role, anyhow::Result<()>)>,
    body: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name(name(role).to_owned())
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(body))
                .unwrap_or_else(|_| Err(anyhow!("panicked; the lines above say where")));
            // Nobody listens any more only when the process is ending.
            drop(ends.send((role, result)));
        })
        .with_context(|| format!("cannot start the thread of role {}", name(role)))
}

/// `run`: metrics, topics, roles, signals.
pub fn run_until_signal(config: &Config, roles: &[Role]) -> anyhow::Result<()> {
    let metrics = telemetry::init_metrics()?;
    let (runtime, signalled) = shutdown_on_signal()?;
    if config.kafka.create_topics {
        for topic in runtime.block_on(probe::create_missing(&config.kafka, 1, START_TIMEOUT))? {
            tracing::info!(topic, "topic created");
        }
    }
    let running = start(config, roles)?;
    if let Some(address) =
        runtime.block_on(telemetry::serve(&config.http, metrics, running.health().clone()))?
    {
        tracing::info!(%address, "serving /metrics, /healthz, /readyz");
    }
    while !signalled.wait_timeout(POLL) && !running.ended() {}
    running.stop();
    let result = running.wait();
    runtime.shutdown_timeout(Duration::from_secs(1));
    if result.is_ok() {
        tracing::info!("drained; nothing in flight was lost");
    }
    result
}

/// A runtime that listens for SIGTERM and SIGINT, and what they set.
pub fn shutdown_on_signal() -> anyhow::Result<(tokio::runtime::Runtime, Shutdown)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (trigger, shutdown) = Shutdown::new();
    // Registered before anything starts, so that a signal during the start is not the default's death.
    let (mut term, mut int) = runtime.block_on(async {
        std::io::Result::Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    })?;
    runtime.spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "draining");
        trigger.set();
    });
    Ok((runtime, shutdown))
}
