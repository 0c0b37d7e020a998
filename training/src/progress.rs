//! What a person sees of a run: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Seconds between plain lines.
const EVERY: Duration = Duration::from_secs(20);

/// Progress over the steps of a run.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    started: Instant,
    first: u64,
    examples: u64,
    loss: f64,
    last_line: Instant,
}

impl Progress {
    /// A run of `total` steps that stands at `done`.
    pub fn new(total: u64, done: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} ETA {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(total).with_style(style).with_position(done);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self { bar, total, started: now, first: done, examples: 0, loss: f64::NAN, last_line: now }
    }

    /// After step `step` over `examples` examples.
    pub fn step(&mut self, step: u64, examples: usize, loss: f64, lr: f64) {
        self.examples += examples as u64;
        self.loss = if self.loss.is_nan() { loss } else { 0.98 * self.loss + 0.02 * loss };
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let rate = self.examples as f64 / seconds;
        if let Some(bar) = &self.bar {
            bar.set_position(step);
            bar.set_message(format!("loss {:.4} {rate:.0} examples/s", self.loss));
        } else if self.last_line.elapsed() >= EVERY || step == self.total {
            self.last_line = Instant::now();
            let left = seconds / (step - self.first).max(1) as f64 * (self.total - step) as f64;
            eprintln!(
                "step {step}/{} loss {:.4} lr {lr:.2e} {rate:.1} examples/s, {:.0} min left",
                self.total,
                self.loss,
                left / 60.0
            );
        }
    }

    /// A line for people, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
