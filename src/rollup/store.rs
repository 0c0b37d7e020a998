//! The store of parts: put-if-absent, footers, lists, over any object store.
//!
//! `rollups/partition=0/part-00000000000000000000.parquet`: the key is a function of partition and first
//! offset alone. `partition=` is the hive form that readers take for a column; the file's name has no `=`,
//! so that they do not take its offset for one too.
//!
//! On a file system an object is written and synced under a temporary name (`….parquet#1`), then hard-linked
//! to its own, which fails if that exists: a kill at any moment leaves no half part under its name, and
//! neither lists nor a glob `*.parquet` take a temporary for a part.

use std::{
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
    prefix::PrefixStore,
};

use crate::{
    config,
    record::NextOffset,
    sink::parquet::{CodecError, Footer, Kind, Tail, read_tail},
};

/// Which part: its key is a pure function of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId {
    /// What it holds.
    pub kind: Kind,
    /// Partition of the labelled topic.
    pub partition: i32,
    /// Where it starts.
    pub first: NextOffset,
}

impl PartId {
    /// Its key under the store's prefix.
    pub fn key(&self) -> String {
        format!("{}part-{:020}.parquet", Self::folder(self.kind, self.partition), self.first.0)
    }

    /// The folder of a partition's parts, with a slash at the end.
    fn folder(kind: Kind, partition: i32) -> String {
        format!("{}/partition={partition}/", kind.as_str())
    }

    /// The same range, the other kind.
    pub fn of_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }
}

/// Outcome of a put-if-absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Written now.
    Created,
    /// It was there already; nothing was written.
    Exists,
}

/// The store said no.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It may go well the next time. The outcome of a put is not known.
    #[error("{object}: cannot {operation}: {message}")]
    Retry {
        /// What was tried.
        operation: &'static str,
        /// The object, with the store's address.
        object: String,
        /// The store's reason.
        message: String,
    },
    /// It will not go well until a person changes something.
    #[error("{object}: cannot {operation}: {message}")]
    Fatal {
        /// What was tried.
        operation: &'static str,
        /// The object, with the store's address.
        object: String,
        /// The store's reason and what to do.
        message: String,
    },
    /// The object is there and is no part.
    #[error("{object}: {source}")]
    NotAPart {
        /// The object, with the store's address.
        object: String,
        /// Why not.
        source: CodecError,
    },
}

impl StoreError {
    /// Whether trying again may help.
    pub fn is_retry(&self) -> bool {
        matches!(self, Self::Retry { .. })
    }
}

/// What the rollup needs of a store. Blocking.
pub trait Parts {
    /// One conditional write. An error leaves it open whether the object was written.
    fn put(&self, id: &PartId, bytes: Bytes) -> Result<Put, StoreError>;
    /// The footer of a part; `None`: there is no such part.
    fn footer(&self, id: &PartId) -> Result<Option<Footer>, StoreError>;
    /// A whole part; `None`: there is no such part.
    fn read(&self, id: &PartId) -> Result<Option<Bytes>, StoreError>;
    /// Starts of all parts of one kind and partition, ascending.
    fn list(&self, kind: Kind, partition: i32) -> Result<Vec<NextOffset>, StoreError>;
    /// The part's name for messages.
    fn name(&self, id: &PartId) -> String;
    /// Operations from now on end by then, with [`StoreError::Retry`]; `None`: no such bound.
    fn end_by(&self, _deadline: Option<Instant>) {}
}

/// An object store with its address.
pub struct PartStore {
    store: Arc<dyn ObjectStore>,
    url: String,
    runtime: tokio::runtime::Runtime,
    limit: Duration,
    deadline: Mutex<Option<Instant>>,
}

impl PartStore {
    /// Opens the store that the configuration names; a folder is created. Talks to no server yet.
    pub fn open(c: &config::Store) -> Result<Self, StoreError> {
        let fatal = |message: String| StoreError::Fatal {
            operation: "open the store",
            object: format!("store.url '{}'", c.url),
            message,
        };
        let store: Arc<dyn ObjectStore> = match local_dir(&c.url).map_err(&fatal)? {
            Some(dir) => {
                if let Some(key) = c.options.keys().next() {
                    return Err(fatal(format!("store.options has '{key}': a folder takes no options")));
                }
                std::fs::create_dir_all(&dir)
                    .map_err(|e| fatal(format!("cannot create {}: {e}", dir.display())))?;
                let fs = LocalFileSystem::new_with_prefix(&dir).map_err(|e| fatal(e.to_string()))?;
                Arc::new(fs.with_fsync(true))
            }
            None => remote(c).map_err(&fatal)?,
        };
        Self::from_store(store, &c.url)
    }

    /// Any object store, under the name `url` in messages.
    pub fn from_store(store: Arc<dyn ObjectStore>, url: &str) -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|e| StoreError::Fatal {
                operation: "start the store's thread",
                object: url.to_owned(),
                message: e.to_string(),
            })?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { store, url, runtime, limit: Duration::from_secs(30), deadline: Mutex::default() })
    }

    /// Bound on one operation; default 30 s.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Shows that put-if-absent is conditional here: writes an object, tries it again, deletes it.
    pub fn probe(&self) -> Result<(), StoreError> {
        let path = Path::from(format!("_sentistream/probe/{:016x}", rand::random::<u64>()));
        let name = self.full(path.as_ref());
        if self.create(&path, Bytes::from_static(b"probe"))? == Put::Exists {
            return Err(StoreError::Retry {
                operation: "probe",
                object: name,
                message: "the name is taken".into(),
            });
        }
        let second = self.create(&path, Bytes::from_static(b"again"));
        if let Err(e) = self.run("delete", &path, self.store.delete(&path)) {
            tracing::warn!(error = %e, "the store's probe object stays behind");
        }
        match second? {
            Put::Exists => Ok(()),
            Put::Created => Err(StoreError::Fatal {
                operation: "put only if absent",
                object: name,
                message: "a second put-if-absent overwrote the object. The rollups' exactness depends on it: use a \
                          store that honours If-None-Match (S3, GCS, Azure, a recent MinIO) or a folder"
                    .to_owned(),
            }),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.url)
    }

    fn create(&self, path: &Path, bytes: Bytes) -> Result<Put, StoreError> {
        let put = self.store.put_opts(path, PutPayload::from(bytes), PutMode::Create.into());
        Ok(match self.run("put", path, put)? {
            Ok(_) => Put::Created,
            Err(Absent::Exists) => Put::Exists,
            Err(Absent::NotFound) => {
                let (operation, object) = ("put", self.full(path.as_ref()));
                return Err(StoreError::Retry {
                    operation,
                    object,
                    message: "bucket or folder not found".into(),
                });
            }
        })
    }

    /// Waits for one operation, within the limit. The inner error is an answer, the outer one a failure.
    fn run<T>(
        &self,
        operation: &'static str,
        path: &Path,
        f: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Result<T, Absent>, StoreError> {
        use object_store::Error as E;
        let object = self.full(path.as_ref());
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let limit = left.map_or(self.limit, |left| left.min(self.limit));
        let answer = self.runtime.block_on(async { tokio::time::timeout(limit, f).await });
        match answer {
            Ok(Ok(v)) => Ok(Ok(v)),
            Ok(Err(E::NotFound { .. })) => Ok(Err(Absent::NotFound)),
            Ok(Err(E::AlreadyExists { .. })) => Ok(Err(Absent::Exists)),
            Ok(Err(
                e @ (E::NotImplemented { .. }
                | E::NotSupported { .. }
                | E::InvalidPath { .. }
                | E::UnknownConfigurationKey { .. }),
            )) => Err(StoreError::Fatal { operation, object, message: e.to_string() }),
            Ok(Err(e)) => Err(StoreError::Retry { operation, object, message: chain_of(&e) }),
            Err(_) => {
                let message = format!("no answer within {} s", limit.as_secs_f32());
                Err(StoreError::Retry { operation, object, message })
            }
        }
    }

    /// The last `want` bytes of an object, or all of it if it is smaller.
    fn tail(&self, path: &Path, want: u64) -> Result<Option<Bytes>, StoreError> {
        let tail = async {
            let size = self.store.head(path).await?.size;
            self.store.get_range(path, size.saturating_sub(want)..size).await
        };
        match self.run("read the footer", path, tail)? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Ok(None),
        }
    }

    fn not_a_part(&self, path: &Path, source: CodecError) -> StoreError {
        StoreError::NotAPart { object: self.full(path.as_ref()), source }
    }

    /// Partitions that have parts of either kind, ascending.
    pub fn partitions(&self) -> Result<Vec<i32>, StoreError> {
        let mut found = std::collections::BTreeSet::new();
        for kind in [Kind::Rollups, Kind::Posts] {
            let folder = Path::from(kind.as_str());
            if let Ok(list) = self.run("list", &folder, self.store.list_with_delimiter(Some(&folder)))? {
                let names = list.common_prefixes.iter().filter_map(|p| p.filename().map(str::to_owned));
                found.extend(names.filter_map(|n| n.strip_prefix("partition=")?.parse::<i32>().ok()));
            }
        }
        Ok(found.into_iter().collect())
    }
}

enum Absent {
    NotFound,
    Exists,
}

/// An error with its causes, for one line.
fn chain_of(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let s_text = s.to_string();
        if !text.contains(&s_text) {
            text = format!("{text}: {s_text}");
        }
        source = s.source();
    }
    text
}

impl Parts for PartStore {
    fn put(&self, id: &PartId, bytes: Bytes) -> Result<Put, StoreError> {
        self.create(&Path::from(id.key()), bytes)
    }

    fn footer(&self, id: &PartId) -> Result<Option<Footer>, StoreError> {
        let path = Path::from(id.key());
        let mut want = 64 * 1024;
        loop {
            let Some(tail) = self.tail(&path, want)? else { return Ok(None) };
            match read_tail(&tail).map_err(|e| self.not_a_part(&path, e))? {
                Tail::Footer(f) => return Ok(Some(*f)),
                Tail::Need(n) if n > want => want = n,
                Tail::Need(n) => {
                    let e =
                        CodecError::Parquet(format!("its footer claims {n} bytes, more than the file has"));
                    return Err(self.not_a_part(&path, e));
                }
            }
        }
    }

    fn read(&self, id: &PartId) -> Result<Option<Bytes>, StoreError> {
        let path = Path::from(id.key());
        let get = async { self.store.get(&path).await?.bytes().await };
        Ok(self.run("read", &path, get)?.ok())
    }

    fn list(&self, kind: Kind, partition: i32) -> Result<Vec<NextOffset>, StoreError> {
        let folder = Path::from(PartId::folder(kind, partition));
        let list = self.store.list(Some(&folder)).try_collect::<Vec<_>>();
        let objects = self.run("list", &folder, list)?.unwrap_or_default();
        let first_of = |p: &Path| -> Option<NextOffset> {
            let digits = p.filename()?.strip_prefix("part-")?.strip_suffix(".parquet")?;
            let whole = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
            whole.then(|| digits.parse().ok().map(NextOffset))?
        };
        let mut firsts: Vec<_> = objects.iter().filter_map(|o| first_of(&o.location)).collect();
        firsts.sort_unstable();
        Ok(firsts)
    }

    fn name(&self, id: &PartId) -> String {
        self.full(&id.key())
    }

    fn end_by(&self, deadline: Option<Instant>) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }
}

/// `file:` with a relative or absolute path, or a `file://` URL → the folder; `None` for other schemes.
fn local_dir(url: &str) -> Result<Option<PathBuf>, String> {
    let Some(rest) = url.strip_prefix("file:") else { return Ok(None) };
    let dir = if rest.starts_with("//") {
        let parsed = url::Url::parse(url).map_err(|e| e.to_string())?;
        parsed
            .to_file_path()
            .map_err(|()| "expected file:///absolute/path or file:relative/path".to_owned())?
    } else if rest.is_empty() {
        return Err("names no folder: expected file:relative/path or file:///absolute/path".to_owned());
    } else {
        PathBuf::from(rest)
    };
    std::path::absolute(&dir).map(Some).map_err(|e| e.to_string())
}

/// Applies the options to a client builder; an unknown option is an error, not ignored.
macro_rules! with_options {
    ($builder:expr, $key:ty, $options:expr) => {{
        let mut builder = $builder;
        for (name, value) in $options {
            let key: $key = name
                .to_ascii_lowercase()
                .parse()
                .map_err(|_| format!("store.options has '{name}', which this kind of store does not know"))?;
            builder = builder.with_config(key, value.expose());
        }
        Arc::new(builder.with_retry(quick_retry()).build().map_err(|e| e.to_string())?)
            as Arc<dyn ObjectStore>
    }};
}

/// The client retries blips; what lasts is retried by the stage, which goes on polling meanwhile.
fn quick_retry() -> RetryConfig {
    RetryConfig { max_retries: 2, retry_timeout: Duration::from_secs(20), ..RetryConfig::default() }
}

fn remote(c: &config::Store) -> Result<Arc<dyn ObjectStore>, String> {
    let expected = "expected file:, s3://, gs:// or az://";
    let url = url::Url::parse(&c.url).map_err(|e| format!("{e}; {expected}"))?;
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|e| format!("{e}; {expected}"))?;
    let address = url.to_string();
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            with_options!(AmazonS3Builder::from_env().with_url(address), AmazonS3ConfigKey, &c.options)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            with_options!(
                GoogleCloudStorageBuilder::from_env().with_url(address),
                GoogleConfigKey,
                &c.options
            )
        }
        ObjectStoreScheme::MicrosoftAzure => {
            with_options!(MicrosoftAzureBuilder::from_env().with_url(address), AzureConfigKey, &c.options)
        }
        ObjectStoreScheme::Memory => Arc::new(InMemory::new()),
        _ => return Err(expected.to_owned()),
    };
    Ok(if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
