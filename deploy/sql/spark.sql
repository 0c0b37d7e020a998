-- Sentistream's parts in Spark SQL 3.4 or later: sums of deltas, by minute, hour and day.
--   spark-sql -d store=s3a://bucket/prefix -f deploy/sql/spark.sql
-- One row of a part is a delta: always sum, never pick a row. brand '*' stands for all posts; a post that names two
-- brands counts under both, so brands do not add up to '*'. Days are UTC.

SET spark.sql.session.timeZone = UTC;

CREATE OR REPLACE TEMPORARY VIEW rollup_deltas USING parquet OPTIONS (path '${store}/rollups');
CREATE OR REPLACE TEMPORARY VIEW labelled_posts USING parquet OPTIONS (path '${store}/posts');

CREATE OR REPLACE TEMPORARY VIEW sentiment_by_minute AS
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

CREATE OR REPLACE TEMPORARY VIEW sentiment_by_hour AS
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

CREATE OR REPLACE TEMPORARY VIEW sentiment_by_day AS
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
