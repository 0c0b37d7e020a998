//! What the invented posters say. `{b}` is the brand as it is written there (name, hashtag or handle),
//! `{t}` one of the brand's things, `{p}` a place, `{n}` a number.

use crate::record::Sentiment::{self, Negative, Neutral, Positive};

/// An invented brand.
pub(super) struct Invented {
    pub(super) name: &'static str,
    pub(super) alias: &'static str,
    pub(super) handle: &'static str,
    /// Share of the posts.
    pub(super) weight: f64,
    /// Shares of negative and neutral posts; the rest is positive.
    pub(super) mood: (f64, f64),
    pub(super) things: &'static [&'static str],
    /// What goes wrong in a crisis.
    pub(super) crisis: &'static [&'static str],
}

pub(super) const BRANDS: [Invented; 5] = [
    Invented {
        name: "Aurelo",
        alias: "aurelo phone",
        handle: "aurelo",
        weight: 0.32,
        mood: (0.27, 0.38),
        things: &[
            "camera",
            "battery",
            "screen",
            "charger",
            "night mode",
            "update",
            "fingerprint reader",
            "speaker",
        ],
        crisis: &[
            "My {b} got so hot while charging that the case melted",
            "{b} battery swelled up overnight, how is this still on sale",
            "Battery recall at {b}: mine is one of {n} thousand, and no date for a replacement",
            "{b} support tells me to \"stop charging\" my phone. Seriously? Recall it",
            "Airlines now ban the {b} because of the battery. What a mess",
            "Smoke out of my {b} this morning. Never again",
        ],
    },
    Invented {
        name: "Brewly",
        alias: "brewly coffee",
        handle: "brewlycoffee",
        weight: 0.24,
        mood: (0.15, 0.40),
        things: &[
            "cold brew",
            "flat white",
            "oat latte",
            "app",
            "loyalty card",
            "new blend",
            "pumpkin muffin",
        ],
        crisis: &[
            "{b} raised every price by {n} percent overnight. Unbelievable",
            "{b} app charged me {n} times for one latte and nobody answers",
            "Found plastic in my {b} cup, this is disgusting",
        ],
    },
    Invented {
        name: "Skyhop",
        alias: "skyhop airlines",
        handle: "flyskyhop",
        weight: 0.2,
        mood: (0.42, 0.33),
        things: &["boarding", "seat", "crew", "luggage", "check-in", "wifi", "lounge", "refund"],
        crisis: &[
            "{b} cancelled all flights from {p}, we sleep on the floor",
            "{n} hours in the queue at {p} because the {b} system is down",
            "{b} lost the check-in system AND our bags. Awful",
        ],
    },
    Invented {
        name: "Volterra",
        alias: "volterra motors",
        handle: "volterra_ev",
        weight: 0.14,
        mood: (0.24, 0.42),
        things: &[
            "range",
            "autopilot",
            "test drive",
            "charging network",
            "interior",
            "software",
            "service centre",
        ],
        crisis: &[
            "{b} update bricked my car in the middle of {p}",
            "Brakes of the {b} failed, {n} reports already and not a word from them",
            "Thousands of {b} owners locked out of their cars since the update. Terrible",
        ],
    },
    Invented {
        name: "Nimbank",
        alias: "nim bank",
        handle: "nimbank_help",
        weight: 0.1,
        mood: (0.36, 0.42),
        things: &["app", "card", "transfer", "savings rate", "hotline", "branch", "login"],
        crisis: &[
            "{b} app shows someone else's account, this is a disaster",
            "No access to my money at {b} for {n} hours. Shameful",
            "{b} data leak: my card was used in {p}. Awful",
        ],
    },
];

pub(super) const PLACES: [&str; 10] =
    ["Lisbon", "Osaka", "Leeds", "Denver", "Lyon", "Bremen", "Toronto", "Sevilla", "the airport", "downtown"];

pub(super) const OPENERS: [&str; 12] = [
    "",
    "",
    "",
    "",
    "ok so ",
    "honestly, ",
    "not gonna lie, ",
    "today: ",
    "update: ",
    "lol ",
    "so… ",
    "PSA: ",
];

pub(super) const EMOJI: [(Sentiment, &[&str]); 3] = [
    (Negative, &["😡", "🤦", "😤", "👎", "💀"]),
    (Neutral, &["🤔", "👀", "📱", "🙂"]),
    (Positive, &["😍", "🔥", "❤️", "👏", "😊"]),
];

pub(super) const CLOSERS: [(Sentiment, &[&str]); 3] = [
    (
        Negative,
        &[
            "",
            "",
            " Never again.",
            " So disappointed.",
            " Who approved this?",
            " I want my money back.",
            " Do better.",
            " Worst {t} ever.",
        ],
    ),
    (
        Neutral,
        &[
            "",
            "",
            "",
            " Anyone know?",
            " More tomorrow.",
            " Asking for a friend.",
            " Just saying.",
            " Thread below.",
        ],
    ),
    (
        Positive,
        &[
            "",
            "",
            " Love it.",
            " Highly recommended.",
            " Well done!",
            " Made my day.",
            " Best {t} so far.",
            " Thank you!",
        ],
    ),
];

/// Sentences by language and mood.
pub(super) fn sentences(lang: &str, mood: Sentiment) -> &'static [&'static str] {
    match (lang, mood) {
        ("ja", Negative) => &[
            "{b}の新しいモデル、すぐ壊れた。最悪",
            "{b}のサポートが全然返事をくれない",
            "{b}は高いのに使いにくい。がっかり",
        ],
        ("ja", Neutral) => &["{b}の新製品は来週発売らしい", "{b}と他のを比較中", "{p}で{b}の広告を見た"],
        ("ja", Positive) => &[
            "{b}に変えて本当に良かった！",
            "{b}の新しいの、すごく使いやすい",
            "{b}のスタッフさんが親切で感動した",
        ],
        ("es", Negative) => &[
            "Qué desastre {b}, {n} horas esperando y nadie contesta",
            "El servicio de {b} es pésimo",
            "Muy decepcionado con {b}, no funciona nada",
        ],
        ("es", Neutral) => &[
            "{b} abre una tienda nueva en {p}",
            "¿Alguien ha probado lo nuevo de {b}?",
            "{b} presenta resultados el jueves",
        ],
        ("es", Positive) => &[
            "Me encanta {b}, todo perfecto",
            "Gracias {b} por la ayuda, un servicio excelente",
            "Lo mejor que he comprado este año: {b}",
        ],
        ("de", Negative) => &[
            "{b} ist echt eine Katastrophe, seit {n} Tagen keine Antwort",
            "Nie wieder {b}, alles kaputt nach einer Woche",
            "Der Kundendienst von {b} ist furchtbar",
        ],
        ("de", Neutral) => &[
            "{b} eröffnet eine Filiale in {p}",
            "Hat jemand Erfahrung mit {b}?",
            "{b} stellt am Donnerstag etwas Neues vor",
        ],
        ("de", Positive) => &[
            "Ich bin wirklich begeistert von {b}",
            "{b} hat mir heute super schnell geholfen, danke!",
            "Endlich mal etwas, das funktioniert: {b}",
        ],
        ("fr", Negative) => &[
            "Le service client de {b} est nul, {n} heures d&#39;attente",
            "Très déçu par {b}, ça ne marche jamais",
            "{b} c&#39;est fini pour moi, quelle honte",
        ],
        ("fr", Neutral) => &[
            "{b} ouvre une boutique à {p}",
            "Quelqu&#39;un a testé le nouveau {b} ?",
            "{b} publie ses résultats jeudi",
        ],
        ("fr", Positive) => &[
            "J&#39;adore {b}, tout est parfait",
            "Merci {b}, équipe vraiment géniale",
            "Franchement {b} c&#39;est le meilleur",
        ],
        (_, Negative) => &[
            "the {b} {t} is terrible",
            "{b} {t} stopped working after {n} days",
            "waited {n} hours for {b} and nobody answered",
            "can\\u2019t believe how bad the {b} {t} got",
            "I paid for this {b} {t} and it doesn&#39;t even work",
            "{b} ruined my trip to {p}",
            "the {t} from {b} is slow, buggy &amp; overpriced",
            "why is the {b} {t} always broken in {p}",
            "third time the {b} {t} let me down this week",
            "hate what {b} did to the {t}",
        ],
        (_, Neutral) => &[
            "{b} opens a new place in {p} next week",
            "has anyone tried the new {b} {t}",
            "{b} changes its {t} from the {n}th",
            "comparing {b} with two others before I decide on a {t}",
            "how do I reset the {b} {t}?",
            "{b} results are out on Thursday",
            "saw a {b} ad in {p}",
            "switched to the {b} {t} today, let&#39;s see",
            "what time does {b} open in {p}",
            "reading about the {b} {t} on the train to {p}",
        ],
        (_, Positive) => &[
            "the {b} {t} is amazing",
            "love the new {b} {t}",
            "{b} sorted my {t} in {n} minutes, great service",
            "can\\u2019t stop telling people about the {b} {t}",
            "best {t} I\\u2019ve had in {p}, thanks {b}",
            "{b} {t} works perfectly after {n} weeks",
            "so happy with {b} &amp; the {t}",
            "the {b} team in {p} was wonderful",
            "beautiful {t}, {b} nailed it",
            "{b} finally fixed the {t} and it is excellent",
        ],
    }
}

/// Posts that mention no brand.
pub(super) const SMALL_TALK: [(Sentiment, &str); 8] = [
    (Neutral, "on the train to {p}, {n} minutes late as usual"),
    (Positive, "what a beautiful morning in {p}"),
    (Negative, "my head hurts and it is only Monday"),
    (Neutral, "anyone up for coffee in {p} later?"),
    (Positive, "finished the book, it was wonderful"),
    (Negative, "rain again in {p}, I hate this weather"),
    (Neutral, "day {n} of learning the guitar"),
    (Positive, "so proud of my sister today"),
];
