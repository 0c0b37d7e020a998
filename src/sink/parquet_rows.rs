//! Rows of parts ↔ Arrow columns.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{
        Array, ArrayRef, Decimal128Array, Int32Array, Int64Array, ListArray, ListBuilder, StringArray,
        StringBuilder, TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    record_batch::RecordBatch,
};

use super::parquet::CodecError;
use crate::{
    record::{Label, Labelled, ModelId, Offset, Scores, SourceRef, Timestamp},
    rollup::{
        part::Archived,
        window::{Key, Sums},
    },
};

/// One probability: four places.
const SCORE: (u8, i8) = (5, 4);
/// A sum of scores: the widest decimal that is stored as one 64-bit integer.
const SCORE_SUM: (u8, i8) = (18, 4);

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn brands_item() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Utf8, false))
}

fn schema(fields: Vec<(&str, DataType, bool)>) -> SchemaRef {
    Arc::new(Schema::new(fields.into_iter().map(|(n, t, null)| Field::new(n, t, null)).collect::<Vec<_>>()))
}

static ROLLUP: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Decimal128, Int64, Utf8};
    let mut fields = vec![("window_start", utc(), false)];
    fields.extend(["brand", "channel", "lang", "model", "model_hash"].map(|n| (n, Utf8, false)));
    fields.extend(["posts", "negative", "neutral", "positive", "uncertain"].map(|n| (n, Int64, false)));
    fields.push(("score_sum", Decimal128(SCORE_SUM.0, SCORE_SUM.1), false));
    fields.push(("reach_sum", Int64, false));
    schema(fields)
});

static POSTS: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Decimal128, Int32, Int64, List, Utf8};
    let score = Decimal128(SCORE.0, SCORE.1);
    schema(vec![
        ("labelled_offset", Int64, false),
        ("id", Utf8, false),
        ("created_at", utc(), false),
        ("label", Utf8, false),
        ("confidence", score.clone(), false),
        ("negative", score.clone(), false),
        ("neutral", score.clone(), false),
        ("positive", score, false),
        ("brands", List(brands_item()), false),
        ("lang", Utf8, false),
        ("channel", Utf8, false),
        ("author", Utf8, true),
        ("reach", Int64, true),
        ("text", Utf8, true),
        ("model", Utf8, false),
        ("model_hash", Utf8, false),
        ("source_topic", Utf8, false),
        ("source_partition", Int32, false),
        ("source_offset", Int64, false),
    ])
});

/// Columns of a rollup part.
pub fn rollup_schema() -> SchemaRef {
    ROLLUP.clone()
}

/// Columns of a posts part.
pub fn posts_schema() -> SchemaRef {
    POSTS.clone()
}

/// Index of the column by which posts are sorted.
pub fn posts_offset_leaf() -> i32 {
    0
}

fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn ints(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn times(values: impl Iterator<Item = Timestamp>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values.map(|t| t.0)).with_timezone("UTC"))
}

fn decimals(values: impl Iterator<Item = i64>, (precision, scale): (u8, i8)) -> Result<ArrayRef, CodecError> {
    let array = Decimal128Array::from_iter_values(values.map(i128::from))
        .with_precision_and_scale(precision, scale)?;
    array.validate_decimal_precision(precision)?;
    Ok(Arc::new(array))
}

/// Four places of a probability as an integer.
fn units(p: f64) -> i64 {
    (p * Scores::UNITS as f64).round() as i64
}

pub(super) fn rollup_batch(sums: &[(Key, Sums)]) -> Result<RecordBatch, CodecError> {
    let key = |f: fn(&Key) -> &str| strings(sums.iter().map(move |(k, _)| f(k)));
    let sum = |f: fn(&Sums) -> i64| ints(sums.iter().map(move |(_, s)| f(s)));
    let reach =
        sums.iter().map(|(_, s)| i64::try_from(s.reach)).collect::<Result<Vec<_>, _>>().map_err(|_| {
            CodecError::Column { column: "reach_sum", message: "does not fit 64 bits".to_owned() }
        })?;
    let columns = vec![
        times(sums.iter().map(|(k, _)| k.window_start)),
        key(|k| &k.brand),
        key(|k| &k.channel),
        key(|k| &k.lang),
        key(|k| &k.model),
        key(|k| &k.model_hash),
        sum(|s| s.posts),
        sum(|s| s.negative),
        sum(|s| s.neutral),
        sum(|s| s.positive),
        sum(|s| s.uncertain),
        decimals(sums.iter().map(|(_, s)| s.score_units), SCORE_SUM)?,
        ints(reach.into_iter()),
    ];
    Ok(RecordBatch::try_new(rollup_schema(), columns)?)
}

pub(super) fn posts_batch(posts: &[Archived]) -> Result<RecordBatch, CodecError> {
    let text = |f: fn(&Labelled) -> &str| strings(posts.iter().map(move |a| f(&a.post)));
    let maybe = |f: fn(&Labelled) -> Option<&str>| -> ArrayRef {
        let mut b = StringBuilder::new();
        posts.iter().for_each(|a| b.append_option(f(&a.post)));
        Arc::new(b.finish())
    };
    let score = |f: fn(&Labelled) -> f64| decimals(posts.iter().map(move |a| units(f(&a.post))), SCORE);
    let mut brands = ListBuilder::new(StringBuilder::new()).with_field(brands_item());
    for a in posts {
        a.post.brands.iter().for_each(|b| brands.values().append_value(b));
        brands.append(true);
    }
    let columns = vec![
        ints(posts.iter().map(|a| a.offset.0)),
        text(|p| &p.id),
        times(posts.iter().map(|a| a.post.created_at)),
        text(|p| p.label.as_str()),
        score(|p| p.confidence)?,
        score(|p| p.scores.negative)?,
        score(|p| p.scores.neutral)?,
        score(|p| p.scores.positive)?,
        Arc::new(brands.finish()),
        text(|p| &p.lang),
        text(|p| &p.channel),
        maybe(|p| p.author.as_deref()),
        Arc::new(Int64Array::from_iter(posts.iter().map(|a| a.post.reach))),
        maybe(|p| p.text.as_deref()),
        text(|p| &p.model.name),
        text(|p| &p.model.hash),
        text(|p| &p.source.topic),
        Arc::new(Int32Array::from_iter_values(posts.iter().map(|a| a.post.source.partition))),
        ints(posts.iter().map(|a| a.post.source.offset)),
    ];
    Ok(RecordBatch::try_new(posts_schema(), columns)?)
}

/// The column of that name and type.
fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, column: &'static str) -> Result<&'a T, CodecError> {
    let array = batch
        .column_by_name(column)
        .ok_or_else(|| CodecError::Column { column, message: "is missing".to_owned() })?;
    array.as_any().downcast_ref().ok_or_else(|| CodecError::Column {
        column,
        message: format!("is {}, another type than version 1 writes", array.data_type()),
    })
}

fn as_i64(value: i128, column: &'static str) -> Result<i64, CodecError> {
    i64::try_from(value)
        .map_err(|_| CodecError::Column { column, message: "does not fit 64 bits".to_owned() })
}

pub(super) fn read_rollup(batch: &RecordBatch, out: &mut Vec<(Key, Sums)>) -> Result<(), CodecError> {
    let window: &TimestampMicrosecondArray = column(batch, "window_start")?;
    let texts = ["brand", "channel", "lang", "model", "model_hash"].map(|c| column::<StringArray>(batch, c));
    let [brand, channel, lang, model, model_hash] = texts;
    let (brand, channel, lang, model, model_hash) = (brand?, channel?, lang?, model?, model_hash?);
    let counts = ["posts", "negative", "neutral", "positive", "uncertain", "reach_sum"]
        .map(|c| column::<Int64Array>(batch, c));
    let [posts, negative, neutral, positive, uncertain, reach] = counts;
    let (posts, negative, neutral) = (posts?, negative?, neutral?);
    let (positive, uncertain, reach) = (positive?, uncertain?, reach?);
    let score: &Decimal128Array = column(batch, "score_sum")?;
    for i in 0..batch.num_rows() {
        let key = Key {
            window_start: Timestamp(window.value(i)),
            brand: brand.value(i).into(),
            channel: channel.value(i).into(),
            lang: lang.value(i).into(),
            model: model.value(i).into(),
            model_hash: model_hash.value(i).into(),
        };
        let sums = Sums {
            posts: posts.value(i),
            negative: negative.value(i),
            neutral: neutral.value(i),
            positive: positive.value(i),
            uncertain: uncertain.value(i),
            score_units: as_i64(score.value(i), "score_sum")?,
            reach: i128::from(reach.value(i)),
        };
        out.push((key, sums));
    }
    Ok(())
}

fn label(text: &str) -> Result<Label, CodecError> {
    [Label::Negative, Label::Neutral, Label::Positive, Label::Uncertain]
        .into_iter()
        .find(|l| l.as_str() == text)
        .ok_or(CodecError::Column { column: "label", message: "holds a word that is no label".to_owned() })
}

pub(super) fn read_posts(batch: &RecordBatch, out: &mut Vec<Archived>) -> Result<(), CodecError> {
    let text = |c: &'static str| column::<StringArray>(batch, c);
    let score = |c: &'static str| column::<Decimal128Array>(batch, c);
    let int = |c: &'static str| column::<Int64Array>(batch, c);
    let (offset, created, reach) =
        (int("labelled_offset")?, column::<TimestampMicrosecondArray>(batch, "created_at")?, int("reach")?);
    let (id, labels, lang, channel) = (text("id")?, text("label")?, text("lang")?, text("channel")?);
    let (author, body, model, hash) = (text("author")?, text("text")?, text("model")?, text("model_hash")?);
    let (confidence, negative) = (score("confidence")?, score("negative")?);
    let (neutral, positive) = (score("neutral")?, score("positive")?);
    let brands: &ListArray = column(batch, "brands")?;
    let (topic, partition) = (text("source_topic")?, column::<Int32Array>(batch, "source_partition")?);
    let source_offset = int("source_offset")?;
    let maybe = |a: &StringArray, i: usize| a.is_valid(i).then(|| a.value(i).to_owned());
    let p = |a: &Decimal128Array, i: usize| a.value(i) as f64 / Scores::UNITS as f64;
    for i in 0..batch.num_rows() {
        let list = brands.value(i);
        let list: &StringArray = list.as_any().downcast_ref().ok_or_else(|| CodecError::Column {
            column: "brands",
            message: "is no list of strings".to_owned(),
        })?;
        let post = Labelled {
            schema: Labelled::SCHEMA,
            id: id.value(i).to_owned(),
            created_at: Timestamp(created.value(i)),
            label: label(labels.value(i))?,
            confidence: p(confidence, i),
            scores: Scores { negative: p(negative, i), neutral: p(neutral, i), positive: p(positive, i) },
            brands: list.iter().flatten().map(Into::into).collect(),
            lang: lang.value(i).to_owned(),
            channel: channel.value(i).to_owned(),
            author: maybe(author, i),
            reach: reach.is_valid(i).then(|| reach.value(i)),
            text: maybe(body, i),
            model: ModelId { name: model.value(i).into(), hash: hash.value(i).into() },
            source: SourceRef {
                topic: topic.value(i).into(),
                partition: partition.value(i),
                offset: source_offset.value(i),
            },
        };
        out.push(Archived { offset: Offset(offset.value(i)), post });
    }
    Ok(())
}
