//! A real broker for tests: `SENTISTREAM_TEST_BROKERS` where it is set, else a process of our own.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
};

use super::until;

/// Where to reach it, and whether it is Apache Kafka or the small stand-in with its known faults.
pub struct Broker {
    pub servers: String,
    pub full: bool,
    process: Option<Child>,
    _dir: Option<tempfile::TempDir>,
}

fn stand_in() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SENTISTREAM_NOIDA_DB") {
        return Some(path.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|h| h.join(".cache")))?;
    let path = cache.join("sentistream/noida-db-0.2.3/noida-db");
    path.exists().then_some(path)
}

impl Broker {
    /// `None`: no broker can be had, and the test `name` is skipped (a failure under `CI=true`).
    pub fn start(name: &str) -> Option<Self> {
        super::logs();
        if let Ok(servers) = std::env::var("SENTISTREAM_TEST_BROKERS") {
            return Some(Self { servers, full: true, process: None, _dir: None });
        }
        let Some(binary) = stand_in() else {
            super::skip(
                name,
                "no broker: set SENTISTREAM_TEST_BROKERS, or run `scripts/setup.sh test` for one of our own",
            );
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        // Free now; another process may take it before the broker does, in which case `until` says so.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new(&binary)
            .args(["start", "--only", "kafka", "--kafka-port", &port.to_string(), "--data-dir"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let broker = Self {
            servers: format!("127.0.0.1:{port}"),
            full: false,
            process: Some(process),
            _dir: Some(dir),
        };
        let probe: BaseConsumer = broker.client().create().unwrap();
        until("the broker answers", Duration::from_secs(60), || {
            probe.fetch_metadata(None, Duration::from_secs(2)).is_ok_and(|m| !m.brokers().is_empty())
        });
        Some(broker)
    }

    /// One that somebody else keeps: the cluster inside the process.
    pub fn at(servers: String) -> Self {
        Self { servers, full: false, process: None, _dir: None }
    }

    pub fn client(&self) -> ClientConfig {
        let mut c = ClientConfig::new();
        c.set("bootstrap.servers", &self.servers).set("log_level", "0");
        c
    }

    pub fn create_topics(&self, topics: &[(&str, i32)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let new: Vec<NewTopic<'_>> =
            topics.iter().map(|(name, n)| NewTopic::new(name, *n, TopicReplication::Fixed(1))).collect();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
        for result in futures::executor::block_on(admin.create_topics(&new, &options)).unwrap() {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, e)) => panic!("topic {topic}: {e}"),
            }
        }
        let probe: BaseConsumer = self.client().create().unwrap();
        for (topic, n) in topics {
            until("the topic is known", Duration::from_secs(20), || {
                probe.fetch_metadata(Some(topic), Duration::from_secs(2)).is_ok_and(|m| {
                    m.topics()
                        .first()
                        .is_some_and(|t| t.error().is_none() && t.partitions().len() == *n as usize)
                })
            });
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut p) = self.process.take() {
            let _ = p.kill();
            let _ = p.wait();
        }
    }
}
