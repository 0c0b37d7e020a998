//! Windows in, settled windows out, in the order they came.
//!
//! Three threads and no lock: *intake* takes a window, runs the front stage over it, answers repeats
//! from the cache and cuts the rest into micro-batches; *feeding* hands these to the engine, so that the
//! next window is prepared meanwhile; *settling* owns every window in flight, fills in what the engine
//! answers and lets the oldest window go once it is whole.
//!
//! Every queue is bounded. A window in flight holds a permit from intake to delivery; there are two
//! more permits than sessions: one window being formed, one being settled, the rest inferred. A slow
//! consumer of [`Pipeline::results`] therefore stops intake, and then whoever calls
//! [`Pipeline::submit`].

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use rayon::prelude::*;

pub use crate::window::{Settled, SettledWindow, Window};
use crate::{
    batch::{self, Limits},
    classify::{
        cache::{Key, RepeatCache},
        decide::Decider,
        engine::{BatchResult, Engine, EngineError, MicroBatch, Row, panic_message},
    },
    config::Config,
    front::{self, Candidate, Front, Outcome},
    record::{DeadLetter, Logits, ModelId, RawRecord, Stage},
    tokenize::Encoding,
};

/// Windows of fewer records go through the front stage on one thread: to wake others costs more.
const PARALLEL_FROM: usize = 64;

/// Why a pipeline has stopped. Always fatal: end without committing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PipelineError {
    /// The engine has stopped.
    #[error(transparent)]
    Inference(#[from] EngineError),
    /// A thread of the pipeline is gone.
    #[error("the pipeline's {thread} thread failed: {message}")]
    Thread {
        /// Which one.
        thread: &'static str,
        /// What it said.
        message: String,
    },
}

/// No window is taken any more; [`Pipeline::error`] says why, or that it was closed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the pipeline takes no more windows")]
pub struct PipelineStopped;

/// Time that each stage was at work, summed over threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Decode, prepare, brands, language.
    pub front: Duration,
    /// Tokenize.
    pub tokenize: Duration,
    /// Inference.
    pub inference: Duration,
    /// Decision and labelled records.
    pub settle: Duration,
}

/// The running pipeline; dropping it lets the windows in flight finish and joins its threads.
pub struct Pipeline {
    input: Sender<Window>,
    results: Receiver<SettledWindow>,
    closing: Mutex<Option<Sender<()>>>,
    shared: Arc<Shared>,
    front: Arc<dyn Process>,
    inference: Arc<dyn Inference>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    failed: OnceLock<PipelineError>,
    front_ns: AtomicU64,
    settle_ns: AtomicU64,
}

/// The front stage, as the pipeline sees it.
trait Process: Send + Sync + 'static {
    fn process(&self, record: &RawRecord) -> Outcome;
    /// Time spent in the tokenizer, inside `process`.
    fn tokenizing(&self) -> Duration;
}

impl Process for Front {
    fn process(&self, record: &RawRecord) -> Outcome {
        Front::process(self, record)
    }

    fn tokenizing(&self) -> Duration {
        Front::tokenizing(self)
    }
}

/// The engine, as the pipeline sees it.
trait Inference: Send + Sync + 'static {
    fn submit(&self, batch: MicroBatch) -> Result<(), EngineError>;
    fn sessions(&self) -> usize;
    fn limits(&self) -> (Limits, usize);
    fn busy(&self) -> Duration;
}

impl Inference for Engine {
    fn submit(&self, batch: MicroBatch) -> Result<(), EngineError> {
        Engine::submit(self, batch)
    }

    fn sessions(&self) -> usize {
        Engine::sessions(self)
    }

    fn limits(&self) -> (Limits, usize) {
        (Engine::limits(self), self.longest())
    }

    fn busy(&self) -> Duration {
        Engine::busy(self)
    }
}

impl Pipeline {
    /// Starts the threads. Of `config`, `output.text` is read: whether labelled records keep the text.
    pub fn start(
        front: Arc<Front>,
        engine: Arc<Engine>,
        cache: RepeatCache,
        decider: Decider,
        model: ModelId,
        config: &Config,
    ) -> Self {
        let settle = Labeller { decider, model, keep_text: config.output.text };
        Self::with(front, engine, Arc::new(cache), settle)
    }

    fn with(
        front: Arc<dyn Process>,
        inference: Arc<dyn Inference>,
        cache: Arc<RepeatCache>,
        label: Labeller,
    ) -> Self {
        let in_flight = inference.sessions() + 2;
        let shared = Arc::new(Shared::default());
        let (input, windows) = bounded(0);
        let (closing, closed) = bounded(0);
        let (permits_back, permits) = bounded(in_flight);
        for _ in 0..in_flight {
            // The channel is as deep as this loop is long.
            let _ = permits_back.try_send(());
        }
        let (opened, open) = bounded(in_flight);
        let (reply, replies) = bounded(inference.sessions() * 2);
        let (deliver, results) = bounded(1);
        let (limits, longest) = inference.limits();
        let intake = Intake {
            front: front.clone(),
            cache: cache.clone(),
            limits,
            longest,
            shared: shared.clone(),
            next: 0,
        };
        let settling = Settling {
            cache,
            label,
            shared: shared.clone(),
            deliver,
            permits_back,
            windows: VecDeque::new(),
            first: 0,
        };
        let (feed, fed) = bounded(1);
        let (engine, feeding) = (inference.clone(), shared.clone());
        let threads = [
            spawn("intake", &shared, move || {
                let shared = intake.shared.clone();
                shared.guard("intake", || intake.run(&windows, &closed, &permits, &opened, &feed, &reply));
            }),
            spawn("feeding", &shared, move || feeding.guard("feeding", || feed_engine(&fed, &*engine))),
            spawn("settling", &shared, move || {
                let mut settling = settling;
                let shared = settling.shared.clone();
                shared.guard("settling", || settling.run(&open, &replies));
            }),
        ];
        Self {
            input,
            results,
            closing: Mutex::new(Some(closing)),
            shared,
            front,
            inference,
            threads: threads.into_iter().flatten().collect(),
        }
    }

    /// Hands over a window; waits until the pipeline has room. Not from the thread that alone reads
    /// [`Pipeline::results`]: such a thread selects on [`Pipeline::input`].
    pub fn submit(&self, window: Window) -> Result<(), PipelineStopped> {
        self.input.send(window).map_err(|_| PipelineStopped)
    }

    /// Where windows go in; ready to send when the pipeline has room. For `select!`.
    pub fn input(&self) -> &Sender<Window> {
        &self.input
    }

    /// Windows come out in the order they went in, each once. It ends when the pipeline was closed and
    /// every window is out, or when it failed ([`Pipeline::error`]).
    pub fn results(&self) -> &Receiver<SettledWindow> {
        &self.results
    }

    /// Takes no more windows; those in flight still come out.
    pub fn close(&self) {
        *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why it failed, if it did.
    pub fn error(&self) -> Option<PipelineError> {
        self.shared.failed.get().cloned()
    }

    /// What the stages have worked so far.
    pub fn busy(&self) -> Busy {
        let of = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        let tokenize = self.front.tokenizing();
        Busy {
            front: of(&self.shared.front_ns).saturating_sub(tokenize),
            tokenize,
            inference: self.inference.busy(),
            settle: of(&self.shared.settle_ns),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.close();
        // Threads that wait for this queue go on and end.
        self.results.iter().for_each(drop);
        for t in self.threads.drain(..) {
            // A panic was caught in `spawn` and is in `error`.
            let _ = t.join();
        }
    }
}

/// Starts a thread of the pipeline; that it could not be started is the pipeline's error, and the queues
/// that `body` owns are dropped, so the other threads end too.
fn spawn(
    name: &'static str,
    shared: &Shared,
    body: impl FnOnce() + Send + 'static,
) -> Option<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("pipeline-{name}"))
        .spawn(body)
        .map_err(|e| shared.fail(PipelineError::Thread { thread: name, message: e.to_string() }))
        .ok()
}

impl Shared {
    fn fail(&self, e: PipelineError) {
        tracing::error!(error = %e, "the pipeline has stopped");
        // The first failure is the cause of the others.
        let _ = self.failed.set(e);
    }

    /// Runs what a thread does. Its error or panic is the pipeline's error and known *before* the
    /// queues that the caller owns are closed: who sees the results end can ask why.
    fn guard(&self, thread: &'static str, body: impl FnOnce() -> Result<(), PipelineError>) {
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.fail(e),
            Err(p) => self.fail(PipelineError::Thread { thread, message: panic_message(&*p).to_owned() }),
        }
    }
}

/// A window in flight.
struct InFlight {
    seq: u64,
    slots: Vec<Slot>,
    /// Answers of the engine, by row.
    rows: Vec<Option<Result<Logits, String>>>,
    /// Cache keys of the rows.
    keys: Vec<Key>,
    /// Rows not answered yet.
    missing: usize,
}

/// A record of a window in flight.
enum Slot {
    Settled(Settled),
    Known { record: RawRecord, candidate: Box<Candidate>, logits: Logits },
    Waiting { record: RawRecord, candidate: Box<Candidate>, row: usize },
}

struct Intake {
    front: Arc<dyn Process>,
    cache: Arc<RepeatCache>,
    limits: Limits,
    longest: usize,
    shared: Arc<Shared>,
    /// Windows taken so far; the tag of the next one's micro-batches.
    next: u64,
}

impl Intake {
    fn run(
        mut self,
        windows: &Receiver<Window>,
        closed: &Receiver<()>,
        permits: &Receiver<()>,
        opened: &Sender<InFlight>,
        feed: &Sender<Vec<MicroBatch>>,
        reply: &Sender<BatchResult>,
    ) -> Result<(), PipelineError> {
        loop {
            // Closed while it waits: settling has ended, and said why.
            if permits.recv().is_err() {
                return Ok(());
            }
            let window = select! {
                recv(windows) -> w => match w { Ok(w) => w, Err(_) => return Ok(()) },
                recv(closed) -> _ => return Ok(()),
            };
            let (in_flight, encodings) = self.open(window);
            let batches = self.cut(encodings, reply);
            // First the window, then its micro-batches: an answer never comes before its window.
            if opened.send(in_flight).is_err() || feed.send(batches).is_err() {
                return Ok(());
            }
            self.next += 1;
        }
    }

    /// Front stage, cache, repeats inside the window: what is left to infer, by row.
    fn open(&self, window: Window) -> (InFlight, Vec<Encoding>) {
        let begun = Instant::now();
        let outcomes: Vec<Outcome> = if window.records.len() >= PARALLEL_FROM {
            window.records.par_iter().map(|r| self.process(r)).collect()
        } else {
            window.records.iter().map(|r| self.process(r)).collect()
        };
        let mut encodings = Vec::new();
        let mut keys = Vec::new();
        let mut seen: HashMap<Key, usize> = HashMap::new();
        let slots = window.records.into_iter().zip(outcomes).map(|(record, outcome)| {
            let mut candidate = match outcome {
                Outcome::Candidate(c) => c,
                Outcome::Skip(reason) => return Slot::Settled(Settled::Skipped { record, reason }),
                Outcome::Dead { stage, reason, message } => {
                    return Slot::Settled(Settled::Dead(DeadLetter { record, stage, reason, message }));
                }
            };
            let key = self.cache.key(&candidate.prepared);
            let row = match seen.entry(key) {
                Entry::Occupied(row) => *row.get(),
                Entry::Vacant(vacant) => {
                    if let Some(logits) = self.cache.get(&key) {
                        return Slot::Known { record, candidate, logits };
                    }
                    keys.push(key);
                    encodings.push(Encoding { ids: std::mem::take(&mut candidate.encoding.ids) });
                    *vacant.insert(encodings.len() - 1)
                }
            };
            Slot::Waiting { record, candidate, row }
        });
        let slots: Vec<Slot> = slots.collect();
        metrics::histogram!("sentistream_stage_seconds", "stage" => "front")
            .record(begun.elapsed().as_secs_f64());
        let (missing, rows) = (encodings.len(), vec![None; encodings.len()]);
        (InFlight { seq: window.seq, slots, rows, keys, missing }, encodings)
    }

    /// A record that makes the front stage panic is a dead letter like any other that cannot be read:
    /// it must not stop the stream, and again after every restart. What the panic said stays unsaid: it
    /// may quote the post.
    fn process(&self, record: &RawRecord) -> Outcome {
        let begun = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.front.process(record))).unwrap_or_else(|_| {
            metrics::counter!("sentistream_front_panics_total").increment(1);
            Outcome::Dead {
                stage: Stage::Decode,
                reason: "panicked",
                message: "the record made the front stage panic; please report it with its bytes".into(),
            }
        });
        self.shared.front_ns.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        outcome
    }

    fn cut(&self, encodings: Vec<Encoding>, reply: &Sender<BatchResult>) -> Vec<MicroBatch> {
        let lengths: Vec<usize> = encodings.iter().map(Encoding::len).collect();
        let mut encodings: Vec<Option<Encoding>> = encodings.into_iter().map(Some).collect();
        batch::plan(&lengths, &self.limits, self.longest)
            .into_iter()
            .map(|indices| MicroBatch {
                tag: self.next,
                rows: indices
                    .into_iter()
                    .filter_map(|index| encodings[index].take().map(|encoding| Row { index, encoding }))
                    .collect(),
                reply: reply.clone(),
            })
            .collect()
    }
}

fn feed_engine(fed: &Receiver<Vec<MicroBatch>>, engine: &dyn Inference) -> Result<(), PipelineError> {
    for batch in fed.iter().flatten() {
        engine.submit(batch)?;
    }
    Ok(())
}

/// Logits → labelled record.
struct Labeller {
    decider: Decider,
    model: ModelId,
    keep_text: bool,
}

impl Labeller {
    /// `rows` are the answers to the window that `slot` is of.
    fn settle(&self, slot: Slot, rows: &[Option<Result<Logits, String>>]) -> Settled {
        match slot {
            Slot::Settled(settled) => settled,
            Slot::Known { record, candidate, logits } => self.labelled(record, &candidate, &logits),
            Slot::Waiting { record, candidate, row } => match &rows[row] {
                Some(Ok(logits)) => self.labelled(record, &candidate, logits),
                Some(Err(message)) => dead(record, message.clone()),
                // Not reached: a window leaves when no row is missing.
                None => dead(record, "the engine gave no answer for this row".into()),
            },
        }
    }

    fn labelled(&self, record: RawRecord, candidate: &Candidate, logits: &Logits) -> Settled {
        let verdict = self.decider.decide(logits);
        let labelled = front::labelled(candidate, &verdict, &self.model, &record.position, self.keep_text);
        Settled::Labelled { record, labelled }
    }
}

fn dead(record: RawRecord, message: String) -> Settled {
    Settled::Dead(DeadLetter { record, stage: Stage::Classify, reason: "inference", message })
}

struct Settling {
    cache: Arc<RepeatCache>,
    label: Labeller,
    shared: Arc<Shared>,
    deliver: Sender<SettledWindow>,
    permits_back: Sender<()>,
    /// Windows in flight, oldest first.
    windows: VecDeque<InFlight>,
    /// Tag of the oldest.
    first: u64,
}

impl Settling {
    fn run(
        &mut self,
        open: &Receiver<InFlight>,
        replies: &Receiver<BatchResult>,
    ) -> Result<(), PipelineError> {
        let mut more = true;
        while more || !self.windows.is_empty() {
            if more {
                select! {
                    recv(open) -> w => match w {
                        Ok(w) => self.windows.push_back(w),
                        Err(_) => more = false,
                    },
                    recv(replies) -> r => if let Ok(r) = r { self.answer(r, open)? },
                }
            } else {
                // Intake has ended; if the engine drops what it still owes, nothing more will come.
                let Ok(r) = replies.recv() else { break };
                self.answer(r, open)?;
            }
            if !self.deliver_whole() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn answer(&mut self, result: BatchResult, open: &Receiver<InFlight>) -> Result<(), PipelineError> {
        // `select!` picks at random: the window may still stand in its queue, where it came first.
        while self.window(result.tag).is_none() {
            let Ok(w) = open.try_recv() else { break };
            self.windows.push_back(w);
        }
        let rows = result.rows?;
        let cache = self.cache.clone();
        let Some(window) = self.window(result.tag) else { return Ok(()) };
        for (row, logits) in rows {
            if let Ok(logits) = &logits {
                cache.insert(window.keys[row], logits.clone());
            }
            if window.rows[row].replace(logits).is_none() {
                window.missing -= 1;
            }
        }
        Ok(())
    }

    fn window(&mut self, tag: u64) -> Option<&mut InFlight> {
        self.windows.get_mut(usize::try_from(tag.checked_sub(self.first)?).ok()?)
    }

    /// Lets whole windows go, oldest first. False when nobody takes them any more.
    fn deliver_whole(&mut self) -> bool {
        while self.windows.front().is_some_and(|w| w.missing == 0) {
            let Some(window) = self.windows.pop_front() else { break };
            self.first += 1;
            let begun = Instant::now();
            let items = window.slots.into_iter().map(|s| self.label.settle(s, &window.rows)).collect();
            let took = begun.elapsed();
            self.shared.settle_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
            metrics::histogram!("sentistream_stage_seconds", "stage" => "settle").record(took.as_secs_f64());
            metrics::gauge!("sentistream_queue_depth", "queue" => "windows").set(self.windows.len() as f64);
            if self.deliver.send(SettledWindow { seq: window.seq, items }).is_err() {
                return false;
            }
            // Intake may have ended; then nobody needs the permit.
            let _ = self.permits_back.try_send(());
        }
        true
    }
}

#[cfg(test)]
mod tests;
