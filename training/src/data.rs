//! Labelled texts from CSV, TSV and JSON lines.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use anyhow::{Context, Result, anyhow, bail};
use sentistream::{prepare::TextPreparation, record::Sentiment, tokenize::Tokenizer};
use serde::Serialize;

/// Where the rows are and which columns hold what.
#[derive(Clone, Debug)]
pub struct Source {
    /// `.csv`, `.tsv` or `.jsonl`/`.ndjson`.
    pub path: PathBuf,
    /// Column (or JSON key) with the text.
    pub text: String,
    /// Column (or JSON key) with the label.
    pub label: String,
}

/// A row as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its text, not prepared.
    pub text: String,
    /// Its label.
    pub label: Sentiment,
}

/// A row ready for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Index into [`Sentiment::ALL`].
    pub label: usize,
}

/// How many rows a file had and how many were left out, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows in the file.
    pub read: usize,
    /// Left out: nothing remained of the text after preparation.
    pub empty: usize,
    /// Left out: prepared text and label stood in an earlier row.
    pub repeated: usize,
    /// Left out: the prepared text is in the validation set.
    pub in_validation: usize,
    /// Kept.
    pub kept: usize,
}

/// Examples with what was left out.
pub struct Set {
    /// The examples, in file order.
    pub examples: Vec<Example>,
    /// What became of the rows.
    pub counts: Counts,
}

impl Set {
    /// Rows by label, in the order of [`Sentiment::ALL`].
    pub fn by_label(&self) -> Vec<usize> {
        let mut n = vec![0; Sentiment::ALL.len()];
        self.examples.iter().for_each(|e| n[e.label] += 1);
        n
    }
}

/// The label names in index order.
pub fn labels() -> Vec<String> {
    Sentiment::ALL.map(|s| s.as_str().to_owned()).to_vec()
}

/// Reads all rows of a file, in order.
pub fn read(source: &Source) -> Result<Vec<Row>> {
    let path = source.path.display();
    let file = File::open(&source.path).with_context(|| format!("{path}: cannot read"))?;
    let extension = source.path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    let rows = match extension.as_deref() {
        Some("csv") => read_delimited(file, b',', source),
        Some("tsv") => read_delimited(file, b'\t', source),
        Some("jsonl" | "ndjson") => read_json_lines(file, source),
        _ => bail!("{path}: the name ends in none of .csv, .tsv, .jsonl, .ndjson"),
    }
    .with_context(|| path.to_string())?;
    if rows.is_empty() {
        bail!("{path}: has no rows");
    }
    Ok(rows)
}

fn read_delimited(file: File, delimiter: u8, source: &Source) -> Result<Vec<Row>> {
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).quoting(true).from_reader(BufReader::new(file));
    let headers = reader.headers().context("line 1: cannot read the column names")?.clone();
    let column = |name: &str| {
        headers.iter().position(|h| h.trim_start_matches('\u{feff}') == name).ok_or_else(|| {
            let have = headers.iter().collect::<Vec<_>>().join(", ");
            anyhow!("line 1: no column '{name}'; columns: {have} (choose with --text-column, --label-column)")
        })
    };
    let (text, label) = (column(&source.text)?, column(&source.label)?);
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| anyhow!("{e}"))?;
        let line = record.position().map_or(0, csv::Position::line);
        rows.push(Row {
            text: record[text].to_owned(),
            label: parse_label(&record[label], line, &source.label)?,
        });
    }
    Ok(rows)
}

fn read_json_lines(file: File, source: &Source) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let n = i as u64 + 1;
        let line = line.with_context(|| format!("line {n}: cannot read"))?;
        if line.trim().is_empty() {
            continue;
        }
        let value: serde_json::Value =
            serde_json::from_str(&line).map_err(|e| anyhow!("line {n}: not JSON: {e}"))?;
        let field = |key: &str| {
            value
                .get(key)
                .and_then(|v| v.as_str())
                .ok_or_else(|| anyhow!("line {n}: '{key}' is missing or not a string"))
        };
        rows.push(Row {
            text: field(&source.text)?.to_owned(),
            label: parse_label(field(&source.label)?, n, &source.label)?,
        });
    }
    Ok(rows)
}

fn parse_label(value: &str, line: u64, column: &str) -> Result<Sentiment> {
    value.parse().map_err(|e: String| anyhow!("line {line}, column '{column}': {e}"))
}

/// Prepares texts and makes examples of them.
pub struct Preparer<'a> {
    /// What is done to each text.
    pub preparation: &'a TextPreparation,
    /// Prepared text to ids.
    pub tokenizer: &'a Tokenizer,
}

impl Preparer<'_> {
    /// Validation rows: all but empty ones. Also returns their prepared texts.
    pub fn validation(&self, rows: &[Row]) -> Result<(Set, HashSet<String>)> {
        let mut counts = Counts { read: rows.len(), ..Counts::default() };
        let (mut examples, mut texts) = (Vec::new(), HashSet::new());
        for row in rows {
            let text = self.preparation.apply(&row.text);
            match self.example(&text, row.label)? {
                Some(example) => {
                    examples.push(example);
                    texts.insert(text);
                }
                None => counts.empty += 1,
            }
        }
        counts.kept = examples.len();
        Ok((Set { examples, counts }, texts))
    }

    /// Training rows: those whose text is not empty, no exact repeat, and not in `validation`.
    pub fn training(&self, rows: &[Row], validation: &HashSet<String>) -> Result<Set> {
        let mut counts = Counts { read: rows.len(), ..Counts::default() };
        let (mut examples, mut seen) = (Vec::new(), HashSet::new());
        for row in rows {
            let text = self.preparation.apply(&row.text);
            if validation.contains(&text) {
                counts.in_validation += 1;
                continue;
            }
            let Some(example) = self.example(&text, row.label)? else {
                counts.empty += 1;
                continue;
            };
            if !seen.insert((text, row.label)) {
                counts.repeated += 1;
                continue;
            }
            examples.push(example);
        }
        counts.kept = examples.len();
        Ok(Set { examples, counts })
    }

    fn example(&self, text: &str, label: Sentiment) -> Result<Option<Example>> {
        if text.is_empty() {
            return Ok(None);
        }
        let encoding = self.tokenizer.encode(text)?;
        Ok((!encoding.is_empty()).then_some(Example { ids: encoding.ids, label: label as usize }))
    }
}
