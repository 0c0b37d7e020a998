//! The real stage around a classifier that needs no model: what it does with a record is written in the
//! record, so a test can tell what must come out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use sentistream::{
    config::{Config, DeliveryMode},
    health::Health,
    record::{DeadLetter, Label, Labelled, ModelId, RawRecord, Scores, SourceRef, Stage, Timestamp},
    settle::Output,
    shutdown::{Shutdown, Trigger},
    stage::{self, Classifier, StageError},
    window::{Settled, SettledWindow, Window},
};

use super::{broker::Broker, unique, until};

/// `dead…` is refused, `skip…` is no post, everything else is labelled.
pub fn classify(record: RawRecord) -> Settled {
    let text = String::from_utf8_lossy(record.payload.as_deref().unwrap_or_default()).into_owned();
    if text.starts_with("skip") {
        return Settled::Skipped { record, reason: "delete" };
    }
    if text.starts_with("dead") {
        let message = "expected a post".to_owned();
        return Settled::Dead(DeadLetter { record, stage: Stage::Decode, reason: "not_json", message });
    }
    let labelled = Labelled {
        schema: Labelled::SCHEMA,
        id: text,
        created_at: Timestamp(0),
        label: Label::Neutral,
        confidence: 0.5,
        scores: Scores { negative: 0.25, neutral: 0.5, positive: 0.25 },
        brands: vec![],
        lang: "en".into(),
        channel: "test".into(),
        author: None,
        reach: None,
        text: None,
        model: ModelId { name: "double".into(), hash: "0000000000000000".into() },
        source: SourceRef::from(&record.position),
    };
    Settled::Labelled { record, labelled }
}

/// A queue of one window, as the real pipeline has; may be slow, and may be held.
pub struct Double {
    input: Sender<Window>,
    output: Receiver<SettledWindow>,
    /// Of a double without a thread, so that its results stay connected.
    results: Option<Sender<SettledWindow>>,
    pub taken: Arc<AtomicUsize>,
    pub hold: Arc<AtomicBool>,
}

impl Double {
    pub fn new(per_window: Duration) -> Arc<Self> {
        let (input, windows) = bounded::<Window>(1);
        let (results, output) = bounded(2);
        let (taken, hold) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, held) = (taken.clone(), hold.clone());
        std::thread::spawn(move || {
            for window in windows {
                while held.load(Ordering::Acquire) || !per_window.is_zero() {
                    std::thread::sleep(per_window.max(Duration::from_millis(1)));
                    if !held.load(Ordering::Acquire) {
                        break;
                    }
                }
                count.fetch_add(window.records.len(), Ordering::AcqRel);
                let items = window.records.into_iter().map(classify).collect();
                if results.send(SettledWindow { seq: window.seq, items }).is_err() {
                    break;
                }
            }
        });
        Arc::new(Self { input, output, results: None, taken, hold })
    }

    /// One that has died: it takes no window, and its results are connected still or not, as `results` says.
    pub fn dead(results: bool) -> Arc<Self> {
        let (input, _) = bounded(1);
        let (tx, output) = bounded(1);
        let results = results.then_some(tx);
        Arc::new(Self { input, output, results, taken: Arc::default(), hold: Arc::default() })
    }
}

impl Classifier for Double {
    fn submit(&self, window: Window) -> bool {
        self.input.send(window).is_ok()
    }

    fn results(&self) -> &Receiver<SettledWindow> {
        &self.output
    }
}

/// Topics and a group of one test.
pub struct Setup {
    pub config: Config,
    pub partitions: i32,
}

pub fn setup(broker: &Broker, name: &str, partitions: i32, mode: DeliveryMode) -> Setup {
    let s = names(broker, name, partitions, mode);
    let k = &s.config.kafka;
    broker.create_topics(&[(&k.posts_topic, partitions), (&k.labelled_topic, 2), (&k.dead_letter_topic, 1)]);
    s
}

/// The configuration alone; the topics are the caller's.
pub fn names(broker: &Broker, name: &str, partitions: i32, mode: DeliveryMode) -> Setup {
    let mut config = Config::defaults();
    let base = unique(name);
    config.kafka.brokers.clone_from(&broker.servers);
    config.kafka.group.clone_from(&base);
    config.kafka.posts_topic = format!("{base}.posts");
    config.kafka.labelled_topic = format!("{base}.labelled");
    config.kafka.dead_letter_topic = format!("{base}.dead");
    // The stand-in broker never forgets a dynamic member that was killed.
    config.kafka.instance_id = "one".into();
    config.kafka.session_timeout_ms = 10_000;
    config.delivery.mode = mode;
    config.delivery.commit_interval_ms = 50;
    Setup { config, partitions }
}

impl Setup {
    pub fn outputs(&self) -> [&str; 2] {
        [&self.config.kafka.labelled_topic, &self.config.kafka.dead_letter_topic]
    }
}

/// A stage in a thread.
pub struct Running {
    pub trigger: Trigger,
    pub health: Health,
    pub double: Arc<Double>,
    thread: Option<JoinHandle<Result<(), StageError>>>,
}

pub fn start(config: &Config, double: Arc<Double>) -> Running {
    start_with(config, double, |output| output)
}

/// With `wrap` around the real output.
pub fn start_with(
    config: &Config,
    double: Arc<Double>,
    wrap: impl FnOnce(Box<dyn Output>) -> Box<dyn Output> + Send + 'static,
) -> Running {
    let (trigger, shutdown) = Shutdown::new();
    let health = Health::default();
    let (config, classifier, h) = (config.clone(), double.clone(), health.clone());
    let thread = std::thread::spawn(move || {
        let output = |consumer| wrap(sentistream::sink::kafka::output(&config, consumer));
        stage::run_with(&config, classifier, &shutdown, &h, output)
    });
    Running { trigger, health, double, thread: Some(thread) }
}

impl Running {
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end, which the test has brought about.
    pub fn join(mut self) -> Result<(), StageError> {
        until("the stage ends", Duration::from_secs(60), || self.is_finished());
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn stop(self) -> Result<(), StageError> {
        self.trigger.set();
        self.join()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.trigger.set();
        self.double.hold.store(false, Ordering::Release);
    }
}
