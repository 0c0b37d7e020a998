//! Believable posts for the demonstration and for load: a seeded stream in event time.
//!
//! The same seed, start and rate give the same records. The rate follows the hour (fewest at 4, most at 16
//! UTC); about one post in twelve repeats a recent text word for word; some records are broken or deletes, as in any
//! real feed. In the afternoon of each day one brand has a crisis: many more posts of it, nearly all
//! negative and naming one cause.

use std::collections::VecDeque;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use super::phrases::{BRANDS, CLOSERS, EMOJI, Invented, OPENERS, PLACES, SMALL_TALK, sentences};
use crate::{
    config,
    record::{
        Sentiment::{self, Negative, Neutral, Positive},
        Timestamp,
    },
};

/// A record of the invented feed, for the `generic` preset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedRecord {
    /// Kafka key: the author.
    pub key: Option<String>,
    /// Kafka value.
    pub payload: Vec<u8>,
    /// When it is posted. Never before the record that came before it.
    pub created_at: Timestamp,
    /// What must become of it.
    pub kind: Kind,
}

/// What must become of a generated record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A post: labelled.
    Post,
    /// Cannot be read: a dead letter.
    Broken,
    /// A delete: skipped.
    NoPost,
}

/// An endless stream of records in event time.
pub struct Generator {
    rng: StdRng,
    start: Timestamp,
    now_us: f64,
    posts_per_s: f64,
    recent: VecDeque<Said>,
    made: u64,
    next: Option<GeneratedRecord>,
}

/// What a post says, kept for reposts.
#[derive(Clone)]
struct Said {
    text: String,
    lang: &'static str,
}

const REPOSTS: f64 = 0.08;
const BROKEN: f64 = 0.006;
const DELETES: f64 = 0.006;
const UNRELATED: f64 = 0.12;
const RECENT: usize = 64;
/// How much louder the brand of a crisis gets.
const CRISIS_FACTOR: f64 = 6.0;
/// When the day's crisis begins and ends, seconds after the start of the stream's day.
const CRISIS_S: std::ops::Range<i64> = 48_600..57_600;
const DAY_S: i64 = 86_400;

impl Generator {
    /// A stream that begins at `start` with `posts_per_s` on a day's average, in event time.
    pub fn new(seed: u64, start: Timestamp, posts_per_s: f64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            start,
            now_us: start.0 as f64,
            posts_per_s: posts_per_s.max(1e-6),
            recent: VecDeque::with_capacity(RECENT),
            made: 0,
            next: None,
        }
    }

    /// The records up to and including `now`, which were not given out before.
    pub fn until(&mut self, now: Timestamp) -> Vec<GeneratedRecord> {
        let mut due = Vec::new();
        loop {
            let record = match self.next.take() {
                Some(record) => record,
                None => self.make(),
            };
            if record.created_at > now {
                self.next = Some(record);
                return due;
            }
            due.push(record);
        }
    }

    /// Posts a second at `t`: the daily rhythm, and the crisis while it lasts.
    pub fn rate_at(&self, t: Timestamp) -> f64 {
        let hour = t.0.rem_euclid(DAY_S * 1_000_000) as f64 / 3.6e9;
        let rhythm = 1.0 - 0.7 * ((hour - 4.0) / 24.0 * std::f64::consts::TAU).cos();
        let crisis = self.crisis(t).map_or(0.0, |b| BRANDS[b].weight * (CRISIS_FACTOR - 1.0));
        self.posts_per_s * (rhythm + crisis)
    }

    /// The brand in crisis at `t`: another one each day, beginning with the first.
    fn crisis(&self, t: Timestamp) -> Option<usize> {
        let seconds = (t.0 - self.start.0).div_euclid(1_000_000);
        let day = seconds.div_euclid(DAY_S).rem_euclid(BRANDS.len() as i64);
        CRISIS_S.contains(&seconds.rem_euclid(DAY_S)).then_some(day as usize)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }

    fn brand(&mut self, crisis: Option<usize>) -> usize {
        let weight = |i: usize| BRANDS[i].weight * if crisis == Some(i) { CRISIS_FACTOR } else { 1.0 };
        let mut left = self.rng.random_range(0.0..(0..BRANDS.len()).map(weight).sum::<f64>());
        for i in 0..BRANDS.len() {
            left -= weight(i);
            if left < 0.0 {
                return i;
            }
        }
        0
    }

    fn lang(&mut self) -> &'static str {
        match self.rng.random_range(0..100) {
            0..82 => "en",
            82..87 => "ja",
            87..93 => "es",
            93..97 => "de",
            _ => "fr",
        }
    }

    fn say(&mut self, crisis: Option<usize>) -> Said {
        if !self.recent.is_empty() && self.rng.random_bool(REPOSTS) {
            let i = self.rng.random_range(0..self.recent.len());
            return self.recent[i].clone();
        }
        let said = self.say_something_new(crisis);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(said.clone());
        said
    }

    fn say_something_new(&mut self, crisis: Option<usize>) -> Said {
        if crisis.is_none() && self.rng.random_bool(UNRELATED) {
            let (mood, template) = self.pick(&SMALL_TALK);
            let text = self.fill(template, &BRANDS[0]);
            return Said { text: self.adorn(text, mood, &BRANDS[0], false), lang: "en" };
        }
        let i = self.brand(crisis);
        let brand = &BRANDS[i];
        if crisis == Some(i) && self.rng.random_bool(0.85) {
            let template = self.pick(brand.crisis);
            let text = self.fill(template, brand);
            return Said { text: self.adorn(text, Negative, brand, true), lang: "en" };
        }
        let lang = self.lang();
        let mood = match self.rng.random_range(0.0..1.0) {
            x if x < brand.mood.0 => Negative,
            x if x < brand.mood.0 + brand.mood.1 => Neutral,
            _ => Positive,
        };
        let template = self.pick(sentences(lang, mood));
        let mut text = self.fill(template, brand);
        if lang == "en" {
            let closer = self.pick(of(&CLOSERS, mood));
            let closer = self.fill(closer, brand);
            text =
                format!("{}{text}{}{closer}", self.pick(&OPENERS), if closer.is_empty() { "" } else { "." });
        }
        Said { text: self.adorn(text, mood, brand, true), lang }
    }

    /// Fills the slots. The brand is written as people write it.
    fn fill(&mut self, template: &str, brand: &Invented) -> String {
        let written = match self.rng.random_range(0..10) {
            0..5 => brand.name.to_owned(),
            5..6 => brand.name.to_lowercase(),
            6..7 => brand.alias.to_owned(),
            7..8 => format!("#{}", brand.name.to_lowercase()),
            _ => format!("@{}", brand.handle),
        };
        let (thing, place) = (self.pick(brand.things), self.pick(&PLACES));
        let number = self.rng.random_range(2..30).to_string();
        template.replace("{b}", &written).replace("{t}", thing).replace("{p}", place).replace("{n}", &number)
    }

    /// Emoji, a link, a hashtag, now and then.
    fn adorn(&mut self, mut text: String, mood: Sentiment, brand: &Invented, tags: bool) -> String {
        if self.rng.random_bool(0.3) {
            text = format!("{text} {}", self.pick(of(&EMOJI, mood)));
        }
        if self.rng.random_bool(0.12) {
            text = format!("{text} https://t.example/{:06x}", self.rng.random_range(0..0x0100_0000));
        }
        if tags && self.rng.random_bool(0.1) {
            text = format!("{text} #{}", brand.name);
        }
        text
    }

    fn make(&mut self) -> GeneratedRecord {
        let rate = self.rate_at(Timestamp(self.now_us as i64));
        self.now_us -= self.rng.random_range(f64::MIN_POSITIVE..1.0).ln() / rate * 1e6;
        self.made += 1;
        let at = Timestamp(self.now_us as i64);
        let author = format!("user{:04}", self.rng.random_range(0..4000));
        let said = self.say(self.crisis(at));
        let post = self.post(said, &author, at);
        let (kind, payload) = match self.rng.random_range(0.0..1.0) {
            x if x < BROKEN => (Kind::Broken, self.broken(post)),
            x if x < BROKEN + DELETES => {
                (Kind::NoPost, json!({"id": post["id"], "deleted": true}).to_string().into_bytes())
            }
            _ => (Kind::Post, post.to_string().into_bytes()),
        };
        GeneratedRecord { key: Some(author), payload, created_at: at, kind }
    }

    fn post(&mut self, said: Said, author: &str, at: Timestamp) -> Value {
        let channel = match self.rng.random_range(0..100) {
            0..50 => "x",
            50..70 => "bluesky",
            70..80 => "mastodon",
            _ => "reddit",
        };
        let mut post = json!({
            "id": format!("{channel}-{:08}", self.made),
            "text": said.text,
            "created_at": at,
            "author": author,
            "channel": channel,
        });
        // Not every network says the language, nor how many follow.
        if self.rng.random_bool(0.8) {
            post["lang"] = said.lang.into();
        }
        if self.rng.random_bool(0.7) {
            let reach = 10f64.powf(self.rng.random_range(0.5..4.5));
            post["reach"] = (reach as i64).into();
        }
        post
    }

    /// A record such as every feed holds a few of: nothing of it can be labelled.
    fn broken(&mut self, post: Value) -> Vec<u8> {
        let mut post = post;
        match self.rng.random_range(0..5) {
            0 => {
                let bytes = post.to_string().into_bytes();
                return bytes[..bytes.len() / 2].to_vec();
            }
            1 => drop(post.as_object_mut().map(|o| o.remove("id"))),
            2 => post["text"] = json!({ "body": post["text"] }),
            3 => post["created_at"] = "yesterday".into(),
            _ => return b"\xFF\xFE{\"id\":1}".to_vec(),
        }
        post.to_string().into_bytes()
    }
}

fn of(table: &[(Sentiment, &'static [&'static str])], mood: Sentiment) -> &'static [&'static str] {
    table.iter().find(|(m, _)| *m == mood).map_or(&[""], |(_, list)| list)
}

/// The invented brands as configuration.
pub fn brands() -> Vec<config::Brand> {
    BRANDS
        .iter()
        .map(|b| config::Brand {
            name: b.name.into(),
            aliases: vec![b.alias.to_owned()],
            hashtags: vec![],
            handles: vec![b.handle.to_owned()],
            exclude: vec![],
        })
        .collect()
}

#[cfg(test)]
mod tests;
