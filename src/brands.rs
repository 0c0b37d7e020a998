//! Which brands a text mentions. Thousands of names in one pass over the text.
//!
//! Text and names are folded alike: escapes undone, compatibility forms (full-width, mathematical
//! letters) made plain, case and diacritics dropped, invisible characters removed, white space collapsed.
//! Then:
//!
//! - A **name or alias** matches as a whole word or phrase. A script that writes no spaces (Han, Kana, Thai,
//!   Lao, Khmer, Myanmar) has no word boundary, so there any place matches, and so does the border to
//!   another script (`新しいacmeの`). Korean particles are written onto the word: no boundary is asked for
//!   before Hangul on the right.
//! - `#acme` is the word with a mark before it. An alias of several words also matches as one hashtag
//!   (`acme corp` → `#acmecorp`). An alias never matches inside a handle, an e-mail address or a link: who
//!   is spoken to, or where a link leads, is not what is spoken of. List handles to count them.
//! - **Hashtags** match only with `#`, **handles** only with `@` and as the whole handle.
//! - An **exclusion** is a phrase; a mention of its brand inside it does not count.

use std::{collections::HashMap, ops::Range, sync::Arc};

use aho_corasick::AhoCorasick;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

use crate::{
    config::{self, SettingError},
    prepare::{TextPreparation, link_len},
};

/// Finds the configured brands in texts.
pub struct BrandMatcher {
    /// Sorted, so that an index orders as the name does.
    names: Vec<Arc<str>>,
    automaton: Option<AhoCorasick>,
    /// What each pattern of the automaton stands for; several brands may share one.
    uses: Vec<Vec<Use>>,
    unescape: TextPreparation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    brand: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A word or phrase.
    Word,
    /// `#` and a body.
    Hashtag,
    /// `@` and a body.
    Handle,
    /// A phrase inside which mentions do not count.
    Exclusion,
}

impl BrandMatcher {
    /// A matcher for the configured brands.
    ///
    /// # Errors
    /// A name or alias of which nothing is left to look for; the error names brand and key.
    pub fn new(brands: &[config::Brand]) -> Result<Self, SettingError> {
        let mut sorted: Vec<&config::Brand> = brands.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut patterns = Patterns::default();
        for (i, brand) in sorted.iter().enumerate() {
            patterns.add_brand(i, brand)?;
        }
        let automaton = match patterns.texts.is_empty() {
            true => None,
            false => Some(AhoCorasick::new(&patterns.texts).map_err(|e| SettingError {
                key: "brands".into(),
                message: format!("{} names cannot be compiled: {e}", patterns.texts.len()),
            })?),
        };
        Ok(Self {
            names: sorted.iter().map(|b| b.name.clone()).collect(),
            automaton,
            uses: patterns.uses,
            unescape: TextPreparation {
                unescape_unicode: true,
                unescape_html: true,
                ..TextPreparation::none()
            },
        })
    }

    /// The brands that `text` mentions, sorted by name, each once. `text` is the post's own: escapes and
    /// entities are undone here, and masking would hide the handles.
    pub fn find(&self, text: &str) -> Vec<Arc<str>> {
        let Some(automaton) = &self.automaton else { return Vec::new() };
        let folded = without_links(fold(&self.unescape.apply(text)));
        let handles = handle_spans(&folded);
        let mut mentions: Vec<(usize, Range<usize>)> = Vec::new();
        let mut exclusions: Vec<(usize, Range<usize>)> = Vec::new();
        for m in automaton.find_overlapping_iter(&folded) {
            for u in &self.uses[m.pattern().as_usize()] {
                if !fits(u.kind, &folded, m.range(), &handles) {
                    continue;
                }
                match u.kind {
                    Kind::Exclusion => exclusions.push((u.brand, m.range())),
                    Kind::Word => mentions.push((u.brand, m.range())),
                    // Without its mark, so that an exclusion of the bare phrase covers it.
                    Kind::Hashtag | Kind::Handle => mentions.push((u.brand, m.start() + 1..m.end())),
                }
            }
        }
        let covered = |brand: usize, span: &Range<usize>| {
            exclusions.iter().any(|(b, e)| *b == brand && e.start <= span.start && span.end <= e.end)
        };
        mentions.retain(|(brand, span)| !covered(*brand, span));
        let mut found: Vec<usize> = mentions.into_iter().map(|(brand, _)| brand).collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|i| self.names[i].clone()).collect()
    }
}

/// The distinct patterns and what each stands for.
#[derive(Default)]
struct Patterns {
    texts: Vec<String>,
    uses: Vec<Vec<Use>>,
    index: HashMap<String, usize>,
}

impl Patterns {
    fn add_brand(&mut self, brand: usize, b: &config::Brand) -> Result<(), SettingError> {
        self.add_alias(brand, b, "name", &b.name)?;
        for alias in &b.aliases {
            self.add_alias(brand, b, "aliases", alias)?;
        }
        for tag in &b.hashtags {
            let body = folded(b, "hashtags", tag.trim().trim_start_matches(['#', '＃']))?;
            self.add(format!("#{body}"), Use { brand, kind: Kind::Hashtag });
        }
        for handle in &b.handles {
            let body = folded(b, "handles", handle.trim().trim_start_matches(['@', '＠']))?;
            self.add(format!("@{body}"), Use { brand, kind: Kind::Handle });
        }
        for phrase in &b.exclude {
            self.add(folded(b, "exclude", phrase)?, Use { brand, kind: Kind::Exclusion });
        }
        Ok(())
    }

    /// An alias that is written with its `#` or `@` is a hashtag or a handle.
    fn add_alias(
        &mut self,
        brand: usize,
        b: &config::Brand,
        key: &str,
        alias: &str,
    ) -> Result<(), SettingError> {
        let text = folded(b, key, alias)?;
        let body = text.trim_start_matches(['#', '@']);
        if body.is_empty() || body == text {
            let tag: String = text.chars().filter(|c| is_word(*c)).collect();
            if !tag.is_empty() && tag != text {
                self.add(format!("#{tag}"), Use { brand, kind: Kind::Hashtag });
            }
            self.add(text, Use { brand, kind: Kind::Word });
        } else {
            let kind = if text.starts_with('#') { Kind::Hashtag } else { Kind::Handle };
            self.add(format!("{}{body}", &text[..1]), Use { brand, kind });
        }
        Ok(())
    }

    fn add(&mut self, text: String, u: Use) {
        let i = *self.index.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            self.uses.push(Vec::new());
            self.texts.len() - 1
        });
        if !self.uses[i].contains(&u) {
            self.uses[i].push(u);
        }
    }
}

fn folded(b: &config::Brand, key: &str, text: &str) -> Result<String, SettingError> {
    let folded = fold(text);
    if folded.is_empty() {
        let message = format!("'{text}' of brand '{}' has no visible character to look for", b.name);
        return Err(SettingError { key: format!("brands.{key}"), message });
    }
    Ok(folded)
}

/// Whether a pattern's match at `span` is a mention of its kind.
fn fits(kind: Kind, text: &str, span: Range<usize>, handles: &[Range<usize>]) -> bool {
    let before = text[..span.start].chars().next_back();
    let after = text[span.end..].chars().next();
    let ends = match (text[..span.end].chars().next_back(), after) {
        (Some(last), Some(next)) => !joined_right(last, next),
        _ => true,
    };
    let begins = match (before, text[span.start..].chars().next()) {
        (Some(previous), Some(first)) => !joined_left(previous, first),
        _ => true,
    };
    let in_handle = || handles.iter().any(|h| h.start < span.end && span.start < h.end);
    match kind {
        Kind::Hashtag => ends && !in_handle(),
        Kind::Handle => ends && !before.is_some_and(is_word) && !handle_goes_on(&text[span.end..]),
        Kind::Exclusion => begins && ends,
        Kind::Word => begins && ends && !in_handle(),
    }
}

fn joined_left(previous: char, first: char) -> bool {
    is_combining_mark(first) || (same_script(previous, first) && is_hangul(previous) == is_hangul(first))
}

fn joined_right(last: char, next: char) -> bool {
    is_combining_mark(next) || (same_script(last, next) && !is_hangul(last) && !is_hangul(next))
}

/// Both are parts of words, of scripts that separate their words.
fn same_script(a: char, b: char) -> bool {
    is_word(a) && is_word(b) && !is_unspaced(a) && !is_unspaced(b)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || is_combining_mark(c)
}

/// Scripts that write no spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF                                           // Thai, Lao
        | 0x1000..=0x109F | 0xA9E0..=0xA9FF | 0xAA60..=0xAA7F     // Myanmar
        | 0x1780..=0x17FF | 0x19E0..=0x19FF                       // Khmer
        | 0x2E80..=0x2FDF | 0x3005..=0x3007 | 0x3021..=0x303B     // Han: radicals, marks, numerals
        | 0x3040..=0x312F | 0x31A0..=0x31BF | 0x31F0..=0x31FF     // Kana, Bopomofo
        | 0x3400..=0x4DBF | 0x4E00..=0x9FFF | 0xF900..=0xFAFF     // Han
        | 0x1B000..=0x1B16F | 0x20000..=0x3FFFF)
}

fn is_hangul(c: char) -> bool {
    matches!(u32::from(c), 0x1100..=0x11FF | 0x3130..=0x318F | 0xA960..=0xA97F | 0xAC00..=0xD7FF)
}

/// True where `rest` carries on a dotted, dashed or hosted handle (`.bsky.social`, `@host.org`).
fn handle_goes_on(rest: &str) -> bool {
    let mut chars = rest.chars();
    matches!(chars.next(), Some('.' | '-' | '@')) && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
}

/// Where handles and e-mail addresses stand. Handles are ASCII on all the networks, and Japanese posts
/// write on behind one without a space, so a handle ends at the first other letter.
fn handle_spans(text: &str) -> Vec<Range<usize>> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut spans = Vec::new();
    for (at, _) in text.match_indices('@') {
        let body = &text[at + 1..];
        let stop = body
            .char_indices()
            .find(|(i, c)| !(inside(*c) || *i > 0 && handle_goes_on(&body[*i..])))
            .map_or(body.len(), |(i, _)| i);
        if stop == 0 {
            continue;
        }
        let local = |c: char| inside(c) || matches!(c, '.' | '-' | '+');
        let start = text[..at].trim_end_matches(local).len();
        spans.push(start..at + 1 + stop);
    }
    spans
}

/// The text with its links blanked.
fn without_links(text: String) -> String {
    if !text.contains("://") && !text.contains("www.") {
        return text;
    }
    let mut out = String::with_capacity(text.len());
    let mut previous = ' ';
    let mut i = 0;
    while let Some(c) = text[i..].chars().next() {
        match link_len(&text[i..]) {
            Some(len) if !is_word(previous) => {
                out.push(' ');
                previous = ' ';
                i += len;
            }
            _ => {
                out.push(c);
                previous = c;
                i += c.len_utf8();
            }
        }
    }
    out
}

/// The form in which texts and names are compared.
///
/// A mark that composes with an ASCII letter is a diacritic and is dropped, so runs of ASCII, most of
/// most texts, need no normalisation.
fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let ascii = rest.bytes().position(|b| !b.is_ascii()).unwrap_or(rest.len());
        rest[..ascii].chars().for_each(|c| push(&mut out, c.to_ascii_lowercase()));
        rest = &rest[ascii..];
        let wide = rest.bytes().position(|b| b.is_ascii()).unwrap_or(rest.len());
        if wide > 0 {
            let plain = rest[..wide].chars().filter(|c| !is_invisible(*c)).map(separate_signs);
            let bare = plain.nfkd().filter(|c| !is_diacritic(*c));
            bare.flat_map(char::to_lowercase).flat_map(fold_char).nfc().for_each(|c| push(&mut out, c));
        }
        rest = &rest[wide..];
    }
    out.truncate(out.trim_end().len());
    out
}

fn push(out: &mut String, c: char) {
    if !c.is_whitespace() && !c.is_control() {
        out.push(c);
    } else if !out.is_empty() && !out.ends_with(' ') {
        out.push(' ');
    }
}

/// Signs that follow a name (`Acme™`) would become letters of it in compatibility form.
fn separate_signs(c: char) -> char {
    match c {
        '™' | '℠' | '®' | '©' => ' ',
        '\u{2018}' | '\u{2019}' | '\u{02BC}' => '\'',
        '\u{2010}'..='\u{2013}' | '\u{2212}' => '-',
        _ => c,
    }
}

/// What lower-casing leaves of case, and letters with a stroke, which Unicode does not decompose.
fn fold_char(c: char) -> impl Iterator<Item = char> {
    let (first, second) = match c {
        'ß' => ('s', Some('s')),
        'æ' => ('a', Some('e')),
        'œ' => ('o', Some('e')),
        'ø' => ('o', None),
        'ł' => ('l', None),
        'đ' => ('d', None),
        'ħ' => ('h', None),
        'ı' => ('i', None),
        'ς' => ('σ', None),
        c => (c, None),
    };
    std::iter::once(first).chain(second)
}

/// Accents of Latin, Greek and Cyrillic, Arabic vowel signs and tatweel, Hebrew points. Not the vowel
/// signs of Indic scripts nor the voicing marks of Kana, which tell words apart.
fn is_diacritic(c: char) -> bool {
    matches!(u32::from(c),
        0x0300..=0x036F | 0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x20D0..=0x20FF | 0xFE20..=0xFE2F
        | 0x0610..=0x061A | 0x0640 | 0x064B..=0x065F | 0x0670 | 0x06D6..=0x06DC | 0x06DF..=0x06E8 | 0x06EA..=0x06ED
        | 0x0591..=0x05BD | 0x05BF | 0x05C1..=0x05C2 | 0x05C4..=0x05C5 | 0x05C7)
}

/// Characters without width: joiners, direction marks, soft hyphens, variation selectors, tags.
fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0x00AD | 0x034F | 0x061C | 0x180E | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F
        | 0xFE00..=0xFE0F | 0xFEFF | 0xE0000..=0xE01EF)
}

#[cfg(test)]
mod tests;
