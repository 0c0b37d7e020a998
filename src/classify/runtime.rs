//! Finds ONNX Runtime's shared library and initialises `ort` with it, once in a process.
//!
//! The library is no part of the binary: the CPU build is 24 MB and the CUDA build several hundred, and
//! which one is wanted is a matter of the machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use ort::environment::Environment;

/// The version of ONNX Runtime that this build is made for.
pub const VERSION: &str = "1.31.1";

/// Why ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It is in none of the places.
    #[error(
        "ONNX Runtime ({LIBRARY}) not found; looked at: {}. Run `make setup`, or unpack the library from the wheel onnxruntime {VERSION} and name it by model.runtime or ORT_DYLIB_PATH",
        .0.join(", ")
    )]
    NotFound(Vec<String>),
    /// A place was named and holds no library.
    #[error(
        "{place} names {path}, where there is no {LIBRARY}; run `make setup` and leave it empty, or name the library of the wheel onnxruntime {VERSION}"
    )]
    Named {
        /// `model.runtime` or `ORT_DYLIB_PATH`.
        place: &'static str,
        /// Its value.
        path: String,
    },
    /// It was found and cannot be loaded.
    #[error("{path}: cannot load ONNX Runtime: {message}; this build needs version {VERSION} (`make setup`)")]
    Load {
        /// The library.
        path: String,
        /// The loader's or `ort`'s reason; names both versions where they do not fit.
        message: String,
    },
}

const LIBRARY: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

struct Runtime {
    environment: Environment,
    path: PathBuf,
}

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// Finds and loads ONNX Runtime; says which library it is. `configured` is `model.runtime`, a file or a
/// folder, empty to search. A process loads one runtime: later calls return the first one's path.
pub fn init(configured: &Path) -> Result<PathBuf, RuntimeError> {
    runtime(configured).map(|r| r.path.clone())
}

/// The environment in which sessions are made; loads the runtime as [`init`] does.
pub fn environment(configured: &Path) -> Result<&'static Environment, RuntimeError> {
    runtime(configured).map(|r| &r.environment)
}

fn runtime(configured: &Path) -> Result<&'static Runtime, RuntimeError> {
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(r) = RUNTIME.get() {
        return Ok(r);
    }
    let path = find(&Places::of_process(configured))?;
    let fail = |message: String| RuntimeError::Load { path: path.display().to_string(), message };
    let environment = ort::init_from(&path)
        .map_err(|e| fail(e.to_string()))?
        .with_name("sentistream")
        .with_telemetry(false)
        .build()
        .map_err(|e| fail(e.message().to_owned()))?;
    environment.set_log_level(ort::logging::LogLevel::Warning);
    tracing::info!(path = %path.display(), "ONNX Runtime loaded");
    Ok(RUNTIME.get_or_init(|| Runtime { environment, path }))
}

/// Where the library may be, in order.
struct Places {
    configured: PathBuf,
    variable: PathBuf,
    binary: Option<PathBuf>,
    cache: Option<PathBuf>,
}

impl Places {
    fn of_process(configured: &Path) -> Self {
        let path = |name| env::var_os(name).map(PathBuf::from).unwrap_or_default();
        let cache = [path("XDG_CACHE_HOME"), path("HOME").join(".cache")];
        Self {
            configured: configured.to_owned(),
            variable: path("ORT_DYLIB_PATH"),
            binary: env::current_exe().ok().and_then(|e| e.parent().map(Path::to_owned)),
            cache: cache.into_iter().find(|p| p.is_absolute()).map(|p| p.join("sentistream")),
        }
    }
}

/// A place that the user named is the only one; else the first of the usual places that holds it.
fn find(places: &Places) -> Result<PathBuf, RuntimeError> {
    for (place, path) in [("model.runtime", &places.configured), ("ORT_DYLIB_PATH", &places.variable)] {
        if !path.as_os_str().is_empty() {
            return library_at(path)
                .ok_or_else(|| RuntimeError::Named { place, path: path.display().to_string() });
        }
    }
    let mut looked = vec!["model.runtime (empty)".to_owned(), "ORT_DYLIB_PATH (not set)".to_owned()];
    let mut folders = Vec::new();
    if let Some(dir) = &places.binary {
        folders.extend([dir.clone(), dir.join("lib")]);
    }
    if let Some(cache) = &places.cache {
        let mut kept: Vec<PathBuf> =
            fs::read_dir(cache).into_iter().flatten().flatten().map(|e| e.path()).collect();
        kept.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("onnxruntime-")));
        // The version this build is made for first, then the newest by name.
        kept.sort_by_key(|p| (!p.ends_with(format!("onnxruntime-{VERSION}")), std::cmp::Reverse(p.clone())));
        looked.push(cache.join("onnxruntime-*").display().to_string());
        folders.extend(kept);
    }
    looked.extend(folders.iter().map(|f| f.display().to_string()));
    folders.iter().find_map(|f| library_at(f)).ok_or(RuntimeError::NotFound(looked))
}

/// `path` itself, or the library inside the folder `path`.
fn library_at(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return Some(path.to_owned());
    }
    let exact = path.join(LIBRARY);
    if exact.is_file() {
        return Some(exact);
    }
    let mut versioned: Vec<PathBuf> = fs::read_dir(path)
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| is_versioned(&n.to_string_lossy())))
        .collect();
    versioned.sort();
    versioned.pop()
}

/// `libonnxruntime.so.1.31.1`, `libonnxruntime.1.31.1.dylib`; not `libonnxruntime_providers_cuda.so`.
fn is_versioned(name: &str) -> bool {
    name.starts_with("libonnxruntime.so.")
        || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn nowhere() -> Places {
        Places { configured: PathBuf::new(), variable: PathBuf::new(), binary: None, cache: None }
    }

    #[test]
    fn places_are_tried_in_order() {
        let root = tempfile::tempdir().unwrap();
        let touch = |p: &str| {
            let p = root.path().join(p);
            fs::create_dir_all(p.parent().unwrap()).unwrap();
            fs::write(&p, "").unwrap();
            p
        };
        let cache = root.path().join("cache");
        let mut places =
            Places { cache: Some(cache.clone()), binary: Some(root.path().join("bin")), ..nowhere() };
        let e = find(&places).unwrap_err().to_string();
        assert!(
            e.contains("bin/lib") && e.contains("cache/onnxruntime-*") && e.contains("make setup"),
            "{e}"
        );

        touch("cache/onnxruntime-1.40.0/libonnxruntime.so");
        let ours = touch(&format!("cache/onnxruntime-{VERSION}/libonnxruntime.so.{VERSION}"));
        touch(&format!("cache/onnxruntime-{VERSION}/libonnxruntime_providers_shared.so"));
        assert_eq!(find(&places).unwrap(), ours);

        let beside = touch("bin/lib/libonnxruntime.so");
        assert_eq!(find(&places).unwrap(), beside);

        let named = touch("opt/libonnxruntime.so.9");
        places.variable = named.clone();
        assert_eq!(find(&places).unwrap(), named);
        places.configured = root.path().join("opt");
        assert_eq!(find(&places).unwrap(), named);
    }

    #[test]
    fn a_named_place_without_the_library_is_an_error_and_no_search() {
        let places = Places { configured: "/nonexistent/ort".into(), ..nowhere() };
        let e = find(&places).unwrap_err().to_string();
        assert!(e.contains("model.runtime") && e.contains("/nonexistent/ort"), "{e}");
        let places = Places { variable: "/nonexistent/ort".into(), ..nowhere() };
        assert!(find(&places).unwrap_err().to_string().contains("ORT_DYLIB_PATH"));
    }

    #[test]
    fn only_the_runtime_itself_counts() {
        assert!(is_versioned("libonnxruntime.so.1.31.1") && is_versioned("libonnxruntime.1.31.1.dylib"));
        assert!(!is_versioned("libonnxruntime_providers_cuda.so") && !is_versioned("libonnxruntime4j.so.1"));
    }
}
