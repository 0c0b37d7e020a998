//! ONNX Runtime, as export needs it: one thread, graphs from memory.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::Tensor,
};

/// The process's one environment; the library is found as the processor finds it.
fn environment() -> Result<&'static Environment> {
    Ok(sentistream::classify::runtime::environment(Path::new(""))?)
}

/// A graph that can be run.
pub struct Runner {
    session: Session,
    pad_id: u32,
}

impl Runner {
    /// Loads a graph from its bytes. Byte products are asked to be exact, as the processor asks: without
    /// VNNI they would be added with saturation.
    pub fn new(graph: &[u8], pad_id: u32) -> Result<Self> {
        let mut builder = Session::builder(environment()?)?;
        builder = builder.with_intra_threads(1).map_err(|e| anyhow!("{e}"))?;
        builder = builder.with_precise_qmm().map_err(|e| anyhow!("{e}"))?;
        let session = builder.commit_from_memory(graph).context("ONNX Runtime refuses the graph")?;
        Ok(Self { session, pad_id })
    }

    /// Runs a batch of encoded posts, padded at the end to the longest, and returns the named outputs,
    /// row-major.
    pub fn run<S: AsRef<str>>(&mut self, batch: &[&Vec<u32>], outputs: &[S]) -> Result<Vec<Vec<f32>>> {
        let tokens = batch.iter().map(|p| p.len()).max().unwrap_or(0);
        let shape = [batch.len(), tokens];
        let mut ids = Vec::with_capacity(batch.len() * tokens);
        let mut mask = Vec::with_capacity(batch.len() * tokens);
        for post in batch {
            let padding = tokens - post.len();
            ids.extend(post.iter().map(|id| i64::from(*id)));
            ids.extend(std::iter::repeat_n(i64::from(self.pad_id), padding));
            mask.extend(std::iter::repeat_n(1i64, post.len()));
            mask.extend(std::iter::repeat_n(0i64, padding));
        }
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = Vec::new();
        for input in self.session.inputs() {
            let data = match input.name() {
                "input_ids" => ids.clone(),
                "attention_mask" => mask.clone(),
                "token_type_ids" => vec![0; ids.len()],
                other => bail!("the graph asks for an input '{other}'"),
            };
            inputs.push((input.name().to_owned(), Tensor::from_array((shape, data))?.into()));
        }
        let found = self.session.run(inputs)?;
        outputs
            .iter()
            .map(|name| {
                let value = found
                    .get(name.as_ref())
                    .ok_or_else(|| anyhow!("the graph has no output '{}'", name.as_ref()))?;
                Ok(value.try_extract_tensor::<f32>()?.1.to_vec())
            })
            .collect()
    }

    /// Logits of a batch, by post.
    pub fn logits(&mut self, batch: &[&Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let all = self.run(batch, &["logits"])?.pop().unwrap_or_default();
        let labels = all.len() / batch.len().max(1);
        ensure!(labels > 0, "the graph gave no logits");
        Ok(all.chunks_exact(labels).map(<[f32]>::to_vec).collect())
    }
}
