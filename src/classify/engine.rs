//! The inference engine: sessions, one thread each, fed with micro-batches from one bounded queue.
//!
//! On the CPU a single-threaded session on every core gives 1.25 times the posts a second of one session
//! with as many threads (two cores, int8, `tests/engine_speed.rs`); on CUDA one session keeps the device
//! busy. The queue is as deep as there are sessions, so that the next micro-batch is ready when a session
//! becomes free and no more than that waits.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{
    batch::{self, Limits},
    classify::{
        artifact::{Artifact, ArtifactError},
        runtime::RuntimeError,
        session::{Provider, Session, SessionError, Shape},
    },
    config,
    record::Logits,
    tokenize::{Encoding, TokenizeError, Tokenizer},
};

/// Why the engine does not start, or has stopped.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The folder has no graph that fits.
    #[error("{0}")]
    Artifact(Arc<ArtifactError>),
    /// The tokenizer cannot be read.
    #[error("{0}")]
    Tokenizer(Arc<TokenizeError>),
    /// No session can be opened.
    #[error("{0}")]
    Session(Arc<SessionError>),
    /// The configured variant is for other devices.
    #[error(
        "model.variant '{variant}' is made for {devices} and model.device is {device}; use variant = \"auto\" or a device it is made for"
    )]
    Variant {
        /// The variant.
        variant: String,
        /// The device.
        device: &'static str,
        /// Devices that `artifact.json` names.
        devices: String,
    },
    /// The model does not say what it said when it was exported.
    #[error("{folder}: golden example {index} ({variant} on {provider}): {message}")]
    Golden {
        /// Model folder.
        folder: String,
        /// Index in `artifact.json`.
        index: usize,
        /// Variant.
        variant: String,
        /// Provider.
        provider: &'static str,
        /// Expected and found.
        message: String,
    },
    /// The system gave no thread.
    #[error("cannot start an inference thread: {0}")]
    Thread(Arc<std::io::Error>),
    /// Inference broke while running; the process should end without committing.
    #[error("inference has stopped: {0}")]
    Stopped(String),
}

impl From<ArtifactError> for EngineError {
    fn from(e: ArtifactError) -> Self {
        Self::Artifact(Arc::new(e))
    }
}

impl From<TokenizeError> for EngineError {
    fn from(e: TokenizeError) -> Self {
        Self::Tokenizer(Arc::new(e))
    }
}

impl From<SessionError> for EngineError {
    fn from(e: SessionError) -> Self {
        Self::Session(Arc::new(e))
    }
}

impl From<RuntimeError> for EngineError {
    fn from(e: RuntimeError) -> Self {
        SessionError::from(e).into()
    }
}

/// One row of a micro-batch.
#[derive(Clone, Debug)]
pub struct Row {
    /// The caller's number for it, given back with the result.
    pub index: usize,
    /// What to classify.
    pub encoding: Encoding,
}

/// Rows that are run together; of one padded width, as [`batch::plan`] cuts them.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// The caller's number, given back with the result.
    pub tag: u64,
    /// The rows.
    pub rows: Vec<Row>,
    /// Where the result goes. The session waits when it is full.
    pub reply: Sender<BatchResult>,
}

/// A row's index, and its logits or why it cannot be classified.
pub type RowResult = (usize, Result<Logits, String>);

/// What became of a [`MicroBatch`]. There is one for each that was submitted.
#[derive(Clone, Debug)]
pub struct BatchResult {
    /// The tag of the micro-batch.
    pub tag: u64,
    /// Each row's index and logits, or why this row cannot be classified (poison: a dead letter);
    /// or, for the whole, that inference has stopped (fatal).
    pub rows: Result<Vec<RowResult>, EngineError>,
}

/// Running sessions. Shared by reference; dropping it ends the threads and joins them.
pub struct Engine {
    queue: Option<Sender<MicroBatch>>,
    threads: Vec<JoinHandle<()>>,
    state: Arc<State>,
    provider: Provider,
    variant: String,
    limits: Limits,
    longest: usize,
}

/// Shared by the threads.
#[derive(Default)]
struct State {
    stopped: OnceLock<EngineError>,
    busy_ns: AtomicU64,
}

impl State {
    fn stop(&self, message: String) -> EngineError {
        tracing::error!(%message, "inference has stopped");
        self.stopped.get_or_init(|| EngineError::Stopped(message)).clone()
    }
}

impl Engine {
    /// Opens the sessions, verifies the golden examples on each, warms up.
    ///
    /// `model.sessions = 0` means one single-threaded session a core on the CPU and one on CUDA.
    /// `model.device = "auto"` takes CUDA where the provider loads, and says when it does not.
    pub fn start(
        model: &config::Model,
        batch: &config::Batch,
        artifact: &Artifact,
    ) -> Result<Self, EngineError> {
        let tokenizer = Tokenizer::from_file(&artifact.dir.join("tokenizer.json"), artifact.max_tokens)?;
        let shape =
            Shape { labels: artifact.labels.len(), longest: artifact.max_tokens, pad_id: tokenizer.pad_id() };
        let (variant, sessions) = open(model, artifact, shape)?;
        let limits = Limits::from(batch);
        let check = Check { artifact, tokenizer: &tokenizer, variant: &variant, limits: &limits };
        Self::run(check, sessions)
    }

    fn run(check: Check<'_>, sessions: Vec<(Provider, Session)>) -> Result<Self, EngineError> {
        let provider = sessions.first().map_or(Provider::Cpu { threads: 1 }, |s| s.0);
        let state = Arc::new(State::default());
        let (queue, work) = bounded(sessions.len());
        let mut engine = Self {
            queue: Some(queue),
            threads: Vec::with_capacity(sessions.len()),
            state,
            provider,
            variant: check.variant.to_owned(),
            limits: *check.limits,
            longest: check.artifact.max_tokens,
        };
        for (n, (_, mut session)) in sessions.into_iter().enumerate() {
            check.golden(&mut session, provider)?;
            check.warm(&mut session)?;
            let probe = check.probe()?;
            let (work, state) = (work.clone(), engine.state.clone());
            let thread = std::thread::Builder::new()
                .name(format!("inference-{n}"))
                .spawn(move || Worker { session, probe, state }.serve(&work))
                .map_err(|e| EngineError::Thread(Arc::new(e)))?;
            engine.threads.push(thread);
        }
        let id = &check.artifact.id;
        metrics::gauge!("sentistream_provider_info", "provider" => provider.as_str(),
            "variant" => engine.variant.clone(), "model" => id.name.to_string(), "hash" => id.hash.to_string())
        .set(1.0);
        tracing::info!(provider = provider.as_str(), variant = engine.variant, sessions = engine.threads.len(),
            model = %id.name, hash = %id.hash, "model verified on its golden examples and ready");
        Ok(engine)
    }

    /// Hands over a micro-batch; waits while the queue is full. Fails once inference has stopped.
    pub fn submit(&self, batch: MicroBatch) -> Result<(), EngineError> {
        if let Some(e) = self.state.stopped.get() {
            return Err(e.clone());
        }
        let ended = || EngineError::Stopped("no session is left".into());
        let queue = self.queue.as_ref().ok_or_else(ended)?;
        queue.send(batch).map_err(|_| self.state.stopped.get().cloned().unwrap_or_else(ended))?;
        metrics::gauge!("sentistream_queue_depth", "queue" => "inference").set(queue.len() as f64);
        Ok(())
    }

    /// Classifies any number of encodings; the results stand in the order of `encodings`. An inner
    /// error is one row's, the outer one says that inference has stopped.
    pub fn classify_all(&self, encodings: &[Encoding]) -> Result<Vec<Result<Logits, String>>, EngineError> {
        let lengths: Vec<usize> = encodings.iter().map(Encoding::len).collect();
        let plan = batch::plan(&lengths, &self.limits, self.longest);
        let (reply, replies) = bounded(plan.len());
        for (tag, indices) in plan.into_iter().enumerate() {
            let rows =
                indices.into_iter().map(|index| Row { index, encoding: encodings[index].clone() }).collect();
            self.submit(MicroBatch { tag: tag as u64, rows, reply: reply.clone() })?;
        }
        drop(reply);
        let mut results = vec![Err("not classified".to_owned()); encodings.len()];
        for done in replies {
            for (index, result) in done.rows? {
                results[index] = result;
            }
        }
        Ok(results)
    }

    /// `cpu` or `cuda`: what really runs.
    pub fn provider(&self) -> &'static str {
        self.provider.as_str()
    }

    /// The variant that runs (`int8`, `fp32`, `fp16`).
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// Sessions, each with a thread of its own.
    pub fn sessions(&self) -> usize {
        self.threads.len()
    }

    /// Bounds of a micro-batch.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Longest encoding of the model.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Time that sessions spent running micro-batches, summed over sessions.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.state.busy_ns.load(Ordering::Relaxed))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue = None;
        for t in self.threads.drain(..) {
            // A worker's panics are caught inside; nothing is left to say here.
            let _ = t.join();
        }
    }
}

/// Resolves device and variant and opens the sessions.
fn open(
    model: &config::Model,
    artifact: &Artifact,
    shape: Shape,
) -> Result<(String, Vec<(Provider, Session)>), EngineError> {
    let cuda = Provider::Cuda { device_id: model.device_id };
    match model.device {
        config::Device::Cpu => open_on(model, artifact, shape, Provider::Cpu { threads: 1 }),
        config::Device::Cuda => open_on(model, artifact, shape, cuda),
        config::Device::Auto => match open_on(model, artifact, shape, cuda) {
            Ok(opened) => Ok(opened),
            Err(reason) => {
                let opened = open_on(model, artifact, shape, Provider::Cpu { threads: 1 })?;
                tracing::info!(%reason, "model.device = \"auto\": CUDA is not available, the CPU is used");
                Ok(opened)
            }
        },
    }
}

fn open_on(
    model: &config::Model,
    artifact: &Artifact,
    shape: Shape,
    provider: Provider,
) -> Result<(String, Vec<(Provider, Session)>), EngineError> {
    let on_cuda = matches!(provider, Provider::Cuda { .. });
    let (variant, graph) = artifact.graph(model.variant.name(), on_cuda)?;
    let known = artifact.manifest.as_ref().and_then(|m| m.variants.get(&variant));
    if let Some(v) = known.filter(|v| !v.devices.iter().any(|d| d == provider.as_str())) {
        return Err(EngineError::Variant {
            variant,
            device: provider.as_str(),
            devices: v.devices.join(", "),
        });
    }
    let count = match (model.sessions, on_cuda) {
        (0, true) => 1,
        (0, false) => std::thread::available_parallelism().map_or(1, usize::from),
        (n, _) => n,
    };
    let sessions = (0..count)
        .map(|_| Ok((provider, Session::open(&graph, provider, shape, &model.runtime)?)))
        .collect::<Result<Vec<_>, SessionError>>()?;
    Ok((variant, sessions))
}

/// What a fresh session must pass before it serves.
#[derive(Clone, Copy)]
struct Check<'a> {
    artifact: &'a Artifact,
    tokenizer: &'a Tokenizer,
    variant: &'a str,
    limits: &'a Limits,
}

impl Check<'_> {
    fn encode(&self, text: &str) -> Result<Encoding, EngineError> {
        Ok(self.tokenizer.encode(&self.artifact.preparation.apply(text))?)
    }

    /// Every golden example, alone and in the micro-batches that it falls into among the others, must
    /// give the ids and, within the variant's tolerance, the logits it gave at export.
    fn golden(&self, session: &mut Session, provider: Provider) -> Result<(), EngineError> {
        let Some(manifest) = &self.artifact.manifest else { return Ok(()) };
        let fail = |index: usize, message: String| EngineError::Golden {
            folder: self.artifact.dir.display().to_string(),
            index,
            variant: self.variant.to_owned(),
            provider: provider.as_str(),
            message,
        };
        let tolerance = manifest.variants.get(self.variant).map_or(0.0, |v| v.tolerance);
        let mut encodings = Vec::with_capacity(manifest.golden.len());
        for (i, golden) in manifest.golden.iter().enumerate() {
            let encoding = self.encode(&golden.text)?;
            if let Some(message) = ids_differ(&golden.ids, &encoding.ids) {
                return Err(fail(i, message));
            }
            encodings.push(encoding);
        }
        let lengths: Vec<usize> = encodings.iter().map(Encoding::len).collect();
        let together = batch::plan(&lengths, self.limits, self.artifact.max_tokens);
        for indices in (0..encodings.len()).map(|i| vec![i]).chain(together) {
            let rows: Vec<&Encoding> = indices.iter().map(|&i| &encodings[i]).collect();
            let found = session.run(&rows)?;
            for (&i, found) in indices.iter().zip(found) {
                let expected = manifest.golden[i].logits.get(self.variant).ok_or_else(|| {
                    fail(i, format!("artifact.json has no logits for variant '{}'", self.variant))
                })?;
                let found = found.map_err(|m| fail(i, m))?;
                if let Some(message) = logits_differ(expected, &found, tolerance) {
                    return Err(fail(i, message));
                }
            }
        }
        Ok(())
    }

    /// Runs the shapes that will come, so that the first posts do not pay for memory and kernels.
    fn warm(&self, session: &mut Session) -> Result<(), EngineError> {
        let longest = self.artifact.max_tokens;
        let id = self.probe()?.ids[0];
        let mut width = batch::padded(1, longest);
        while width <= longest {
            let rows = (self.limits.max_tokens / width).clamp(1, self.limits.max_rows);
            let row = Encoding { ids: vec![id; width] };
            session.run(&vec![&row; rows])?;
            width *= 2;
        }
        Ok(())
    }

    /// A row that a working session can run: what a failing row is compared with.
    fn probe(&self) -> Result<Encoding, EngineError> {
        let probe = self.encode("ok")?;
        Ok(if probe.is_empty() { Encoding { ids: vec![self.tokenizer.pad_id()] } } else { probe })
    }
}

fn ids_differ(expected: &[u32], found: &[u32]) -> Option<String> {
    if expected == found {
        return None;
    }
    let at = expected.iter().zip(found).take_while(|(e, f)| e == f).count();
    let show = |ids: &[u32]| ids.get(at).map_or_else(|| "the end".to_owned(), u32::to_string);
    Some(format!(
        "token ids differ at position {at}: expected {}, found {}; tokenizer.json or the text preparation is not the export's",
        show(expected),
        show(found)
    ))
}

fn logits_differ(expected: &[f32], found: &[f32], tolerance: f64) -> Option<String> {
    // `<=` is false for NaN, which must count as a difference.
    let near = |(e, f): (&f32, &f32)| (f64::from(*e) - f64::from(*f)).abs() <= tolerance;
    let same = expected.len() == found.len() && expected.iter().zip(found).all(near);
    (!same).then(|| {
        format!("expected logits {expected:?}, found {found:?}, which is more than the tolerance of {tolerance} away")
    })
}

/// One session's thread.
struct Worker {
    session: Session,
    probe: Encoding,
    state: Arc<State>,
}

impl Worker {
    /// Answers every micro-batch until the queue is closed. Once inference has stopped, in this thread
    /// or another, the answer is the error, so that nobody waits for ever.
    fn serve(mut self, work: &Receiver<MicroBatch>) {
        for batch in work {
            let rows = match self.state.stopped.get() {
                Some(e) => Err(e.clone()),
                None => self.guarded(batch.rows),
            };
            // Nobody waits for this result any more: the caller has gone.
            let _ = batch.reply.send(BatchResult { tag: batch.tag, rows });
        }
    }

    fn guarded(&mut self, rows: Vec<Row>) -> Result<Vec<RowResult>, EngineError> {
        let begun = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| {
            let mut out = Vec::with_capacity(rows.len());
            bisect(&mut self.session, &self.probe, &rows, &mut out).map(|()| out)
        }));
        let took = begun.elapsed();
        self.state.busy_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        metrics::histogram!("sentistream_stage_seconds", "stage" => "classify").record(took.as_secs_f64());
        match done {
            Ok(Ok(out)) => Ok(out),
            Ok(Err(message)) => Err(self.state.stop(message)),
            Err(panic) => {
                metrics::counter!("sentistream_inference_panics_total").increment(1);
                Err(self.state.stop(format!("an inference thread panicked: {}", panic_message(&*panic))))
            }
        }
    }
}

/// What inference needs of a session; tests put a faulty one in its place.
trait Infer {
    fn infer(&mut self, rows: &[&Encoding]) -> Result<Vec<Result<Logits, String>>, SessionError>;
}

impl Infer for Session {
    fn infer(&mut self, rows: &[&Encoding]) -> Result<Vec<Result<Logits, String>>, SessionError> {
        self.run(rows)
    }
}

/// Runs `rows`; a refused micro-batch is halved until the guilty row stands alone. A row is blamed only
/// when `probe` still runs: otherwise the device is at fault, which is fatal (`Err`).
fn bisect(
    session: &mut impl Infer,
    probe: &Encoding,
    rows: &[Row],
    out: &mut Vec<RowResult>,
) -> Result<(), String> {
    let (rows, empty): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|r| !r.encoding.is_empty());
    out.extend(empty.iter().map(|r| (r.index, Err("the text has no tokens".to_owned()))));
    let mut stack = vec![rows.as_slice()];
    while let Some(part) = stack.pop() {
        if part.is_empty() {
            continue;
        }
        let encodings: Vec<&Encoding> = part.iter().map(|r| &r.encoding).collect();
        match session.infer(&encodings) {
            Ok(results) => out.extend(part.iter().map(|r| r.index).zip(results)),
            Err(e) if part.len() == 1 => {
                if let Err(still) = session.infer(&[probe]) {
                    return Err(still.to_string());
                }
                out.push((part[0].index, Err(e.to_string())));
            }
            Err(_) => {
                let (a, b) = part.split_at(part.len() / 2);
                stack.extend([b, a]);
            }
        }
    }
    observe(&rows);
    Ok(())
}

fn observe(rows: &[&Row]) {
    let tokens: usize = rows.iter().map(|r| r.encoding.len()).sum();
    let width = rows.iter().map(|r| r.encoding.len().next_multiple_of(batch::WIDTH_STEP)).max().unwrap_or(0);
    let padded = rows.len() * width;
    metrics::histogram!("sentistream_batch_rows").record(rows.len() as f64);
    metrics::histogram!("sentistream_batch_tokens").record(padded as f64);
    metrics::counter!("sentistream_batch_tokens_total").increment(padded as u64);
    metrics::counter!("sentistream_batch_padding_tokens_total")
        .increment(padded.saturating_sub(tokens) as u64);
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Answers a row's first id; refuses any micro-batch that holds a bad id, or everything once dead.
    struct Faulty {
        bad: Vec<u32>,
        runs: usize,
        dead_after: usize,
    }

    impl Infer for Faulty {
        fn infer(&mut self, rows: &[&Encoding]) -> Result<Vec<Result<Logits, String>>, SessionError> {
            self.runs += 1;
            if self.runs > self.dead_after || rows.iter().any(|r| self.bad.contains(&r.ids[0])) {
                return Err(SessionError::Run("refused".into()));
            }
            Ok(rows.iter().map(|r| Ok(vec![r.ids[0] as f32])).collect())
        }
    }

    fn rows(n: u32) -> Vec<Row> {
        (0..n).map(|i| Row { index: i as usize, encoding: Encoding { ids: vec![i] } }).collect()
    }

    fn probe() -> Encoding {
        Encoding { ids: vec![1000] }
    }

    #[test]
    fn a_refused_batch_is_bisected_to_the_guilty_rows() {
        let mut session = Faulty { bad: vec![3, 11], runs: 0, dead_after: usize::MAX };
        let mut out = Vec::new();
        bisect(&mut session, &probe(), &rows(16), &mut out).unwrap();
        out.sort_by_key(|(i, _)| *i);
        assert_eq!(out.len(), 16);
        for (i, r) in out {
            match r {
                Ok(logits) => assert_eq!(logits, vec![i as f32]),
                Err(m) => assert!([3, 11].contains(&i) && m.contains("refused"), "{i} {m}"),
            }
        }
        assert!(session.runs <= 2 * 2 * 5, "{} runs", session.runs);
    }

    #[test]
    fn a_dead_device_is_fatal_and_blames_no_row() {
        let mut session = Faulty { bad: vec![], runs: 0, dead_after: 0 };
        let e = bisect(&mut session, &probe(), &rows(4), &mut Vec::new()).unwrap_err();
        assert!(e.contains("refused"), "{e}");
        assert_eq!(session.runs, 4, "halved to one row, then the probe");
    }

    #[test]
    fn a_row_without_tokens_is_refused_by_itself() {
        let mut session = Faulty { bad: vec![], runs: 0, dead_after: usize::MAX };
        let mut all = rows(2);
        all[0].encoding.ids.clear();
        let mut out = Vec::new();
        bisect(&mut session, &probe(), &all, &mut out).unwrap();
        assert!(out[0].0 == 0 && out[0].1.is_err() && out[1] == (1, Ok(vec![1.0])), "{out:?}");
    }

    #[test]
    fn differences_are_named() {
        assert_eq!(ids_differ(&[1, 2], &[1, 2]), None);
        assert!(ids_differ(&[1, 2], &[1, 3]).unwrap().contains("position 1: expected 2, found 3"));
        assert!(ids_differ(&[1, 2], &[1]).unwrap().contains("found the end"));
        assert_eq!(logits_differ(&[1.0, 2.0], &[1.0, 2.0001], 1e-3), None);
        assert!(logits_differ(&[1.0, 2.0], &[1.0, 2.01], 1e-3).unwrap().contains("2.01"));
        assert!(logits_differ(&[1.0], &[1.0, 2.0], 1e-3).is_some());
        assert!(logits_differ(&[f32::NAN], &[1.0], 1e-3).is_some());
    }
}
