//! Text preparation: what happens to a post's text before the tokenizer sees it.
//!
//! The settings travel with the model (`artifact.json`, `preparation`), and `training` calls this same
//! code, so that a model meets in production the text it was trained on.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// Which steps are applied, in the order of the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextPreparation {
    /// `\u2019` left as text by a feed becomes the character it names; surrogate pairs are joined and
    /// lone surrogates become U+FFFD.
    pub unescape_unicode: bool,
    /// HTML entities become characters (`&amp;` → `&`), once.
    pub unescape_html: bool,
    /// Unicode normalisation form C.
    pub nfc: bool,
    /// What a handle (`@name`) becomes; `None` leaves it.
    pub mask_users: Option<String>,
    /// What a link (`http://…`, `https://…`, `www.…`) becomes; `None` leaves it.
    pub mask_links: Option<String>,
    /// Runs of white space and control characters become one space; ends are trimmed.
    pub collapse_whitespace: bool,
}

impl TextPreparation {
    /// Every step on, with the masks that public tweet corpora use (`@user`, `http`).
    pub fn social() -> Self {
        Self {
            unescape_unicode: true,
            unescape_html: true,
            nfc: true,
            mask_users: Some("@user".into()),
            mask_links: Some("http".into()),
            collapse_whitespace: true,
        }
    }

    /// No step at all: for a model folder that does not say how its training texts were prepared.
    pub fn none() -> Self {
        Self {
            unescape_unicode: false,
            unescape_html: false,
            nfc: false,
            mask_users: None,
            mask_links: None,
            collapse_whitespace: false,
        }
    }

    /// The prepared text.
    pub fn apply(&self, text: &str) -> String {
        let mut t = Cow::Borrowed(text);
        if self.unescape_unicode && t.contains("\\u") {
            t = Cow::Owned(unescape_unicode(&t));
        }
        if self.unescape_html && t.contains('&') {
            t = Cow::Owned(htmlize::unescape(t.as_ref()).into_owned());
        }
        if self.nfc && !is_nfc(&t) {
            t = Cow::Owned(t.nfc().collect());
        }
        if self.mask_users.is_some() || self.mask_links.is_some() {
            t = Cow::Owned(self.mask(&t));
        }
        if self.collapse_whitespace {
            t = Cow::Owned(collapse(&t));
        }
        t.into_owned()
    }

    fn mask(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut prev: Option<char> = None;
        let mut i = 0;
        while i < text.len() {
            let rest = &text[i..];
            let at_word_start = prev.is_none_or(|c| !c.is_alphanumeric() && c != '_');
            if at_word_start && let Some((mask, len)) = self.masked_prefix(rest) {
                out.push_str(mask);
                i += len;
                prev = text[..i].chars().next_back();
                continue;
            }
            let Some(c) = rest.chars().next() else { break };
            out.push(c);
            prev = Some(c);
            i += c.len_utf8();
        }
        out
    }

    /// The mask for a link or handle that `rest` starts with, and the bytes it covers.
    fn masked_prefix<'a>(&'a self, rest: &str) -> Option<(&'a str, usize)> {
        if let Some(mask) = &self.mask_links
            && let Some(len) = link_len(rest)
        {
            return Some((mask, len));
        }
        if let Some(mask) = &self.mask_users
            && let Some(len) = handle_len(rest)
        {
            return Some((mask, len));
        }
        None
    }
}

/// Bytes of the link at the start of `s`: a scheme or `www.`, then all up to white space. A closing
/// bracket or quote, and sentence marks at the end, belong to the text and not to the link.
pub(crate) fn link_len(s: &str) -> Option<usize> {
    let lead = ["https://", "http://", "www."]
        .into_iter()
        .find(|p| s.get(..p.len()).is_some_and(|h| h.eq_ignore_ascii_case(p)))?;
    let end = s
        .find(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | '"' | '”' | '“' | '…'))
        .unwrap_or(s.len());
    let link = s[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '\'', '’']);
    (link.len() > lead.len()).then_some(link.len())
}

/// Bytes of the handle at the start of `s`: `@` and word characters; a dotted or dashed host part is
/// taken too (`@name.bsky.social`, `@name@host.org`).
fn handle_len(s: &str) -> Option<usize> {
    let body = s.strip_prefix('@')?;
    let mut end = 0;
    let mut chars = body.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        let inside = c.is_alphanumeric() || c == '_';
        let joins = matches!(c, '.' | '-' | '@')
            && end > 0
            && chars.peek().is_some_and(|(_, n)| n.is_ascii_alphanumeric());
        if !inside && !joins {
            break;
        }
        end = i + c.len_utf8();
    }
    (end > 0).then_some(1 + end)
}

/// `\uXXXX` → character. Anything that is not four hex digits stays as it is.
fn unescape_unicode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\u") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(unit) = code_unit(rest) else {
            out.push_str("\\u");
            rest = &rest[2..];
            continue;
        };
        rest = &rest[6..];
        match unit {
            0xD800..=0xDBFF => match code_unit(rest) {
                Some(low @ 0xDC00..=0xDFFF) => {
                    let c = 0x10000 + ((u32::from(unit) - 0xD800) << 10) + (u32::from(low) - 0xDC00);
                    out.push(char::from_u32(c).unwrap_or(char::REPLACEMENT_CHARACTER));
                    rest = &rest[6..];
                }
                _ => out.push(char::REPLACEMENT_CHARACTER),
            },
            _ => out.push(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER)),
        }
    }
    out.push_str(rest);
    out
}

/// The UTF-16 unit of a `\uXXXX` at the start of `s`.
fn code_unit(s: &str) -> Option<u16> {
    utf16_escape(s.as_bytes(), 0)
}

/// The UTF-16 unit of the `\uXXXX` at `at`; also what the decoder repairs lone surrogates with.
pub(crate) fn utf16_escape(bytes: &[u8], at: usize) -> Option<u16> {
    let hex = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    hex.iter().try_fold(0u16, |n, b| Some(n << 4 | (*b as char).to_digit(16)? as u16))
}

fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn social(s: &str) -> String {
        TextPreparation::social().apply(s)
    }

    #[test]
    fn escapes_left_by_a_feed_become_characters() {
        assert_eq!(social(r"I\u2019m \u002c fine"), "I’m , fine");
        assert_eq!(social(r"\ud83d\ude00 ok"), "😀 ok");
        assert_eq!(social(r"lone \ud83d end"), "lone \u{FFFD} end");
        assert_eq!(social(r"\u20 and \user and \u"), r"\u20 and \user and \u");
        assert_eq!(social(r"\u+123 \u20é9"), r"\u+123 \u20é9");
    }

    #[test]
    fn html_entities_are_unescaped_once() {
        assert_eq!(social("AT&amp;T &lt;3 &#39;x&#39;"), "AT&T <3 'x'");
        assert_eq!(social("&amp;lt;"), "&lt;");
    }

    #[test]
    fn handles_and_links_are_masked() {
        assert_eq!(social("@Bob_1 hi @a.bsky.social, see https://t.co/x?y=1."), "@user hi @user, see http.");
        assert_eq!(social("(http://t.co/abc) www.x.org"), "(http) http");
        assert_eq!(social("me@example.org a@b"), "me@example.org a@b");
        assert_eq!(social("@ alone, http:// alone"), "@ alone, http:// alone");
        assert_eq!(social("“@bob: hi”"), "“@user: hi”");
        assert_eq!(social("@山田 さん"), "@user さん");
    }

    #[test]
    fn composition_and_white_space() {
        assert_eq!(social("cafe\u{301}\n\n \t x\u{0}y "), "café x y");
        assert_eq!(social(""), "");
    }

    #[test]
    fn none_changes_nothing() {
        let t = r"  @a &amp; \u2019 http://x.y ";
        assert_eq!(TextPreparation::none().apply(t), t);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_prepared_without_panic_and_stays_prepared(s in "\\PC*|(\\\\u[0-9a-f]{0,4}|@|http://|&|;|.|\u{301}){0,20}") {
            let p = TextPreparation { unescape_html: false, unescape_unicode: false, ..TextPreparation::social() };
            let once = p.apply(&s);
            proptest::prop_assert!(!once.starts_with(' ') && !once.contains("  "));
            social(&s);
        }
    }
}
