//! Prepared text → token ids. The only room that knows the `tokenizers` crate.

use std::path::Path;

use tokenizers::{Tokenizer as Inner, TruncationParams};

/// Token ids of one text, special tokens included. All ids belong to the first segment and all are
/// attended to, so type ids (zeros) and mask (ones) are made where a batch is padded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Encoding {
    /// Token ids, `1 ..= max_tokens` of them.
    pub ids: Vec<u32>,
}

impl Encoding {
    /// Tokens, special ones included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True for a tokenizer that adds no special tokens and a text without any token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Why a tokenizer could not be had, or could not encode.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// `tokenizer.json` is missing or not understood.
    #[error("{path}: cannot read the tokenizer: {message}")]
    Load {
        /// The file.
        path: String,
        /// The library's reason.
        message: String,
    },
    /// The library refused a text.
    #[error("cannot tokenize: {0}")]
    Encode(String),
}

/// A tokenizer with truncation at `max_tokens` and no padding; safe to share between threads.
pub struct Tokenizer {
    inner: Inner,
    pad_id: u32,
    max_chars: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`. Padding and truncation that the file asks for are replaced: batches
    /// are padded later, to what they need.
    pub fn from_file(path: &Path, max_tokens: usize) -> Result<Self, TokenizeError> {
        let fail = |message: String| TokenizeError::Load { path: path.display().to_string(), message };
        let mut inner = Inner::from_file(path).map_err(|e| fail(e.to_string()))?;
        let pad_id = inner
            .get_padding()
            .map(|p| p.pad_id)
            .or_else(|| inner.token_to_id("[PAD]"))
            .or_else(|| inner.token_to_id("<pad>"))
            .unwrap_or(0);
        inner.with_padding(None);
        inner
            .with_truncation(Some(TruncationParams { max_length: max_tokens, ..TruncationParams::default() }))
            .map_err(|e| fail(e.to_string()))?;
        // A token of the vocabularies in use covers a handful of characters. Cutting a megabyte of
        // text long before the tokenizer keeps its cost bounded and cannot change the kept tokens:
        // a word is never split by this cut (see `bounded`).
        Ok(Self { inner, pad_id, max_chars: max_tokens * 32 })
    }

    /// The id that pads a batch.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Encodes one prepared text.
    pub fn encode(&self, prepared: &str) -> Result<Encoding, TokenizeError> {
        let e = self
            .inner
            .encode_fast(self.bounded(prepared), true)
            .map_err(|e| TokenizeError::Encode(e.to_string()))?;
        Ok(Encoding { ids: e.get_ids().to_vec() })
    }

    /// The tokens themselves, for people.
    pub fn tokens(&self, encoding: &Encoding) -> Vec<String> {
        encoding
            .ids
            .iter()
            .map(|id| self.inner.id_to_token(*id).unwrap_or_else(|| format!("#{id}")))
            .collect()
    }

    /// `text` cut after `max_chars` characters, at the next white space within as many again.
    fn bounded<'a>(&self, text: &'a str) -> &'a str {
        if text.len() <= self.max_chars {
            return text;
        }
        let mut cut = None;
        for (n, (i, c)) in text.char_indices().enumerate() {
            if n >= 2 * self.max_chars {
                cut = Some(i);
                break;
            }
            if n >= self.max_chars && c.is_whitespace() {
                cut = Some(i);
                break;
            }
        }
        cut.map_or(text, |i| &text[..i])
    }
}
