-- Sentistream's parts in Trino (Hive connector): sums of deltas, by minute, hour and day.
-- Put your store.url in the two external_location lines and your catalog and schema in the session
-- (trino --catalog hive --schema sentistream -f deploy/sql/trino.sql). After partitions were added:
--   CALL system.sync_partition_metadata(CURRENT_SCHEMA, 'rollup_deltas', 'ADD');
-- One row of a part is a delta: always sum, never pick a row. brand '*' stands for all posts; a post that names two
-- brands counts under both, so brands do not add up to '*'. Days are UTC.

CREATE TABLE IF NOT EXISTS rollup_deltas (
    window_start timestamp(6),
    brand varchar,
    channel varchar,
    lang varchar,
    model varchar,
    model_hash varchar,
    posts bigint,
    negative bigint,
    neutral bigint,
    positive bigint,
    uncertain bigint,
    score_sum decimal(18, 4),
    reach_sum bigint,
    partition integer
) WITH (format = 'PARQUET', external_location = 's3://bucket/prefix/rollups', partitioned_by = ARRAY['partition']);

CREATE TABLE IF NOT EXISTS labelled_posts (
    labelled_offset bigint,
    id varchar,
    created_at timestamp(6),
    label varchar,
    confidence decimal(5, 4),
    negative decimal(5, 4),
    neutral decimal(5, 4),
    positive decimal(5, 4),
    brands array(varchar),
    lang varchar,
    channel varchar,
    author varchar,
    reach bigint,
    text varchar,
    model varchar,
    model_hash varchar,
    source_topic varchar,
    source_partition integer,
    source_offset bigint,
    partition integer
) WITH (format = 'PARQUET', external_location = 's3://bucket/prefix/posts', partitioned_by = ARRAY['partition']);

CREATE OR REPLACE VIEW sentiment_by_minute AS
WITH sums AS (
    SELECT date_trunc('minute', window_start) AS bucket_start, brand,
           sum(posts) AS posts, sum(negative) AS negative, sum(neutral) AS neutral, sum(positive) AS positive,
           sum(uncertain) AS uncertain, sum(score_sum) AS score_sum,
           sum(CAST(reach_sum AS decimal(38, 0))) AS reach_sum
    FROM rollup_deltas
    GROUP BY 1, 2
)
SELECT sums.*,
       CAST(positive - negative AS double) / posts AS net_sentiment,
       CAST(score_sum AS double) / posts AS mean_score,
       CASE WHEN brand <> '*' THEN CAST(posts AS double)
           / sum(CASE WHEN brand <> '*' THEN posts END) OVER (PARTITION BY bucket_start) END AS share_of_voice,
       CAST(positive AS double) / nullif(positive + negative, 0) AS health
FROM sums;

CREATE OR REPLACE VIEW sentiment_by_hour AS
WITH sums AS (
    SELECT date_trunc('hour', window_start) AS bucket_start, brand,
           sum(posts) AS posts, sum(negative) AS negative, sum(neutral) AS neutral, sum(positive) AS positive,
           sum(uncertain) AS uncertain, sum(score_sum) AS score_sum,
           sum(CAST(reach_sum AS decimal(38, 0))) AS reach_sum
    FROM rollup_deltas
    GROUP BY 1, 2
)
SELECT sums.*,
       CAST(positive - negative AS double) / posts AS net_sentiment,
       CAST(score_sum AS double) / posts AS mean_score,
       CASE WHEN brand <> '*' THEN CAST(posts AS double)
           / sum(CASE WHEN brand <> '*' THEN posts END) OVER (PARTITION BY bucket_start) END AS share_of_voice,
       CAST(positive AS double) / nullif(positive + negative, 0) AS health
FROM sums;

CREATE OR REPLACE VIEW sentiment_by_day AS
WITH sums AS (
    SELECT date_trunc('day', window_start) AS bucket_start, brand,
           sum(posts) AS posts, sum(negative) AS negative, sum(neutral) AS neutral, sum(positive) AS positive,
           sum(uncertain) AS uncertain, sum(score_sum) AS score_sum,
           sum(CAST(reach_sum AS decimal(38, 0))) AS reach_sum
    FROM rollup_deltas
    GROUP BY 1, 2
)
SELECT sums.*,
       CAST(positive - negative AS double) / posts AS net_sentiment,
       CAST(score_sum AS double) / posts AS mean_score,
       CASE WHEN brand <> '*' THEN CAST(posts AS double)
           / sum(CASE WHEN brand <> '*' THEN posts END) OVER (PARTITION BY bucket_start) END AS share_of_voice,
       CAST(positive AS double) / nullif(positive + negative, 0) AS health
FROM sums;
