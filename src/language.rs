//! The language of a post: what the feed says, brought to one form, else a guess.
//!
//! Three detectors were tried on 300 short posts a language (ar de en es fr it ja pt zh), handles and
//! links removed, one thread of a shared two-core machine:
//!
//! | | right | none | wrong | texts/s | memory |
//! |---|---|---|---|---|---|
//! | whatlang 0.18, any confidence | 92.1 % | 0 | 7.9 % | 12 000 | 1 MB |
//! | whatlang 0.18, confidence ≥ 0.5 | 77.1 % | 22.4 % | 0.5 % | 13 000 | 1 MB |
//! | lingua 1.8, 16 languages | 98.2 % | 0 | 1.8 % | 2 000 | 48 MB |
//! | whichlang 0.1 | 97.3 % | 0 | 2.7 % | 590 000 | 1 MB |
//! | whichlang 0.1 and the checks below, ≥ 0.5 | 96.0 % | 1.7 % | 2.3 % | 100 000 | 1 MB |
//!
//! whichlang it is: its few microseconds leave the core to the model. It knows sixteen languages and always names
//! one of them, so three checks stand around it: a script that only one language of note uses (Thai, Greek,
//! Hebrew, …) answers by itself; a guess whose language is not written in the text's main script is dropped; and
//! its **confidence** is the share of the text's pieces (up to four, of at least twenty characters) that are
//! guessed like the whole. A post in a Latin-script language that it does not know (Indonesian, Polish)
//! is still named wrongly three times in four: where that matters, let the feed say the language.

use whichlang::Lang;

use crate::config;

/// Guesses languages.
#[derive(Clone, Copy, Debug)]
pub struct Detector {
    min_confidence: f64,
}

impl Detector {
    /// A detector; `None` where `language.detect` is off.
    pub fn new(config: &config::Language) -> Option<Self> {
        config.detect.then_some(Self { min_confidence: config.min_confidence })
    }

    /// ISO 639-1 code of the language of a prepared text; `None` when the text does not tell, or not
    /// surely enough.
    pub fn detect(&self, prepared: &str) -> Option<&'static str> {
        let words = prepared.split_whitespace().filter(|w| !w.starts_with('@') && !w.starts_with("http"));
        let text = words.collect::<Vec<_>>().join(" ");
        let (script, share) = main_script(&text)?;
        let (code, confidence) = match script {
            Script::Of(code) => (code, share),
            _ => {
                let guess = whichlang::detect_language(&text);
                let code = written_in(guess, script, &text)?;
                (code, agreement(&text, guess))
            }
        };
        (confidence >= self.min_confidence).then_some(code)
    }
}

/// Share of the text's pieces that are guessed like the whole.
fn agreement(text: &str, whole: Lang) -> f64 {
    const PIECE_CHARS: usize = 20;
    let chars = text.chars().count();
    let pieces = (chars / PIECE_CHARS).clamp(1, 4);
    if pieces == 1 {
        return 1.0;
    }
    let width = chars.div_ceil(pieces);
    let mut starts: Vec<usize> = text.char_indices().step_by(width).map(|(i, _)| i).collect();
    starts.push(text.len());
    let same = starts.windows(2).filter(|w| whichlang::detect_language(&text[w[0]..w[1]]) == whole).count();
    same as f64 / (starts.len() - 1) as f64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Latin,
    Cyrillic,
    Arabic,
    Devanagari,
    /// Han and Kana, which Japanese mixes.
    Cjk,
    Hangul,
    /// A script with one language of note.
    Of(&'static str),
}

/// The script of most letters and its share; `None` below four letters of a script with letters.
fn main_script(text: &str) -> Option<(Script, f64)> {
    const MIN_LETTERS: usize = 4;
    let mut counts: Vec<(Script, usize)> = Vec::with_capacity(4);
    let mut letters = 0;
    for script in text.chars().filter_map(script_of) {
        letters += 1;
        match counts.iter_mut().find(|(s, _)| *s == script) {
            Some((_, n)) => *n += 1,
            None => counts.push((script, 1)),
        }
    }
    let (script, n) = counts.into_iter().max_by_key(|(_, n)| *n)?;
    let enough = matches!(script, Script::Cjk | Script::Hangul) || n >= MIN_LETTERS;
    enough.then(|| (script, n as f64 / letters as f64))
}

fn script_of(c: char) -> Option<Script> {
    if c.is_ascii() {
        return c.is_ascii_alphabetic().then_some(Script::Latin);
    }
    if !c.is_alphabetic() {
        return None;
    }
    Some(match u32::from(c) {
        0x00AA..=0x024F | 0x1E00..=0x1EFF => Script::Latin,
        0x0370..=0x03FF | 0x1F00..=0x1FFF => Script::Of("el"),
        0x0400..=0x052F => Script::Cyrillic,
        0x0530..=0x058F => Script::Of("hy"),
        0x0590..=0x05FF => Script::Of("he"),
        0x0600..=0x06FF | 0x0750..=0x077F | 0xFB50..=0xFDFF | 0xFE70..=0xFEFE => Script::Arabic,
        0x0900..=0x097F => Script::Devanagari,
        0x0980..=0x09FF => Script::Of("bn"),
        0x0A00..=0x0A7F => Script::Of("pa"),
        0x0A80..=0x0AFF => Script::Of("gu"),
        0x0B80..=0x0BFF => Script::Of("ta"),
        0x0C00..=0x0C7F => Script::Of("te"),
        0x0C80..=0x0CFF => Script::Of("kn"),
        0x0D00..=0x0D7F => Script::Of("ml"),
        0x0D80..=0x0DFF => Script::Of("si"),
        0x0E00..=0x0E7F => Script::Of("th"),
        0x0E80..=0x0EFF => Script::Of("lo"),
        0x1000..=0x109F => Script::Of("my"),
        0x10A0..=0x10FF => Script::Of("ka"),
        0x1780..=0x17FF => Script::Of("km"),
        0x1100..=0x11FF | 0x3130..=0x318F | 0xAC00..=0xD7A3 => Script::Hangul,
        0x3005..=0x30FF
        | 0x31F0..=0x31FF
        | 0x3400..=0x9FFF
        | 0xF900..=0xFAFF
        | 0xFF66..=0xFF9D
        | 0x20000..=0x3FFFF => Script::Cjk,
        _ => return None,
    })
}

/// The guess's code, if a text of this script can be in it. Letters that Russian and Arabic lack betray
/// their neighbours, which whichlang does not know.
fn written_in(guess: Lang, script: Script, text: &str) -> Option<&'static str> {
    let (code, home) = match guess {
        Lang::Ara => ("ar", Script::Arabic),
        Lang::Cmn => ("zh", Script::Cjk),
        Lang::Deu => ("de", Script::Latin),
        Lang::Eng => ("en", Script::Latin),
        Lang::Fra => ("fr", Script::Latin),
        Lang::Hin => ("hi", Script::Devanagari),
        Lang::Ita => ("it", Script::Latin),
        Lang::Jpn => ("ja", Script::Cjk),
        Lang::Kor => ("ko", Script::Hangul),
        Lang::Nld => ("nl", Script::Latin),
        Lang::Por => ("pt", Script::Latin),
        Lang::Rus => ("ru", Script::Cyrillic),
        Lang::Spa => ("es", Script::Latin),
        Lang::Swe => ("sv", Script::Latin),
        Lang::Tur => ("tr", Script::Latin),
        Lang::Vie => ("vi", Script::Latin),
    };
    let foreign: &[char] = match script {
        Script::Cyrillic => &['і', 'ї', 'є', 'ґ', 'ў', 'ј', 'љ', 'њ', 'ћ', 'ђ', 'қ', 'ә', 'ө', 'ү'],
        Script::Arabic => &['پ', 'چ', 'ژ', 'گ', 'ک', 'ی', 'ٹ', 'ڈ', 'ے', 'ۆ', 'ە'],
        _ => &[],
    };
    (home == script && !text.contains(foreign)).then_some(code)
}

/// A language tag as the labelled record has it: the primary subtag in lower case, with the codes that
/// were withdrawn or have a shorter form replaced (`pt-BR` → `pt`, `iw` → `he`, `eng` → `en`). `None` for
/// what says nothing: `und`, `zxx`, `mul`, `mis`, private codes such as X's `qme`, or no tag at all.
pub fn normalise(tag: &str) -> Option<String> {
    let primary = tag.trim().split(['-', '_']).next()?.to_ascii_lowercase();
    let is_code = (2..=3).contains(&primary.len()) && primary.bytes().all(|b| b.is_ascii_lowercase());
    let private = primary.len() == 3 && ("qaa"..="qtz").contains(&primary.as_str());
    if !is_code || private || matches!(primary.as_str(), "und" | "zxx" | "mul" | "mis") {
        return None;
    }
    let short = match primary.as_str() {
        "iw" | "heb" => "he",
        "in" | "ind" => "id",
        "ji" | "yid" => "yi",
        "jw" | "jav" => "jv",
        "ara" => "ar",
        "cmn" | "zho" | "chi" => "zh",
        "deu" | "ger" => "de",
        "eng" => "en",
        "fra" | "fre" => "fr",
        "hin" => "hi",
        "ita" => "it",
        "jpn" => "ja",
        "kor" => "ko",
        "nld" | "dut" => "nl",
        "por" => "pt",
        "rus" => "ru",
        "spa" => "es",
        "tur" => "tr",
        other => other,
    };
    Some(short.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(text: &str) -> Option<&'static str> {
        Detector { min_confidence: 0.5 }.detect(text)
    }

    #[test]
    fn posts_in_many_languages_are_told() {
        for (code, text) in [
            ("en", "I really love this new phone, the camera is amazing @user http"),
            ("de", "Ich finde das neue Telefon wirklich schrecklich, der Akku hält nicht"),
            ("fr", "Je n'aime pas du tout cette nouvelle version de l'application"),
            ("es", "No me gusta nada la nueva actualización, todo va muy lento"),
            ("pt", "Não gostei da nova versão do aplicativo, está muito lenta"),
            ("ja", "新しいスマホのカメラがとても良い"),
            ("zh", "这个手机的质量非常好，我很喜欢"),
            ("ko", "새로운 휴대폰 카메라가 정말 좋아요"),
            ("ar", "هذا الهاتف الجديد رائع جدا والكاميرا ممتازة"),
            ("ru", "Мне очень нравится новый телефон, камера отличная"),
            ("th", "กล้องของโทรศัพท์ใหม่ดีมาก"),
            ("el", "Το νέο τηλέφωνο είναι πολύ καλό"),
            ("hi", "मुझे नया फोन बहुत पसंद है"),
        ] {
            assert_eq!(detect(text), Some(code), "{text}");
        }
    }

    #[test]
    fn texts_that_do_not_tell_are_left_open() {
        for text in [
            "",
            "😀😀",
            "ok",
            "@user http",
            "123 !!",
            "Мені дуже подобається цей новий телефон",
            "این گوشی جدید خیلی خوب است",
        ] {
            assert_eq!(detect(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_whose_parts_disagree_is_left_open_when_certainty_is_asked() {
        let mixed = "this is the best phone I ever had und jetzt geht der Akku leider gar nicht mehr so gut";
        assert_eq!(Detector { min_confidence: 1.0 }.detect(mixed), None);
        assert!(Detector { min_confidence: 0.0 }.detect(mixed).is_some());
    }

    #[test]
    fn tags_come_to_one_form() {
        for (tag, expected) in [
            ("pt-BR", Some("pt")),
            ("EN_us", Some("en")),
            ("zh-Hant-TW", Some("zh")),
            ("in", Some("id")),
            ("eng", Some("en")),
            ("fil", Some("fil")),
            ("und", None),
            ("qme", None),
            ("zxx", None),
            ("", None),
            ("english", None),
            ("日本", None),
            ("e1", None),
        ] {
            assert_eq!(normalise(tag).as_deref(), expected, "{tag}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_detected_without_panic(s in "\\PC{0,200}") {
            detect(&s);
            normalise(&s);
        }
    }
}
