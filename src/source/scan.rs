//! A labelled topic read once from here to its end, outside any group: for verification.

use std::time::{Duration, Instant};

use rdkafka::{
    ClientConfig, ClientContext, Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::client::{base, own};
use crate::{
    config::Kafka,
    record::{NextOffset, Offset},
    rollup::{
        stage::StageError,
        verify::{Extent, LabelledLog},
    },
};

const ANSWER: Duration = Duration::from_secs(20);
/// Without a record or the end of the partition for this long the scan gives up.
const STALL: Duration = Duration::from_secs(60);

/// The end of a partition is how a scan ends; the client's default logs it as an error.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, e: KafkaError, reason: &str) {
        if e.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!(error = %e, reason, "broker trouble");
        }
    }
}

impl ConsumerContext for Quiet {}

/// The labelled topic of a configuration, `read_committed`.
pub struct LabelledTopic {
    topic: String,
    config: ClientConfig,
    /// For metadata; joins no group.
    consumer: BaseConsumer,
}

impl LabelledTopic {
    /// Connects lazily.
    pub fn open(kafka: &Kafka) -> Result<Self, StageError> {
        let mut c = base(kafka, "verify");
        // librdkafka wants a group to assign by hand; none is joined and nothing is committed.
        own(&mut c, "group.id", format!("{}.verify", kafka.group));
        own(&mut c, "isolation.level", "read_committed");
        own(&mut c, "enable.auto.commit", "false");
        own(&mut c, "enable.auto.offset.store", "false");
        own(&mut c, "enable.partition.eof", "true");
        own(&mut c, "auto.offset.reset", "error");
        let topic = kafka.labelled_topic.clone();
        let consumer = c.create().map_err(|e| failed(&topic, "create a consumer", &e))?;
        Ok(Self { topic, config: c, consumer })
    }
}

fn failed(topic: &str, what: &str, e: &dyn std::fmt::Display) -> StageError {
    StageError::Kafka { what: format!("{what} for {topic}"), message: e.to_string() }
}

impl LabelledLog for LabelledTopic {
    fn partitions(&self) -> Result<Vec<i32>, StageError> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(&self.topic), ANSWER)
            .map_err(|e| failed(&self.topic, "fetch metadata", &e))?;
        let topic = metadata.topics().first().filter(|t| t.error().is_none() && !t.partitions().is_empty());
        let topic =
            topic.ok_or_else(|| failed(&self.topic, "find the topic", &"the broker does not know it"))?;
        let mut partitions: Vec<i32> = topic.partitions().iter().map(|p| p.id()).collect();
        partitions.sort_unstable();
        Ok(partitions)
    }

    fn extent(&self, partition: i32) -> Result<Extent, StageError> {
        let (low, high) = self
            .consumer
            .fetch_watermarks(&self.topic, partition, ANSWER)
            .map_err(|e| failed(&self.topic, "fetch watermarks", &e))?;
        Ok(Extent { partition, low: NextOffset(low), high: NextOffset(high) })
    }

    fn scan(
        &self,
        partition: i32,
        from: NextOffset,
        visit: &mut dyn FnMut(Offset, Option<&[u8]>),
    ) -> Result<(), StageError> {
        let fail = |e: KafkaError| failed(&self.topic, "scan", &e);
        let consumer: BaseConsumer<Quiet> = self.config.create_with_context(Quiet).map_err(fail)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, KafkaOffset::Offset(from.0)).map_err(fail)?;
        consumer.assign(&list).map_err(fail)?;
        let mut last = Instant::now();
        let scanned = loop {
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(m)) => {
                    last = Instant::now();
                    visit(Offset(m.offset()), m.payload());
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break Ok(()),
                Some(Err(e)) if e.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    break Err(fail(e));
                }
                Some(Err(e)) => tracing::warn!(topic = self.topic, error = %e, "broker trouble"),
                None => {}
            }
            if last.elapsed() > STALL {
                let what =
                    format!("nothing came for {} s before the end of partition {partition}", STALL.as_secs());
                break Err(failed(&self.topic, "scan", &what));
            }
        };
        if let Err(e) = consumer.unassign() {
            tracing::warn!(error = %e, "unassign before close");
        }
        scanned
    }
}
