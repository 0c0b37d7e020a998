-- Sentistream's parts in DuckDB: sums of deltas, by minute, hour and day.
--   duckdb -cmd "SET VARIABLE store = './data'" -init deploy/sql/duckdb.sql
-- `store` is store.url without `file:` (s3://… works with the httpfs extension). Parts are immutable and the views
-- read what is there when they are queried. One row of a part is a delta: always sum, never pick a row.
-- brand '*' stands for all posts; a post that names two brands counts under both, so brands do not add up to '*'.

CREATE OR REPLACE VIEW rollup_deltas AS
SELECT * FROM read_parquet(getvariable('store') || '/rollups/*/*.parquet', hive_partitioning = true);

CREATE OR REPLACE VIEW labelled_posts AS
SELECT * FROM read_parquet(getvariable('store') || '/posts/*/*.parquet', hive_partitioning = true);

-- Sums by any bucket. net_sentiment is in -1 … 1 and counts uncertain posts as neither; mean_score is the mean of
-- p_positive - p_negative; share_of_voice is the brand's part of all posts that name some brand, counted by mention;
-- health, the brand health index, is positive / (positive + negative), 0 … 1; null without either.
CREATE OR REPLACE MACRO brand_sentiment(bucket) AS TABLE
WITH sums AS (
    SELECT time_bucket(bucket, window_start, TIMESTAMPTZ '1970-01-01 00:00:00+00') AS bucket_start, brand,
           sum(posts) AS posts, sum(negative) AS negative, sum(neutral) AS neutral, sum(positive) AS positive,
           sum(uncertain) AS uncertain, sum(score_sum) AS score_sum, sum(reach_sum) AS reach_sum
    FROM rollup_deltas
    GROUP BY ALL
)
SELECT *,
       (positive - negative)::DOUBLE / posts AS net_sentiment,
       score_sum::DOUBLE / posts AS mean_score,
       CASE WHEN brand <> '*' THEN
           posts::DOUBLE / sum(posts) FILTER (WHERE brand <> '*') OVER (PARTITION BY bucket_start) END AS share_of_voice,
       positive::DOUBLE / nullif(positive + negative, 0) AS health
FROM sums;

CREATE OR REPLACE VIEW sentiment_by_minute AS SELECT * FROM brand_sentiment(INTERVAL 1 MINUTE);
CREATE OR REPLACE VIEW sentiment_by_hour AS SELECT * FROM brand_sentiment(INTERVAL 1 HOUR);
CREATE OR REPLACE VIEW sentiment_by_day AS SELECT * FROM brand_sentiment(INTERVAL 1 DAY);
