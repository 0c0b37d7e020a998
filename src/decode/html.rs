//! The small HTML of a Mastodon status → text. Links keep what a reader sees, paragraphs and breaks
//! become new lines, entities become characters.

/// The text of an HTML fragment.
pub(super) fn to_text(html: &str) -> String {
    let mut out = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        push_text(&mut out, &rest[..at]);
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end + 3..]);
            continue;
        }
        let Some(tag) = Tag::at(rest) else {
            out.push('<');
            rest = &rest[1..];
            continue;
        };
        rest = &rest[tag.len..];
        if !tag.closing && ["script", "style"].iter().any(|n| tag.name.eq_ignore_ascii_case(n)) {
            rest = after_closing(rest, tag.name);
        }
        push_break(&mut out, &tag);
    }
    push_text(&mut out, rest);
    out.truncate(out.trim_end().len());
    out
}

fn push_text(out: &mut String, escaped: &str) {
    if escaped.contains('&') {
        out.push_str(&htmlize::unescape(escaped));
    } else {
        out.push_str(escaped);
    }
}

fn push_break(out: &mut String, tag: &Tag<'_>) {
    let blocks = ["p", "div", "li", "ul", "ol", "blockquote", "pre", "h1", "h2", "h3", "h4", "h5", "h6"];
    let block = blocks.iter().any(|b| tag.name.eq_ignore_ascii_case(b));
    if tag.name.eq_ignore_ascii_case("br") || (block && !out.is_empty() && !out.ends_with('\n')) {
        out.push('\n');
    }
}

struct Tag<'a> {
    name: &'a str,
    closing: bool,
    len: usize,
}

impl<'a> Tag<'a> {
    /// The tag at the start of `s`; `None` for a `<` that opens none (`a < b`, `<3`).
    fn at(s: &'a str) -> Option<Self> {
        let body = s.strip_prefix('<')?;
        let closing = body.starts_with('/');
        let body = body.strip_prefix('/').unwrap_or(body);
        if !body.starts_with(|c: char| c.is_ascii_alphabetic() || c == '!') {
            return None;
        }
        let name = &body[..body.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(body.len())];
        let mut quote = None;
        for (i, b) in s.bytes().enumerate() {
            match (quote, b) {
                (None, b'>') => return Some(Self { name, closing, len: i + 1 }),
                (None, b'"' | b'\'') => quote = Some(b),
                (Some(q), _) if q == b => quote = None,
                _ => {}
            }
        }
        // Cut off inside a tag: nothing of it is text.
        Some(Self { name, closing, len: s.len() })
    }
}

/// What follows the closing tag of `name`.
fn after_closing<'a>(s: &'a str, name: &str) -> &'a str {
    let mut rest = s;
    while let Some(at) = rest.find("</") {
        // The name is compared before the tag's end is looked for, or a hostile text costs its square.
        let named = rest[at + 2..].get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name));
        if named {
            return Tag::at(&rest[at..]).map_or("", |tag| &rest[at + tag.len..]);
        }
        rest = &rest[at + 2..];
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_sees_is_kept() {
        for (html, text) in [
            ("<p>One<br>two<br/>three</p><p>four</p>", "One\ntwo\nthree\nfour"),
            (
                r#"<p><span class="h-card"><a href="https://m.example/@bo" class="u-url mention">@<span>bo</span></a></span> hi <a href="https://m.example/tags/acme" rel="tag">#<span>acme</span></a></p>"#,
                "@bo hi #acme",
            ),
            (
                r#"<a href="https://e.org/a?x=1&amp;y=2"><span class="invisible">https://</span><span class="ellipsis">e.org/a</span><span class="invisible">?x=1&amp;y=2</span></a>"#,
                "https://e.org/a?x=1&y=2",
            ),
            ("a < b &lt;3 <3 &amp;amp; Q&A", "a < b <3 <3 &amp; Q&A"),
            (r#"<a title="x > y">t</a><!-- <p>no</p> -->u"#, "tu"),
            ("<script>var a = '</p>';</script>ok<STYLE>p{}</STYLE>", "ok"),
            ("cut <a href=\"htt", "cut "),
            ("<ul><li>a</li><li>b</li></ul>", "a\nb"),
            ("plain", "plain"),
            ("", ""),
        ] {
            assert_eq!(to_text(html), text.trim_end(), "{html}");
        }
    }

    #[test]
    fn hostile_markup_costs_no_more_than_its_length_allows() {
        let text = to_text(&"<".repeat(100_000));
        assert_eq!(text.len(), 100_000);
        assert_eq!(to_text(&"<a".repeat(50_000)), "");
        assert_eq!(to_text(&"</script".repeat(50_000)), "");
        to_text(&format!("<script>{}", "</x ".repeat(20_000)));
    }

    proptest::proptest! {
        #[test]
        fn any_markup_is_read(s in "(<|>|/|!|-|\"|'|a|p|br|script|&amp;|\\PC){0,60}") {
            to_text(&s);
        }
    }
}
