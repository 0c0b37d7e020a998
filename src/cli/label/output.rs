//! Where `label` writes: NDJSON, CSV or Parquet. A file appears under its name only when it is whole.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::record::Labelled;

/// An output being written.
pub struct Output {
    format: Format,
    /// Written to, and what it is called when whole; `None` for standard output.
    rename: Option<(PathBuf, PathBuf)>,
}

enum Format {
    Ndjson(BufWriter<Box<dyn Write>>),
    Csv(Box<csv::Writer<Box<dyn Write>>>),
}

/// Columns of the CSV form.
const COLUMNS: [&str; 15] = [
    "id",
    "created_at",
    "label",
    "confidence",
    "negative",
    "neutral",
    "positive",
    "brands",
    "lang",
    "channel",
    "author",
    "reach",
    "text",
    "model",
    "model_hash",
];

impl Output {
    /// Opens `path` by its extension; NDJSON on standard output for `None` and `-`.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|p| *p != Path::new("-")) else {
            return Ok(Self { format: Format::Ndjson(BufWriter::new(Box::new(io::stdout()))), rename: None });
        };
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if !["ndjson", "jsonl", "json", "csv"].contains(&extension.as_str()) {
            bail!("{}: the extension tells no output format: expected .ndjson or .csv", path.display());
        }
        // A pipe or a device is written to as it is.
        let special = fs::metadata(path).is_ok_and(|m| !m.is_file());
        let target = if special { path.to_owned() } else { partial(path) };
        let file = File::create(&target).with_context(|| format!("{}: cannot create", target.display()))?;
        let sink: Box<dyn Write> = Box::new(file);
        let format = if extension == "csv" {
            let mut writer = csv::Writer::from_writer(sink);
            writer.write_record(COLUMNS)?;
            Format::Csv(Box::new(writer))
        } else {
            Format::Ndjson(BufWriter::new(sink))
        };
        Ok(Self { format, rename: (!special).then(|| (target, path.to_owned())) })
    }

    /// Writes one labelled post.
    pub fn write(&mut self, post: Labelled) -> anyhow::Result<()> {
        match &mut self.format {
            Format::Ndjson(w) => {
                serde_json::to_writer(&mut *w, &post)?;
                w.write_all(b"\n")?;
            }
            Format::Csv(w) => w.write_record(row(&post))?,
        }
        Ok(())
    }

    /// Everything is written: the file gets its name.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.format {
            Format::Ndjson(mut w) => w.flush()?,
            Format::Csv(mut w) => w.flush()?,
        }
        if let Some((from, to)) = self.rename {
            fs::rename(&from, &to)
                .with_context(|| format!("{}: cannot rename to {}", from.display(), to.display()))?;
        }
        Ok(())
    }
}

/// `out.csv` → `out.csv.partial`, in the same folder.
fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    name.into()
}

fn row(p: &Labelled) -> [String; 15] {
    let four = |x: f64| format!("{x:.4}");
    let brands: Vec<&str> = p.brands.iter().map(|b| &**b).collect();
    [
        p.id.clone(),
        p.created_at.to_string(),
        p.label.as_str().to_owned(),
        four(p.confidence),
        four(p.scores.negative),
        four(p.scores.neutral),
        four(p.scores.positive),
        brands.join(";"),
        p.lang.clone(),
        p.channel.clone(),
        p.author.clone().unwrap_or_default(),
        p.reach.map(|n| n.to_string()).unwrap_or_default(),
        p.text.clone().unwrap_or_default(),
        p.model.name.to_string(),
        p.model.hash.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::{Label, ModelId, Scores, SourceRef, Timestamp};

    fn post() -> Labelled {
        Labelled {
            schema: Labelled::SCHEMA,
            id: "1".into(),
            created_at: Timestamp(0),
            label: Label::Positive,
            confidence: 0.9,
            scores: Scores { negative: 0.05, neutral: 0.05, positive: 0.9 },
            brands: vec!["Acme".into(), "Böx".into()],
            lang: "en".into(),
            channel: "x".into(),
            author: None,
            reach: Some(7),
            text: Some("so, \"good\"\nreally".into()),
            model: ModelId { name: "m".into(), hash: "h".into() },
            source: SourceRef { topic: "f".into(), partition: 0, offset: 3 },
        }
    }

    #[test]
    fn the_file_has_its_name_only_when_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.ndjson");
        let mut out = Output::open(Some(&path)).unwrap();
        out.write(post()).unwrap();
        assert!(!path.exists());
        out.finish().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<Labelled>(text.trim_end()).unwrap(), post());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn csv_has_named_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.csv");
        let mut out = Output::open(Some(&path)).unwrap();
        out.write(post()).unwrap();
        out.finish().unwrap();
        let mut reader = csv::Reader::from_path(&path).unwrap();
        assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
        let row = reader.records().next().unwrap().unwrap();
        assert_eq!(
            (&row[1], &row[6], &row[7], &row[11]),
            ("1970-01-01T00:00:00Z", "0.9000", "Acme;Böx", "7")
        );
        assert_eq!(&row[12], "so, \"good\"\nreally");
    }

    #[test]
    fn an_unknown_extension_is_an_error() {
        let e = Output::open(Some(Path::new("x.xlsx"))).err().unwrap().to_string();
        assert!(e.contains("x.xlsx") && e.contains(".ndjson"), "{e}");
    }
}
