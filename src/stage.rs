//! The classify stage: posts consumer → windower → classifier → settler. Three threads of its own and one
//! owner of each piece of state; they talk through the queue, the notes and the table of epochs.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, select, unbounded};

use crate::{
    assignment::Assignments,
    config::Config,
    health::Health,
    settle::{Class, Fault, Output, Policy, Settler, Stamps, Stop},
    shutdown::Shutdown,
    sink,
    source::{
        kafka::{PostsConsumer, PostsSource, ROLE, SourceError},
        queue::{Drain, Queue},
    },
    window::{SettledWindow, Window},
    windower::{Note, Windower},
};

/// What turns records into verdicts: windows in, settled windows out in number order.
pub trait Classifier: Send + Sync {
    /// Hands over a window; blocks while the classifier is busy. False when it has ended.
    fn submit(&self, window: Window) -> bool;
    /// Settled windows in number order. Disconnected when the classifier has ended.
    fn results(&self) -> &Receiver<SettledWindow>;
}

/// Why the stage ended before it was asked to. What is not committed is read again by whoever is next.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The consumer cannot go on.
    #[error("reading posts: {0}")]
    Source(#[from] SourceError),
    /// The producer cannot be had.
    #[error("starting the producer: {0}")]
    Start(Fault),
    /// Delivery cannot go on.
    #[error("delivering labelled posts: {0}")]
    Delivery(#[from] Stop),
    /// The classifier is gone.
    #[error("the classifier has stopped")]
    Classifier,
    /// A thread could not be started, or panicked.
    #[error("thread '{0}' failed")]
    Thread(&'static str),
}

/// Tries of one retriable step.
const ATTEMPTS: u32 = 8;
/// Tries to start the first producer: some minutes, in which a broker comes up.
const START_ATTEMPTS: u32 = 24;
/// From the windower's end until the poll thread says why.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Transactions lost in a row before the stage stops: about half a minute with back-off.
const MAX_ABORTS: u32 = 12;
const IDLE: Duration = Duration::from_millis(200);

/// Runs the stage until `shutdown` (drains and returns `Ok`, also where the drain took too long: what is
/// not committed is read again) or an error. Blocks.
pub fn run(
    config: &Config,
    classifier: Arc<dyn Classifier>,
    shutdown: &Shutdown,
    health: &Health,
) -> Result<(), StageError> {
    run_with(config, classifier, shutdown, health, |consumer| sink::kafka::output(config, consumer))
}

/// As [`run`], with the output made by `output` from the consumer whose offsets it commits: a test wraps the
/// real one to fail at will.
pub fn run_with(
    config: &Config,
    classifier: Arc<dyn Classifier>,
    shutdown: &Shutdown,
    health: &Health,
    output: impl FnOnce(Arc<PostsConsumer>) -> Box<dyn Output>,
) -> Result<(), StageError> {
    let assignments = Arc::new(Assignments::default());
    let queue = Arc::new(Queue::new(config.batch.queue_records, config.batch.queue_bytes));
    let source = PostsSource::subscribe(config, assignments.clone(), queue.clone(), health.clone())?;
    let mut output = output(source.consumer());
    // Before the first poll, so that what a crashed predecessor left open is settled when offsets are fetched.
    let started = start(&mut *output, shutdown);
    if !matches!(started, Ok(true)) {
        // The consumer's last callback asks for a drain, and there is nobody to answer it.
        queue.close();
        let why = started.as_ref().err().map_or_else(|| "shutting down".to_owned(), ToString::to_string);
        health.not_ready(ROLE, why);
        return started.map(|_| ());
    }
    let policy = Policy {
        interval: Duration::from_millis(config.delivery.commit_interval_ms),
        max_records: config.delivery.commit_max_records,
        attempts: ATTEMPTS,
        max_aborts: MAX_ABORTS,
    };
    let over = Arc::new(AtomicBool::new(false));
    let settler = Settler::new(output, assignments.clone(), policy, over.clone());
    let (notes_tx, notes) = unbounded();
    let linger = Duration::from_millis(config.batch.linger_ms);
    let windower = Windower::new(queue.clone(), assignments, notes_tx, config.batch.window_rows, linger);

    let stop = Arc::new(AtomicBool::new(false));
    let (stop_too, shutdown, submit_to) = (stop.clone(), shutdown.clone(), classifier.clone());
    let (ended_tx, ended) = crossbeam_channel::bounded(1);
    let poller = spawn("posts-poll", move || {
        let outcome = source.run(&shutdown, &stop_too);
        over.store(true, Ordering::Release);
        // The loop may have ended by its own error, with nobody listening.
        let _ = ended_tx.send(outcome);
    })?;
    let cutter = spawn("windower", move || windower.run(|w| submit_to.submit(w)))?;

    let outcome = Loop { settler, notes, ended, results: classifier.results().clone() }.run();
    stop.store(true, Ordering::Release);
    queue.close();
    // The windower may wait for room in the classifier: keep taking its results until it has noticed.
    while !cutter.is_finished() {
        if let Err(RecvTimeoutError::Disconnected) =
            classifier.results().recv_timeout(Duration::from_millis(20))
        {
            break;
        }
    }
    let joined = [("windower", cutter.join()), ("posts-poll", poller.join())];
    if let Err(e) = &outcome {
        health.not_ready(ROLE, e.to_string());
    }
    outcome?;
    match joined.iter().find(|(_, j)| j.is_err()) {
        Some((name, _)) => Err(StageError::Thread(name)),
        None => Ok(()),
    }
}

fn spawn(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, StageError> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|_| StageError::Thread(name))
}

/// False when `shutdown` came first.
fn start(output: &mut dyn Output, shutdown: &Shutdown) -> Result<bool, StageError> {
    let mut attempt = 1;
    loop {
        if shutdown.is_set() {
            return Ok(false);
        }
        match output.reset() {
            // No back-off once the end is asked for.
            Err(f) if f.class == Class::Retry && shutdown.is_set() => return Ok(false),
            Err(f) if f.class == Class::Retry && attempt < START_ATTEMPTS => {
                tracing::warn!(fault = %f, attempt, "the producer cannot be started yet");
                output.wait(attempt);
                attempt += 1;
            }
            other => return other.map(|()| true).map_err(StageError::Start),
        }
    }
}

/// The settling loop, on the caller's thread.
struct Loop {
    settler: Settler<Box<dyn Output>>,
    notes: Receiver<Note>,
    ended: Receiver<Result<bool, SourceError>>,
    results: Receiver<SettledWindow>,
}

impl Loop {
    fn run(mut self) -> Result<(), StageError> {
        let mut stamps: BTreeMap<u64, Stamps> = BTreeMap::new();
        let mut drains: VecDeque<(u64, Drain)> = VecDeque::new();
        let mut settled = 0;
        let note = |n: Note, stamps: &mut BTreeMap<u64, Stamps>, drains: &mut VecDeque<(u64, Drain)>| match n
        {
            Note::Window { seq, stamps: s } => {
                stamps.insert(seq, s);
            }
            Note::Drain { windows, drain } => drains.push_back((windows, drain)),
        };
        loop {
            let idle = self.settler.deadline().map_or(IDLE, |d| d.saturating_duration_since(Instant::now()));
            select! {
                recv(self.ended) -> end => return self.finish(end.map_err(|_| StageError::Thread("posts-poll"))?),
                recv(self.notes) -> n => match n {
                    Ok(n) => note(n, &mut stamps, &mut drains),
                    // The windower went first. Either the source has ended and is about to say why, or the
                    // classifier takes no more windows, and the source would read on for ever.
                    Err(_) => return match self.ended.recv_timeout(LAST_WORD) {
                        Ok(end) => self.finish(end),
                        Err(RecvTimeoutError::Disconnected) => Err(StageError::Thread("posts-poll")),
                        Err(RecvTimeoutError::Timeout) => Err(StageError::Classifier),
                    },
                },
                recv(self.results) -> window => {
                    let window = window.map_err(|_| StageError::Classifier)?;
                    // Its note was sent before it was submitted.
                    while let Ok(n) = self.notes.try_recv() {
                        note(n, &mut stamps, &mut drains);
                    }
                    settled = window.seq + 1;
                    let of = stamps.remove(&window.seq).unwrap_or_default();
                    self.settler.settle(&window, &of, Instant::now())?;
                },
                default(idle) => {}
            }
            if drains.front().is_some_and(|(windows, _)| *windows <= settled) {
                self.settler.cut()?;
                while let Some((_, drain)) = drains.pop_front_if(|(windows, _)| *windows <= settled) {
                    drain.done();
                }
            } else {
                self.settler.cut_if_due(Instant::now())?;
            }
        }
    }

    /// The source has ended: drained in time, drained too late, or with an error. All partitions are given
    /// up by now, so a transaction that is still open is aborted, not committed.
    fn finish(mut self, end: Result<bool, SourceError>) -> Result<(), StageError> {
        let drained = end?;
        self.settler.cut()?;
        if !drained {
            tracing::warn!("the drain took longer than shutdown.drain_s; what was left will be read again");
        }
        Ok(())
    }
}
