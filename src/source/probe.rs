//! What `check` asks a broker: is it there, and are the topics?

use std::time::Duration;

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    types::RDKafkaErrorCode,
};

use super::client;
use crate::config::Kafka;

/// A broker that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No answer, or a refusal.
    #[error(
        "kafka.brokers: '{brokers}': {source}; is the broker running, and do kafka.properties hold what it asks for (TLS, SASL)?"
    )]
    Broker {
        /// The configured brokers.
        brokers: String,
        /// The client's reason.
        source: KafkaError,
    },
    /// A topic could not be created.
    #[error("cannot create topic '{topic}': {message}")]
    Create {
        /// The topic.
        topic: String,
        /// The broker's reason.
        message: String,
    },
}

/// Partitions of each topic; `None` for one that does not exist.
pub fn partitions(
    kafka: &Kafka,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Option<usize>>, ProbeError> {
    let fail = |source| ProbeError::Broker { brokers: kafka.brokers.clone(), source };
    let mut settings = client::base(kafka, "probe");
    client::own(&mut settings, "allow.auto.create.topics", "false");
    let consumer: BaseConsumer = settings.create().map_err(fail)?;
    let metadata = consumer.fetch_metadata(None, timeout).map_err(fail)?;
    let count = |name: &&str| {
        let topic = metadata.topics().iter().find(|t| t.name() == *name)?;
        (topic.error().is_none() && !topic.partitions().is_empty()).then(|| topic.partitions().len())
    };
    Ok(topics.iter().map(count).collect())
}

/// Creates those of the three topics that are missing, with as many partitions as the posts topic has
/// (or `default_partitions`), and the broker's default replication. The labelled topic keeps the time of writing:
/// labelled posts carry the time of their input, so that of a backlog older than the retention they could be deleted
/// as soon as they are written, before the rollup has read them.
pub async fn create_missing(
    kafka: &Kafka,
    default_partitions: usize,
    timeout: Duration,
) -> Result<Vec<String>, ProbeError> {
    let names = [kafka.posts_topic.as_str(), kafka.labelled_topic.as_str(), kafka.dead_letter_topic.as_str()];
    let have = partitions(kafka, &names, timeout)?;
    let wanted = have[0].unwrap_or(default_partitions);
    let missing: Vec<&str> = names.iter().zip(&have).filter(|(_, p)| p.is_none()).map(|(n, _)| *n).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let fail = |source| ProbeError::Broker { brokers: kafka.brokers.clone(), source };
    let admin: AdminClient<DefaultClientContext> = client::base(kafka, "admin").create().map_err(fail)?;
    let wanted = i32::try_from(wanted).unwrap_or(1);
    let topic = |name| {
        let new = NewTopic::new(name, wanted, TopicReplication::Fixed(-1));
        if name == kafka.labelled_topic { new.set("message.timestamp.type", "LogAppendTime") } else { new }
    };
    let new: Vec<NewTopic<'_>> = missing.iter().map(|name| topic(name)).collect();
    let results = admin
        .create_topics(&new, &AdminOptions::new().operation_timeout(Some(timeout)))
        .await
        .map_err(fail)?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(ProbeError::Create { topic, message: code.to_string() }),
        }
    }
    Ok(missing.into_iter().map(str::to_owned).collect())
}
