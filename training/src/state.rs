//! The state file: everything that an interrupted run needs to go on as if nothing had happened.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};

/// Name of the state file in a run folder.
pub const STATE_FILE: &str = "state.safetensors";

/// Parameters and moments, flat, with `position` saying where the run stands.
#[derive(Clone, Debug, PartialEq)]
pub struct State<P> {
    /// Where the run stands, and what it was started with.
    pub position: P,
    /// Parameters.
    pub values: Vec<f32>,
    /// AdamW's first moments.
    pub m: Vec<f32>,
    /// AdamW's second moments.
    pub v: Vec<f32>,
}

impl<P: Serialize + DeserializeOwned> State<P> {
    /// Writes the file whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = |x: &[f32]| x.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>();
        let parts = [("values", &self.values), ("m", &self.m), ("v", &self.v)];
        let raw = parts.map(|(name, x)| (name, x.len(), bytes(x)));
        let views = raw
            .iter()
            .map(|(name, n, b)| Ok((*name, TensorView::new(Dtype::F32, vec![*n], b)?)))
            .collect::<Result<Vec<_>>>()?;
        let about = [("position".to_owned(), serde_json::to_string(&self.position)?)].into_iter().collect();
        write_whole(path, &safetensors::serialize(views, Some(about))?)
    }

    /// Reads a file written by [`State::save`].
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{}: not a state file of this version", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (_, header) = SafeTensors::read_metadata(bytes)?;
        let position = header
            .metadata()
            .as_ref()
            .and_then(|m| m.get("position"))
            .ok_or_else(|| anyhow!("the header says nothing of the position"))?;
        let file = SafeTensors::deserialize(bytes)?;
        let part = |name: &str| -> Result<Vec<f32>> {
            let view = file.tensor(name)?;
            if view.dtype() != Dtype::F32 {
                bail!("{name} has type {:?}, expected F32", view.dtype());
            }
            Ok(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        Ok(Self {
            position: serde_json::from_str(position)?,
            values: part("values")?,
            m: part("m")?,
            v: part("v")?,
        })
    }
}

/// Writes a file beside its place, syncs it, and moves it there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let beside = path.with_extension("part");
        let mut file = fs::File::create(&beside)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    write().with_context(|| format!("{}: cannot write", path.display()))
}
