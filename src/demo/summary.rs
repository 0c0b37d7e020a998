//! What the demo's user sees: totals by brand, read from the labelled topic as anybody else would.

use std::{
    io::{IsTerminal, Write},
    sync::{Mutex, PoisonError},
};

use crate::record::{Label, Labelled, Map};

/// Counts by label of one brand (or of all posts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Posts.
    pub posts: u64,
    /// Labelled negative.
    pub negative: u64,
    /// Labelled neutral.
    pub neutral: u64,
    /// Labelled positive.
    pub positive: u64,
}

impl Counts {
    fn add(&mut self, label: Label) {
        self.posts += 1;
        match label {
            Label::Negative => self.negative += 1,
            Label::Neutral => self.neutral += 1,
            Label::Positive => self.positive += 1,
            Label::Uncertain => {}
        }
    }

    /// `(positive - negative) / posts` in percent; 0 without posts.
    pub fn net(&self) -> f64 {
        if self.posts == 0 {
            return 0.0;
        }
        100.0 * (self.positive as f64 - self.negative as f64) / self.posts as f64
    }
}

/// The state of the screen.
#[derive(Debug, Default)]
struct Totals {
    all: Counts,
    dead: u64,
    brands: Map<String, Brand>,
}

#[derive(Debug, Default)]
struct Brand {
    total: Counts,
    /// Since the last screen but a few, so that a crisis shows while it happens.
    recent: Counts,
    last_negative: Option<String>,
}

/// Totals that the reader of the labelled topic fills and the screen shows.
#[derive(Debug, Default)]
pub struct Summary(Mutex<Totals>);

impl Summary {
    fn lock(&self) -> std::sync::MutexGuard<'_, Totals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a labelled post.
    pub fn labelled(&self, l: &Labelled) {
        let mut t = self.lock();
        t.all.add(l.label);
        for name in &l.brands {
            let b = t.brands.entry(name.to_string()).or_default();
            b.total.add(l.label);
            b.recent.add(l.label);
            if l.label == Label::Negative {
                b.last_negative = l.text.as_deref().map(|t| one_line(t, 60));
            }
        }
    }

    /// Takes a dead letter.
    pub fn dead(&self) {
        self.lock().dead += 1;
    }

    /// Labelled posts and dead letters so far.
    pub fn seen(&self) -> (u64, u64) {
        let t = self.lock();
        (t.all.posts, t.dead)
    }

    /// The screen as text, without control sequences.
    pub fn render(&self, head: &str) -> String {
        let mut t = self.lock();
        let mut out = format!(
            "{head}\nlabelled {}   dead letters {}   net sentiment {:+.0} %\n\n{:<12} {:>7} {:>6} {:>7}  {:<24}  last negative post\n",
            t.all.posts,
            t.dead,
            t.all.net(),
            "brand",
            "posts",
            "net %",
            "lately",
            "negative neutral positive",
        );
        for (name, b) in &mut t.brands {
            let said = b.last_negative.as_deref().unwrap_or("");
            out += &format!(
                "{name:<12} {:>7} {:>+6.0} {:>+7.0}  {}  {said}\n",
                b.total.posts,
                b.total.net(),
                b.recent.net(),
                bar(&b.recent, 24),
            );
            // Half of what was, so that "lately" follows with a memory of a few screens.
            let r = &mut b.recent;
            *r = Counts {
                posts: r.posts / 2,
                negative: r.negative / 2,
                neutral: r.neutral / 2,
                positive: r.positive / 2,
            };
        }
        out
    }
}

/// `width` characters: `-` negative, `.` neutral, `+` positive, in proportion.
fn bar(c: &Counts, width: usize) -> String {
    let total = (c.negative + c.neutral + c.positive).max(1) as usize;
    let part = |n: u64| (n as usize * width + total / 2) / total;
    let (neg, pos) = (part(c.negative), part(c.positive).min(width - part(c.negative)));
    let neutral = if c.posts == 0 { 0 } else { width - neg - pos };
    format!("{:<width$}", format!("{}{}{}", "-".repeat(neg), ".".repeat(neutral), "+".repeat(pos)))
}

/// A post's text for a terminal: no control characters (nor the bidi ones that reorder a line), at most
/// `max` characters.
fn one_line(text: &str, max: usize) -> String {
    let hostile = |c: char| c.is_control() || matches!(c, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let clean: String = text.chars().map(|c| if hostile(c) { ' ' } else { c }).collect();
    let mut out: String = clean.chars().take(max).collect();
    if clean.chars().count() > max {
        out.push('…');
    }
    out
}

/// Redraws in place on a terminal; elsewhere prints the two head lines only.
pub struct Screen {
    lines: usize,
    terminal: bool,
}

impl Screen {
    /// For standard output.
    pub fn new() -> Self {
        Self { lines: 0, terminal: std::io::stdout().is_terminal() }
    }

    /// Shows `text` in place of what was shown before.
    pub fn show(&mut self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.terminal {
            if self.lines > 0 {
                write!(out, "\x1b[{}A\x1b[J", self.lines)?;
            }
            self.lines = text.lines().count();
            write!(out, "{text}")?;
        } else {
            writeln!(out, "{}", text.lines().take(2).collect::<Vec<_>>().join("   "))?;
        }
        out.flush()
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_wide_as_it_should_be_for_any_counts() {
        for (n, u, p) in [(0, 0, 0), (1, 0, 0), (1, 1, 1), (0, 5, 1000), (7, 7, 8)] {
            let c = Counts { posts: n + u + p, negative: n, neutral: u, positive: p };
            assert_eq!(bar(&c, 24).chars().count(), 24, "{c:?}");
        }
        assert_eq!(bar(&Counts { posts: 4, negative: 1, neutral: 1, positive: 2 }, 8), "--..++++");
    }

    #[test]
    fn a_post_cannot_drive_the_terminal() {
        assert_eq!(one_line("a\x1b[2Jb\u{202E}c\nd", 60), "a [2Jb c d");
        assert_eq!(one_line("abcdef", 3), "abc…");
    }
}
