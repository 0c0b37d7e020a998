//! Logs, metrics, health: what the operator sees. The only room that knows the metrics exporter and
//! the web framework.

use std::{io::IsTerminal, net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Http, Log, LogFormat},
    health::Health,
};

/// Why logs, metrics or the HTTP listener could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` is not a filter.
    #[error(
        "log.level: '{value}': {message}; expected a filter such as 'info' or 'sentistream=debug,rdkafka=warn'"
    )]
    Filter {
        /// The value.
        value: String,
        /// The parser's reason.
        message: String,
    },
    /// The metrics recorder could not be installed.
    #[error("cannot install the metrics recorder: {0}")]
    Metrics(String),
    /// The port is taken, or the address not ours.
    #[error(
        "http.listen: cannot listen on {address}: {source}; set another address, or \"\" to switch it off"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn filter(log: &Log) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(&log.level)
        .map_err(|e| TelemetryError::Filter { value: log.level.clone(), message: e.to_string() })
}

/// Whether `log.level` is a filter.
pub fn check(log: &Log) -> Result<(), TelemetryError> {
    filter(log).map(drop)
}

/// Starts logging to standard error; colours only where a person reads it. Called once, by `main`.
pub fn init_logs(log: &Log) -> Result<(), TelemetryError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log)?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Panics are counted and say where they happened. Their message is withheld, because it can quote the text it
/// was about (an index into a post, say); `SENTISTREAM_PANIC_MESSAGES=1` shows it to somebody who debugs.
pub fn init_panics() {
    std::panic::set_hook(Box::new(|info| {
        metrics::counter!("sentistream_panics_total").increment(1);
        let thread = std::thread::current();
        let place = info.location().map_or_else(|| "?".to_owned(), ToString::to_string);
        let shown = std::env::var_os("SENTISTREAM_PANIC_MESSAGES").is_some();
        let message = if shown { info.to_string() } else { "message withheld".to_owned() };
        tracing::error!(thread = thread.name().unwrap_or("?"), place, message, "panic");
    }));
}

/// Installs the process's metrics recorder.
pub fn init_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let fail = |e: metrics_exporter_prometheus::BuildError| TelemetryError::Metrics(e.to_string());
    let seconds =
        [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
    let rows = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
    let tokens = [16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 65536.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)
        .map_err(fail)?
        .set_buckets_for_metric(Matcher::Full("sentistream_batch_rows".into()), &rows)
        .map_err(fail)?
        .set_buckets_for_metric(Matcher::Full("sentistream_batch_tokens".into()), &tokens)
        .map_err(fail)?
        .install_recorder()
        .map_err(fail)?;
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{describe_counter as c, describe_gauge as g, describe_histogram as h};
    c!("sentistream_posts_in_total", "Records read from the posts topic");
    c!("sentistream_posts_labelled_total", "Posts labelled, by label");
    c!("sentistream_posts_dead_total", "Records sent to the dead-letter topic, by stage and reason");
    c!("sentistream_posts_skipped_total", "Records that are no posts (deletes, heart-beats), by reason");
    c!("sentistream_cache_hits_total", "Posts answered by the repeat cache");
    c!("sentistream_cache_misses_total", "Posts that needed inference");
    h!("sentistream_batch_rows", "Rows of a micro-batch");
    h!("sentistream_batch_tokens", "Padded tokens of a micro-batch");
    c!("sentistream_batch_tokens_total", "Padded tokens computed");
    c!("sentistream_batch_padding_tokens_total", "Of these, padding");
    g!("sentistream_queue_depth", "Items waiting, by queue");
    h!("sentistream_stage_seconds", "Time one window or batch spent in a stage");
    h!("sentistream_end_to_end_seconds", "From a post's time stamp in the log to the commit of its label");
    g!("sentistream_lag", "Records between the position and the end of the partition");
    c!("sentistream_transactions_total", "Transactions by outcome");
    g!("sentistream_provider_info", "1 for the execution provider, variant and model in use");
    g!("sentistream_open_part_age_seconds", "Age of the open rollup part");
    g!("sentistream_open_part_posts", "Posts in the open rollup part");
    c!("sentistream_parts_sealed_total", "Parts by outcome: created, adopted");
    c!("sentistream_panics_total", "Panics; each ends in a dead letter or in the process's end");
    c!("sentistream_rollup_posts_total", "Labelled posts taken into rollups");
}

#[derive(Clone)]
struct Shared {
    metrics: PrometheusHandle,
    health: Health,
}

/// Serves `/metrics`, `/healthz` and `/readyz` until the runtime ends. Returns once the port is bound,
/// so that a taken port is an error at start and not a silent absence of metrics.
pub async fn serve(
    http: &Http,
    metrics: PrometheusHandle,
    health: Health,
) -> Result<Option<SocketAddr>, TelemetryError> {
    let Ok(address) = http.listen.parse::<SocketAddr>() else { return Ok(None) };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| TelemetryError::Listen { address, source })?;
    let bound = listener.local_addr().unwrap_or(address);
    let upkeep = metrics.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(5));
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    });
    let app = router(Shared { metrics, health });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the HTTP listener stopped");
        }
    });
    Ok(Some(bound))
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

async fn render_metrics(State(s): State<Shared>) -> Response {
    let form = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, form)], s.metrics.render()).into_response()
}

/// Alive. A fatal error ends the process with a non-zero code, so whoever can answer is alive.
async fn healthz() -> Response {
    answer(Vec::new())
}

/// Ready: the model is verified and every role holds its assignment.
async fn readyz(State(s): State<Shared>) -> Response {
    answer(s.health.reasons())
}

fn answer(reasons: Vec<String>) -> Response {
    let ok = reasons.is_empty();
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ok": ok, "reasons": reasons }))).into_response()
}
