//! The front of the processor, for one record: decode, prepare, brands, language, tokenize. Pure, and
//! shared between threads. At the back, how a candidate and its verdict become the labelled record.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    brands::BrandMatcher,
    classify::artifact::Artifact,
    config::{Config, SettingError},
    decode::{Decoded, Decoder},
    language::Detector,
    prepare::TextPreparation,
    record::{Labelled, ModelId, Position, Post, RawRecord, Stage, Verdict},
    tokenize::{Encoding, TokenizeError, Tokenizer},
};

/// `lang` of a post whose language nobody knows.
pub const UNKNOWN_LANG: &str = "und";
/// `channel` of a post that names none.
pub const UNKNOWN_CHANNEL: &str = "unknown";

/// A post that is ready for the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The post, its text whole.
    pub post: Post,
    /// Names of the brands it mentions, sorted.
    pub brands: Vec<Arc<str>>,
    /// Its language: its own, else detected, else [`UNKNOWN_LANG`].
    pub lang: String,
    /// Its channel, else [`UNKNOWN_CHANNEL`].
    pub channel: String,
    /// The text as the model meets it: cut at `decode.limits.max_text_chars` and prepared. The key of the
    /// repeat cache.
    pub prepared: String,
    /// Its token ids.
    pub encoding: Encoding,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// To be classified.
    Candidate(Box<Candidate>),
    /// No post; the word says what it was.
    Skip(&'static str),
    /// A dead letter.
    Dead {
        /// Which stage refused it.
        stage: Stage,
        /// A short stable word.
        reason: &'static str,
        /// One line for people, without the post's text.
        message: String,
    },
}

/// Why no front could be built.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The model's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizeError),
}

/// Records → candidates.
pub struct Front {
    decoder: Decoder,
    brands: BrandMatcher,
    detector: Option<Detector>,
    preparation: TextPreparation,
    tokenizer: Tokenizer,
    max_text_chars: usize,
    tokenizing_ns: AtomicU64,
}

impl Front {
    /// A front for the configured feed and brands and the artifact's preparation and tokenizer.
    ///
    /// # Errors
    /// A JSON pointer or an alias that cannot be used, or a tokenizer that cannot be read.
    pub fn new(config: &Config, artifact: &Artifact) -> Result<Self, FrontError> {
        Ok(Self {
            decoder: Decoder::new(&config.decode)?,
            brands: BrandMatcher::new(&config.brands)?,
            detector: Detector::new(&config.language),
            preparation: artifact.preparation.clone(),
            tokenizer: Tokenizer::from_file(&artifact.dir.join("tokenizer.json"), artifact.max_tokens)?,
            max_text_chars: config.decode.limits.max_text_chars,
            tokenizing_ns: AtomicU64::new(0),
        })
    }

    /// The id that pads a batch.
    pub fn pad_id(&self) -> u32 {
        self.tokenizer.pad_id()
    }

    /// Time spent in the tokenizer so far, summed over threads; for reports, no outcome depends on it.
    pub fn tokenizing(&self) -> Duration {
        Duration::from_nanos(self.tokenizing_ns.load(Ordering::Relaxed))
    }

    /// Takes one record as far as the model.
    pub fn process(&self, record: &RawRecord) -> Outcome {
        match self.decoder.decode(record) {
            Decoded::Post(post) => self.candidate(post),
            Decoded::Skip(reason) => Outcome::Skip(reason),
            Decoded::Reject { reason, message } => Outcome::Dead { stage: Stage::Decode, reason, message },
        }
    }

    fn candidate(&self, post: Post) -> Outcome {
        let prepared = self.preparation.apply(cut(&post.text, self.max_text_chars));
        if prepared.trim().is_empty() {
            return Outcome::Skip("empty_text");
        }
        let dead = |reason, message| Outcome::Dead { stage: Stage::Tokenize, reason, message };
        let begun = Instant::now();
        let encoded = self.tokenizer.encode(&prepared);
        self.tokenizing_ns.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let encoding = match encoded {
            Ok(e) if e.is_empty() => {
                return dead("no_tokens", "the tokenizer found no token in the text".into());
            }
            Ok(e) => e,
            Err(e) => return dead("tokenizer", e.to_string()),
        };
        let detected = || self.detector.and_then(|d| d.detect(&prepared)).unwrap_or(UNKNOWN_LANG).to_owned();
        Outcome::Candidate(Box::new(Candidate {
            brands: self.brands.find(&post.text),
            lang: post.lang.clone().unwrap_or_else(detected),
            channel: post.channel.clone().unwrap_or_else(|| UNKNOWN_CHANNEL.to_owned()),
            prepared,
            encoding,
            post,
        }))
    }
}

/// The first `max_chars` characters.
fn cut(text: &str, max_chars: usize) -> &str {
    if text.len() <= max_chars {
        return text;
    }
    text.char_indices().nth(max_chars).map_or(text, |(i, _)| &text[..i])
}

/// The labelled record of a candidate. Nothing in it comes from the clock.
pub fn labelled(
    candidate: &Candidate,
    verdict: &Verdict,
    model: &ModelId,
    position: &Position,
    keep_text: bool,
) -> Labelled {
    let post = &candidate.post;
    Labelled {
        schema: Labelled::SCHEMA,
        id: post.id.clone(),
        created_at: post.created_at,
        label: verdict.label,
        confidence: verdict.confidence,
        scores: verdict.scores,
        brands: candidate.brands.clone(),
        lang: candidate.lang.clone(),
        channel: candidate.channel.clone(),
        author: post.author.clone(),
        reach: post.reach,
        text: keep_text.then(|| post.text.clone()),
        model: model.clone(),
        source: position.into(),
    }
}

#[cfg(test)]
mod tests;
