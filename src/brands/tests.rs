#![allow(clippy::unwrap_used)]
use super::*;
use crate::config::Brand;

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(|s| (*s).to_owned()).collect()
}

fn brand(name: &str, aliases: &[&str], hashtags: &[&str], handles: &[&str], exclude: &[&str]) -> Brand {
    Brand {
        name: name.into(),
        aliases: list(aliases),
        hashtags: list(hashtags),
        handles: list(handles),
        exclude: list(exclude),
    }
}

fn found(m: &BrandMatcher, text: &str) -> String {
    m.find(text).join(",")
}

fn matcher() -> BrandMatcher {
    BrandMatcher::new(&[
        brand("Nörd Café", &["Straße 7", "C++"], &[], &[], &[]),
        brand(
            "Acme",
            &["acme corp", "アクメ", "삼성", "อักมี", "أكمي", "AT&T"],
            &["acmefail"],
            &["acme_help"],
            &["acme looniversity", "wile acme"],
        ),
        brand("राम", &[], &[], &[], &[]),
    ])
    .unwrap()
}

#[test]
fn words_match_whole_and_whatever_their_case_and_accents() {
    let m = matcher();
    for text in [
        "ACME rocks",
        "I hate acme.",
        "(acme)",
        "acme's phone",
        "l’Acme",
        "Äcmé",
        "a\u{301}cme",
        "Ａｃｍｅ",
        "𝐀𝐜𝐦𝐞",
        "Acme™ and",
        "Acme® x",
        "ac\u{200b}me",
        "a\u{202e}cme",
        "acme\u{fe0f}",
        "acme&amp;co",
        r"it\u2019s\u0020acme",
        "the ACME   Corp\n",
        "at&t",
        "AT&amp;T",
        "acme—no",
        "ACME/Foo",
        "😀acme😀",
    ] {
        assert_eq!(found(&m, text), "Acme", "{text}");
    }
    for text in ["acmes", "macme", "acme2", "acme_x", "xacme", "ac me", "", "acmé_", "#acmefailure"] {
        assert_eq!(found(&m, text), "", "{text}");
    }
    for text in ["nord cafe", "NÖRD  CAFÉ!", "Strasse 7", "STRAẞE 7", "I love C++, really", "(c++)"] {
        assert_eq!(found(&m, text), "Nörd Café", "{text}");
    }
}

#[test]
fn scripts_without_spaces_match_anywhere_and_marks_stay_with_their_letters() {
    let m = matcher();
    for text in [
        "新しいアクメの製品",
        "acmeの製品",
        "我买了acme的",
        "ｱｸﾒ",
        "#アクメ最高",
        "삼성은 좋다",
        "LG삼성",
        "acme는",
        "ซื้ออักมีแล้ว",
        "أَكْمِي",
        "اكمي",
    ] {
        assert_eq!(found(&m, text), "Acme", "{text}");
    }
    for text in ["우삼성", "アグメ", "أكميل", "อักมี\u{e48}"] {
        assert_eq!(found(&m, text), "", "{text}");
    }
    assert_eq!(found(&m, "जय राम!"), "राम");
    assert_eq!(found(&m, "रामा"), "");
}

#[test]
fn hashtags_handles_addresses_and_links() {
    let m = matcher();
    for text in
        ["#acme", "＃Acme", "#AcmeCorp now", "#ACMEFAIL", "hey @Acme_Help!", "＠acme_help", "@acme_helpに"]
    {
        assert_eq!(found(&m, text), "Acme", "{text}");
    }
    for text in [
        "@acme",
        "@acme_help2",
        "@acme_help.bsky.social",
        "x@acme.com",
        "acme@mail.org",
        "@bob@acme.social",
        "acmefail",
        "acme_help",
        "#acmefails",
        "https://acme.com/x",
        "see www.acme.com.",
        "http://t.co/acme",
        "a@acme_help",
    ] {
        assert_eq!(found(&m, text), "", "{text}");
    }
    assert_eq!(found(&m, "acme http://x.y/z"), "Acme");
    let marked = BrandMatcher::new(&[brand("X", &["#foo bar", "@baz"], &["#q"], &["@r"], &[])]).unwrap();
    for (text, expected) in
        [("#foo bar", "X"), ("@baz", "X"), ("baz", ""), ("#q", "X"), ("@r", "X"), ("q r", "")]
    {
        assert_eq!(found(&marked, text), expected, "{text}");
    }
}

#[test]
fn an_exclusion_covers_the_mentions_inside_it_and_no_others() {
    let m = matcher();
    assert_eq!(found(&m, "Acme Looniversity is a school"), "");
    assert_eq!(found(&m, "the #Acme Looniversity"), "");
    assert_eq!(found(&m, "wile acme and acme"), "Acme");
    assert_eq!(found(&m, "acme looniversitys"), "Acme");
    let two =
        [brand("A", &["jam"], &[], &[], &["pearl jam"]), brand("B", &["jam", "pearl jam"], &[], &[], &[])];
    assert_eq!(found(&BrandMatcher::new(&two).unwrap(), "Pearl Jam live"), "B");
}

#[test]
fn brands_are_sorted_each_once_and_may_share_an_alias() {
    let brands = [brand("Zed", &["fizz", "fizzy"], &[], &[], &[]), brand("Abe", &["fizz"], &[], &[], &[])];
    assert_eq!(found(&BrandMatcher::new(&brands).unwrap(), "zed fizz fizzy fizz"), "Abe,Zed");
    assert!(BrandMatcher::new(&[]).unwrap().find("anything").is_empty());
}

#[test]
fn an_alias_of_nothing_is_an_error_that_names_it() {
    for (key, b) in [
        ("brands.aliases", brand("Acme", &["\u{200b} "], &[], &[], &[])),
        ("brands.aliases", brand("Acme", &[""], &[], &[], &[])),
        ("brands.hashtags", brand("Acme", &[], &["#"], &[], &[])),
        ("brands.handles", brand("Acme", &[], &[], &["@ "], &[])),
        ("brands.exclude", brand("Acme", &[], &[], &[], &["\u{301}é".trim_end_matches('é')])),
    ] {
        let e = BrandMatcher::new(&[b]).err().unwrap().to_string();
        assert!(e.starts_with(key) && e.contains("'Acme'"), "{e}");
    }
}

/// The same rules, written slowly and without the automaton: every place of every pattern.
fn oracle(brands: &[Brand], text: &str) -> Vec<String> {
    let t: Vec<char> = fold(text).chars().collect();
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let kana = |c: char| ('ア'..='ン').contains(&c);
    let spaced = |c: char| word(c) && !kana(c);
    let places = |pattern: &str| -> Vec<(usize, usize)> {
        let p: Vec<char> = pattern.chars().collect();
        (0..t.len()).filter(|i| t[*i..].starts_with(&p)).map(|i| (i, i + p.len())).collect()
    };
    let free_left = |i: usize| i == 0 || !(spaced(t[i - 1]) && spaced(t[i]));
    let free_right = |j: usize| j == t.len() || !(spaced(t[j - 1]) && spaced(t[j]));
    // A character belongs to a handle when an '@' stands before it with handle characters between, or
    // to an address when an '@' and a handle character follow its run.
    let ascii = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let in_handle = |i: usize| {
        let mut k = i;
        while k > 0 && ascii(t[k - 1]) {
            k -= 1;
        }
        let mut e = i;
        while e < t.len() && ascii(t[e]) {
            e += 1;
        }
        let handle = k > 0 && t[k - 1] == '@' && ascii(t[i]);
        let address = ascii(t[i]) && e + 1 < t.len() && t[e] == '@' && ascii(t[e + 1]);
        handle || address
    };
    let tag_fits = |i: usize, j: usize| free_right(j) && !(i + 1..j).any(in_handle);
    let mut names = Vec::new();
    for b in brands {
        let covered = |i: usize, j: usize| {
            b.exclude
                .iter()
                .flat_map(|x| places(&fold(x)))
                .any(|(s, e)| free_left(s) && free_right(e) && s <= i && j <= e)
        };
        let words = b.aliases.iter().chain([&b.name.to_string()]).any(|a| {
            places(&fold(a))
                .iter()
                .any(|(i, j)| free_left(*i) && free_right(*j) && !(*i..*j).any(in_handle) && !covered(*i, *j))
                || places(&format!("#{}", fold(a).replace(' ', "")))
                    .iter()
                    .any(|(i, j)| tag_fits(*i, *j) && !covered(i + 1, *j))
        });
        let tags = b.hashtags.iter().any(|h| {
            places(&format!("#{}", fold(h))).iter().any(|(i, j)| tag_fits(*i, *j) && !covered(i + 1, *j))
        });
        let handles = b.handles.iter().any(|h| {
            places(&format!("@{}", fold(h))).iter().any(|(i, j)| {
                let goes_on =
                    t.get(*j) == Some(&'@') && t.get(j + 1).is_some_and(char::is_ascii_alphanumeric);
                (*i == 0 || !word(t[i - 1])) && free_right(*j) && !goes_on && !covered(i + 1, *j)
            })
        });
        if words || tags || handles {
            names.push(b.name.to_string());
        }
    }
    names.sort();
    names
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    #[test]
    fn the_automaton_finds_what_a_slow_search_finds(text in "([abABé#@ _アイ]|ab|ba|b a){0,14}") {
        let brands = [
            brand("ab", &["b a", "aアb"], &["ba"], &["a_"], &["ab a", "bab"]),
            brand("ba", &["ab", "アイ"], &["b"], &["ab", "b"], &["b a b", "ab ab"]),
            brand("a", &["イ"], &[], &[], &["a a"]),
        ];
        let m = BrandMatcher::new(&brands).unwrap();
        let names: Vec<String> = m.find(&text).iter().map(|n| n.to_string()).collect();
        proptest::prop_assert_eq!(names, oracle(&brands, &text), "{}", text);
    }

    #[test]
    fn any_text_and_any_alias_are_taken(text in "\\PC{0,60}", alias in "\\PC{1,8}") {
        if let Ok(m) = BrandMatcher::new(&[brand("B", &[&alias], &[&alias], &[&alias], &[])]) {
            m.find(&text);
        }
    }

    #[test]
    fn folding_a_folded_text_changes_nothing_for_latin(text in "[a-zA-ZÀ-ÿ ’'.-]{0,30}") {
        let once = fold(&text);
        proptest::prop_assert_eq!(fold(&once), once);
    }
}
