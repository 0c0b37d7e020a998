//! librdkafka client settings that every consumer and producer of ours shares.

use rdkafka::{ClientConfig, error::KafkaError};

use crate::config::{Kafka, SettingError};

/// Settings common to all clients: brokers, client id, and the user's raw properties. Callers set what
/// their role needs on top with [`own`], so that a raw property cannot break an invariant unnoticed.
pub fn base(kafka: &Kafka, role: &str) -> ClientConfig {
    let mut c = ClientConfig::new();
    c.set("bootstrap.servers", &kafka.brokers);
    c.set("client.id", format!("sentistream-{role}"));
    for (key, value) in &kafka.properties {
        c.set(key, value.expose());
    }
    c
}

/// Sets what delivery depends on, and says so when the user's raw properties had asked for another value.
pub fn own(c: &mut ClientConfig, key: &str, value: impl Into<String>) {
    let value = value.into();
    if c.get(key).is_some_and(|old| old != value) {
        tracing::warn!(
            key,
            "kafka.properties sets a key that the delivery protocol owns; its value is not used"
        );
    }
    c.set(key, value);
}

/// Asks librdkafka about each raw property alone, so that the error names the key and never the value,
/// which may be a secret (librdkafka's own error quotes it).
pub fn check(kafka: &Kafka) -> Result<(), SettingError> {
    for (key, value) in &kafka.properties {
        let mut c = ClientConfig::new();
        c.set(key, value.expose());
        if let Err(e) = c.create_native_config() {
            let why = match e {
                KafkaError::ClientConfig(_, why, ..) => why.replace(value.expose(), "***"),
                _ => "librdkafka does not take it".to_owned(),
            };
            return Err(SettingError { key: format!("kafka.properties.{key}"), message: why });
        }
    }
    Ok(())
}
