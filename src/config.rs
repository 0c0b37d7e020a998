//! Settings: defaults, file, environment and secret files in; one validated [`Config`] out. The sole
//! reader of configuration files and environment variables.
//!
//! Layers, later wins: `config/default.toml` (embedded), the user's TOML, `SENTISTREAM__…` variables.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use crate::record::Map;

/// The defaults, with a comment on every key.
pub const DEFAULTS: &str = include_str!("../config/default.toml");
const ENV_PREFIX: &str = "SENTISTREAM__";

/// All settings, checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Brokers, group, topics, librdkafka settings.
    pub kafka: Kafka,
    /// Exactly once or at least once, and how transactions are cut.
    pub delivery: Delivery,
    /// How bytes become posts.
    pub decode: Decode,
    /// Language detection.
    pub language: Language,
    /// Brands to look for.
    #[serde(default)]
    pub brands: Vec<Brand>,
    /// The model and the device it runs on.
    pub model: Model,
    /// Micro-batching.
    pub batch: Batch,
    /// Decision and cache.
    pub classify: Classify,
    /// The labelled record.
    pub output: Output,
    /// Rollup windows and parts.
    pub rollup: Rollup,
    /// The object store.
    pub store: Store,
    /// Metrics and health.
    pub http: Http,
    /// Logs.
    pub log: Log,
    /// Drain.
    pub shutdown: Shutdown,
}

/// A value that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl<'de> Deserialize<'de> for Secret {
    /// Numbers and booleans are taken as what they look like: librdkafka reads text.
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(d)? {
            serde_json::Value::String(s) => Ok(Self(s)),
            v @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Ok(Self(v.to_string())),
            // Not quoted: it may hold a secret.
            _ => Err(serde::de::Error::custom("expected a text, a number, true or false")),
        }
    }
}

impl Secret {
    /// The value itself, for the client that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `[kafka]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// Bootstrap servers.
    pub brokers: String,
    /// Consumer group of the classify stage.
    pub group: String,
    /// Topic of posts.
    pub posts_topic: String,
    /// Topic of labelled posts.
    pub labelled_topic: String,
    /// Topic of dead letters.
    pub dead_letter_topic: String,
    /// Where a group without offsets begins.
    pub start: Start,
    /// Stable name of this instance; empty for a dynamic member.
    pub instance_id: String,
    /// Create missing topics at start.
    pub create_topics: bool,
    /// `session.timeout.ms`.
    pub session_timeout_ms: u32,
    /// `max.poll.interval.ms`.
    pub max_poll_interval_ms: u32,
    /// Raw librdkafka settings. All are treated as secrets when shown.
    pub properties: Map<String, Secret>,
    /// librdkafka settings read from files; merged into `properties` by [`Config::load`].
    pub secret_files: Map<String, PathBuf>,
}

impl Kafka {
    /// Consumer group of the rollup stage.
    pub fn rollup_group(&self) -> String {
        format!("{}.rollup", self.group)
    }
}

/// Where a group without committed offsets begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The oldest record there is.
    Earliest,
    /// Only what comes from now on.
    Latest,
}

/// `[delivery]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delivery {
    /// Guarantee.
    pub mode: DeliveryMode,
    /// A transaction is cut after this time …
    pub commit_interval_ms: u64,
    /// … or this many records.
    pub commit_max_records: usize,
    /// `transaction.timeout.ms`.
    pub transaction_timeout_ms: u32,
}

/// Guarantee of the classify stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryMode {
    /// Output and offsets in one Kafka transaction.
    ExactlyOnce,
    /// Output first, offsets after its delivery report.
    AtLeastOnce,
}

/// `[decode]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decode {
    /// Shape of the feed.
    pub preset: Preset,
    /// JSON pointers that replace the preset's.
    pub fields: Fields,
    /// Bounds on hostile input.
    pub limits: DecodeLimits,
}

/// JSON pointer overrides; `Some("")` drops the field, `None` keeps the preset's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The post's id.
    pub id: Option<String>,
    /// Text.
    pub text: Option<String>,
    /// Event time.
    pub created_at: Option<String>,
    /// Author.
    pub author: Option<String>,
    /// Language.
    pub lang: Option<String>,
    /// Channel.
    pub channel: Option<String>,
    /// Reach.
    pub reach: Option<String>,
}

/// `[decode.limits]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeLimits {
    /// Larger records are dead letters.
    pub max_record_bytes: usize,
    /// Longer texts are cut for the model.
    pub max_text_chars: usize,
}

/// Known feed shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Flat JSON with common names.
    Generic,
    /// X API v2 (filtered stream).
    X,
    /// Bluesky Jetstream.
    Bluesky,
    /// Mastodon streaming API.
    Mastodon,
    /// Reddit listings.
    Reddit,
}

/// `[language]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Language {
    /// Detect when the post does not say.
    pub detect: bool,
    /// Confidence below which a guess is dropped.
    pub min_confidence: f64,
}

/// `[[brands]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Brand {
    /// Name in records and rollups; also an alias.
    pub name: Arc<str>,
    /// Words and phrases.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Hashtags without `#`.
    #[serde(default)]
    pub hashtags: Vec<String>,
    /// Handles without `@`.
    #[serde(default)]
    pub handles: Vec<String>,
    /// Phrases inside which a mention does not count.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// `[model]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Artifact folder.
    pub dir: PathBuf,
    /// Which graph.
    pub variant: VariantChoice,
    /// Which device.
    pub device: Device,
    /// CUDA device number.
    pub device_id: i32,
    /// Inference sessions; 0 chooses.
    pub sessions: usize,
    /// Path of libonnxruntime; empty searches.
    pub runtime: PathBuf,
}

/// Which exported graph runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VariantChoice {
    /// The best for the device.
    Auto,
    /// Static int8.
    Int8,
    /// Single precision.
    Fp32,
    /// Half precision.
    Fp16,
}

impl VariantChoice {
    /// Name in `artifact.json`; `None` for [`VariantChoice::Auto`].
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Int8 => Some("int8"),
            Self::Fp32 => Some("fp32"),
            Self::Fp16 => Some("fp16"),
        }
    }
}

/// Where inference runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// CUDA where the provider loads, else the CPU; which one is a metric and a log line.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA or an error.
    Cuda,
}

/// `[batch]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Padded tokens of one micro-batch.
    pub max_tokens: usize,
    /// Rows of one micro-batch.
    pub max_rows: usize,
    /// Posts sorted by length together.
    pub window_rows: usize,
    /// Longest wait of a window's first post.
    pub linger_ms: u64,
    /// Records that may wait before partitions are paused …
    pub queue_records: usize,
    /// … and their bytes.
    pub queue_bytes: usize,
}

/// `[classify]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classify {
    /// Confidence below which the label is `uncertain`.
    pub uncertain_below: f64,
    /// Entries of the repeat cache.
    pub cache_entries: usize,
}

/// `[output]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Keep the text.
    pub text: bool,
}

/// `[rollup]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollup {
    /// Window width, seconds.
    pub window_s: i64,
    /// Archive labelled posts.
    pub posts: bool,
    /// Seal at this many posts …
    pub seal_records: usize,
    /// … or this age, seconds …
    pub seal_age_s: u64,
    /// … or after this long without a post, seconds.
    pub seal_idle_s: u64,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Where parts are written.
    pub url: String,
    /// Options of the object store's client. All are treated as secrets when shown.
    pub options: Map<String, Secret>,
    /// Options read from files; merged into `options` by [`Config::load`].
    pub secret_files: Map<String, PathBuf>,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Address of /metrics, /healthz, /readyz; empty: off.
    pub listen: String,
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Filter directives.
    pub level: String,
    /// Text for people, JSON for machines.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[shutdown]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Deadline of the drain, seconds.
    pub drain_s: u64,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{path}: cannot read the {what}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What it was to hold.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}: not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, column and reason.
        message: String,
    },
    /// A key is unknown or its value is bad.
    #[error("{origin}: {key}: {message}")]
    Value {
        /// The file or the environment variable.
        origin: String,
        /// Dotted key.
        key: String,
        /// What was found and what is allowed.
        message: String,
    },
}

/// A value that the types allow and the stage that uses it does not: a malformed JSON pointer, a brand
/// alias without a letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct SettingError {
    /// Dotted key.
    pub key: String,
    /// What was found and what is allowed.
    pub message: String,
}

impl Config {
    /// Reads the defaults, `file` and the process environment.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_layers(file, std::env::vars().collect())
    }

    /// The defaults alone; for tests and `demo`.
    pub fn defaults() -> Self {
        Self::from_layers(None, Vec::new()).expect("config/default.toml is checked by a test")
    }

    /// As [`Config::load`], with the environment as an argument.
    pub fn from_layers(file: Option<&Path>, env: Vec<(String, String)>) -> Result<Self, ConfigError> {
        let mut layers = Layers { file: None, env: Vec::new() };
        let mut builder =
            config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = file {
            let text = read(path, "configuration")?;
            let table: toml::Table = toml::from_str(&text).map_err(|e| ConfigError::Syntax {
                path: path.display().to_string(),
                message: e.to_string(),
            })?;
            layers.file = Some((path.display().to_string(), table));
            builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        let defaults: toml::Table =
            toml::from_str(DEFAULTS).expect("config/default.toml is checked by a test");
        let defaults = toml::Value::Table(defaults);
        for (name, value) in env.into_iter().filter(|(n, _)| n.starts_with(ENV_PREFIX)) {
            let key = env_key(&name);
            builder =
                set_path(builder, &key, typed(&defaults, &key, &value)).map_err(|e| ConfigError::Value {
                    origin: format!("environment variable {name}"),
                    key: key.join("."),
                    message: e.to_string(),
                })?;
            layers.env.push((name, key.join(".")));
        }
        // Through a JSON value, because its deserializer says what would have been allowed.
        let merged: serde_json::Value = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|e| layers.error(String::new(), e.to_string()))?;
        let mut config: Self = serde_path_to_error::deserialize(merged)
            .map_err(|e| layers.error(e.path().to_string(), e.inner().to_string()))?;
        config.read_secret_files()?;
        config.validate().map_err(|(key, message)| layers.error(key.to_owned(), message))?;
        Ok(config)
    }

    fn read_secret_files(&mut self) -> Result<(), ConfigError> {
        for (files, into) in [
            (&self.kafka.secret_files, &mut self.kafka.properties),
            (&self.store.secret_files, &mut self.store.options),
        ] {
            for (key, path) in files {
                let value = read(path, &format!("secret '{key}'"))?;
                into.insert(key.clone(), Secret(value.trim_end_matches(['\n', '\r']).to_owned()));
            }
        }
        Ok(())
    }

    /// What types alone cannot say.
    fn validate(&self) -> Result<(), (&'static str, String)> {
        let positive = |key, n: u64| {
            if n == 0 { Err((key, "is 0, expected a positive number".to_owned())) } else { Ok(()) }
        };
        let named = |key, s: &str| {
            if s.trim().is_empty() { Err((key, "is empty, expected a name".to_owned())) } else { Ok(()) }
        };
        let share = |key, x: f64| {
            if (0.0..=1.0).contains(&x) { Ok(()) } else { Err((key, format!("is {x}, expected 0 to 1"))) }
        };
        named("kafka.brokers", &self.kafka.brokers)?;
        named("kafka.group", &self.kafka.group)?;
        named("kafka.posts_topic", &self.kafka.posts_topic)?;
        named("kafka.labelled_topic", &self.kafka.labelled_topic)?;
        named("kafka.dead_letter_topic", &self.kafka.dead_letter_topic)?;
        let topics = [&self.kafka.posts_topic, &self.kafka.labelled_topic, &self.kafka.dead_letter_topic];
        if topics[0] == topics[1] || topics[0] == topics[2] || topics[1] == topics[2] {
            return Err((
                "kafka.labelled_topic",
                "posts, labelled and dead-letter topics must differ".into(),
            ));
        }
        positive("delivery.commit_interval_ms", self.delivery.commit_interval_ms)?;
        positive("delivery.commit_max_records", self.delivery.commit_max_records as u64)?;
        positive("decode.limits.max_record_bytes", self.decode.limits.max_record_bytes as u64)?;
        positive("decode.limits.max_text_chars", self.decode.limits.max_text_chars as u64)?;
        share("language.min_confidence", self.language.min_confidence)?;
        share("classify.uncertain_below", self.classify.uncertain_below)?;
        positive("batch.max_tokens", self.batch.max_tokens as u64)?;
        positive("batch.max_rows", self.batch.max_rows as u64)?;
        positive("batch.window_rows", self.batch.window_rows as u64)?;
        positive("batch.queue_records", self.batch.queue_records as u64)?;
        positive("batch.queue_bytes", self.batch.queue_bytes as u64)?;
        positive("rollup.seal_records", self.rollup.seal_records as u64)?;
        positive("rollup.seal_age_s", self.rollup.seal_age_s)?;
        positive("rollup.seal_idle_s", self.rollup.seal_idle_s)?;
        if !(1..=86_400).contains(&self.rollup.window_s) || 86_400 % self.rollup.window_s != 0 {
            return Err((
                "rollup.window_s",
                format!("is {}, expected seconds that divide a day", self.rollup.window_s),
            ));
        }
        if !self.http.listen.is_empty() && self.http.listen.parse::<std::net::SocketAddr>().is_err() {
            return Err((
                "http.listen",
                format!("is '{}', expected ADDRESS:PORT, as 127.0.0.1:9464", self.http.listen),
            ));
        }
        self.validate_brands()
    }

    fn validate_brands(&self) -> Result<(), (&'static str, String)> {
        let mut seen = std::collections::HashSet::new();
        for b in &self.brands {
            if b.name.trim().is_empty() || &*b.name == "*" {
                return Err((
                    "brands",
                    format!(
                        "name '{}' is not allowed: expected a name, and '*' stands for all posts",
                        b.name
                    ),
                ));
            }
            if !seen.insert(&b.name) {
                return Err(("brands", format!("'{}' is listed twice", b.name)));
            }
        }
        Ok(())
    }
}

/// Where a key came from, for error messages.
struct Layers {
    file: Option<(String, toml::Table)>,
    env: Vec<(String, String)>,
}

impl Layers {
    fn error(&self, key: String, message: String) -> ConfigError {
        let from_env = self
            .env
            .iter()
            .find(|(_, k)| !key.is_empty() && (*k == key || k.starts_with(&format!("{key}."))));
        let origin = match (from_env, &self.file) {
            (Some((name, _)), _) => format!("environment variable {name}"),
            (None, Some((path, _))) => path.clone(),
            (None, None) => "configuration".to_owned(),
        };
        ConfigError::Value { origin, key: if key.is_empty() { "(top level)".into() } else { key }, message }
    }
}

/// `SENTISTREAM__KAFKA__PROPERTIES__SASL_USERNAME` → `kafka`, `properties`, `sasl.username`.
fn env_key(name: &str) -> Vec<String> {
    let lower = name[ENV_PREFIX.len()..].to_ascii_lowercase();
    let mut parts: Vec<String> = lower.split("__").map(str::to_owned).collect();
    let free =
        parts.len() > 2 && parts[0] == "kafka" && matches!(parts[1].as_str(), "properties" | "secret_files");
    if free {
        let rest = parts.split_off(2).join(".").replace('_', ".");
        parts.push(rest);
    }
    parts
}

/// The value as the type that the default has; where there is no default (raw librdkafka settings, brands),
/// text. A text that is no such value stays text, and the typed configuration says what is wrong.
fn typed(defaults: &toml::Value, path: &[String], value: &str) -> toml::Value {
    let parsed = match path.iter().try_fold(defaults, |v, key| v.get(key)) {
        Some(toml::Value::Integer(_)) => value.parse::<i64>().ok().map(toml::Value::from),
        Some(toml::Value::Float(_)) => value.parse::<f64>().ok().map(toml::Value::from),
        Some(toml::Value::Boolean(_)) => value.parse::<bool>().ok().map(toml::Value::from),
        _ => None,
    };
    parsed.unwrap_or_else(|| toml::Value::from(value))
}

/// Adds one override as a nested table, so that dots inside the last key stay part of it.
fn set_path(
    builder: config::ConfigBuilder<config::builder::DefaultState>,
    path: &[String],
    leaf: toml::Value,
) -> Result<config::ConfigBuilder<config::builder::DefaultState>, toml::ser::Error> {
    let nested =
        path.iter().rev().fold(leaf, |v, key| toml::Value::Table([(key.clone(), v)].into_iter().collect()));
    let text = toml::to_string(&nested)?;
    Ok(builder.add_source(config::File::from_str(&text, config::FileFormat::Toml)))
}

fn read(path: &Path, what: &str) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.display().to_string(),
        what: what.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        fs::write(&path, text).unwrap();
        let env = env.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Config::from_layers(Some(&path), env).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_complete_and_valid() {
        let c = Config::defaults();
        assert_eq!(c.kafka.rollup_group(), "sentistream.rollup");
        assert_eq!(c.rollup.window_s, 60);
    }

    #[test]
    fn file_then_environment_win() {
        let c = with(
            "[kafka]\nbrokers='a:1'\ngroup='g'\n[kafka.properties]\n'security.protocol'='ssl'",
            &[
                ("SENTISTREAM__KAFKA__BROKERS", "b:2"),
                ("SENTISTREAM__KAFKA__GROUP", "123"),
                ("SENTISTREAM__BATCH__LINGER_MS", "7"),
                ("SENTISTREAM__KAFKA__PROPERTIES__SASL_USERNAME", "u"),
                ("OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!((c.kafka.brokers.as_str(), c.kafka.group.as_str(), c.batch.linger_ms), ("b:2", "123", 7));
        assert_eq!(c.kafka.properties["security.protocol"].expose(), "ssl");
        assert_eq!(c.kafka.properties["sasl.username"].expose(), "u");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named_with_their_origin() {
        let e = with("[kafka]\nbroker='a'", &[]).unwrap_err();
        assert!(e.contains("s.toml") && e.contains("broker") && e.contains("brokers"), "{e}");
        let e = with("[delivery]\nmode='twice'", &[]).unwrap_err();
        assert!(e.contains("delivery.mode") && e.contains("twice") && e.contains("exactly_once"), "{e}");
        let e = with("", &[("SENTISTREAM__BATCH__MAX_ROWS", "many")]).unwrap_err();
        assert!(
            e.contains("SENTISTREAM__BATCH__MAX_ROWS") && e.contains("batch.max_rows") && e.contains("many"),
            "{e}"
        );
        let e = with("[rollup]\nwindow_s=7", &[]).unwrap_err();
        assert!(e.contains("s.toml") && e.contains("rollup.window_s") && e.contains('7'), "{e}");
        let e = with("[kafka\n", &[]).unwrap_err();
        assert!(e.contains("line 1"), "{e}");
        let e = with("[[brands]]\nname='*'", &[]).unwrap_err();
        assert!(e.contains("brands"), "{e}");
    }

    #[test]
    fn secrets_come_from_files_and_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("pw");
        fs::write(&secret, "hunter2\n").unwrap();
        let c = with(&format!("[kafka.secret_files]\n'sasl.password'='{}'", secret.display()), &[]).unwrap();
        assert_eq!(c.kafka.properties["sasl.password"].expose(), "hunter2");
        assert!(!format!("{c:?}").contains("hunter2"));
        let e = with("[store.secret_files]\nkey='/nonexistent/x'", &[]).unwrap_err();
        assert!(e.contains("/nonexistent/x") && e.contains("key"), "{e}");
    }
}
