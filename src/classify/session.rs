//! One ONNX session: a graph on a device, checked against the artifact, that turns encodings into
//! logits. The only user of `ort` sessions.

use std::path::Path;

use ort::{
    ep,
    memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType},
    session::{
        HasSelectedOutputs, OutputSelector, RunOptions, Session as OrtSession, SessionInputValue,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::{Outlet, TensorElementType, TensorRef, ValueType},
};

use crate::{
    batch,
    classify::runtime::{self, RuntimeError},
    record::Logits,
    tokenize::Encoding,
};

/// Where a session runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The CPU, with this many threads inside one operator.
    Cpu {
        /// `intra_op_num_threads`.
        threads: usize,
    },
    /// CUDA.
    Cuda {
        /// Device number.
        device_id: i32,
    },
}

impl Provider {
    /// `cpu` or `cuda`, as in `artifact.json` and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu { .. } => "cpu",
            Self::Cuda { .. } => "cuda",
        }
    }
}

/// What a session must know of the model besides its graph.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Labels: columns of `logits`.
    pub labels: usize,
    /// Longest encoding.
    pub longest: usize,
    /// The id that fills up short rows.
    pub pad_id: u32,
}

/// Why a session cannot be had, or a micro-batch cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The library is not there.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The device refuses.
    #[error(
        "CUDA device {device_id} cannot be used: {message}; needs libonnxruntime_providers_cuda.so beside the runtime, the CUDA 13 libraries and cuDNN 9; device = \"cpu\" runs without"
    )]
    Cuda {
        /// Device number.
        device_id: i32,
        /// The runtime's reason.
        message: String,
    },
    /// The graph cannot be loaded.
    #[error("{path}: cannot load the graph: {message}")]
    Load {
        /// The graph.
        path: String,
        /// The runtime's reason.
        message: String,
    },
    /// The graph is not one of ours.
    #[error("{path}: {message}")]
    Graph {
        /// The graph.
        path: String,
        /// What was expected and what was found.
        message: String,
    },
    /// The runtime refuses a micro-batch.
    #[error("inference failed: {0}")]
    Run(String),
}

/// A session. It is used by one thread at a time.
pub struct Session {
    inner: OrtSession,
    inputs: Vec<Input>,
    only_logits: RunOptions<HasSelectedOutputs>,
    provider: Provider,
    shape: Shape,
    padded: Padded,
}

/// What a graph may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Ids,
    Mask,
    Types,
}

impl Input {
    const NAMES: [(&'static str, Self); 3] =
        [("input_ids", Self::Ids), ("attention_mask", Self::Mask), ("token_type_ids", Self::Types)];

    fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

impl Session {
    /// Loads `graph` on `provider` and checks its inputs and outputs. `runtime` is `model.runtime`.
    pub fn open(
        graph: &Path,
        provider: Provider,
        shape: Shape,
        runtime: &Path,
    ) -> Result<Self, SessionError> {
        let environment = runtime::environment(runtime)?;
        let load = |e: ort::Error| SessionError::Load {
            path: graph.display().to_string(),
            message: one_line(e.message()),
        };
        let builder = SessionBuilder::new(environment).map_err(load)?;
        let mut builder = configure(builder, provider)?;
        let inner = builder.commit_from_file(graph).map_err(load)?;
        let inputs = check_graph(&inner, shape.labels)
            .map_err(|message| SessionError::Graph { path: graph.display().to_string(), message })?;
        let only_logits =
            RunOptions::new().map_err(load)?.with_outputs(OutputSelector::no_default().with("logits"));
        Ok(Self { inner, inputs, only_logits, provider, shape, padded: Padded::default() })
    }

    /// The logits of each row. All rows are padded to the widest; the caller sees to it that they are
    /// of one padded width ([`batch::plan`]). A row whose logits are not finite gets an error of its own.
    pub fn run(&mut self, rows: &[&Encoding]) -> Result<Vec<Result<Logits, String>>, SessionError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let longest = rows.iter().map(|r| r.len()).max().unwrap_or(0);
        self.padded.fill(rows, batch::padded(longest, self.shape.longest), self.shape.pad_id);
        let data = match self.provider {
            Provider::Cpu { .. } => self.run_plain(),
            Provider::Cuda { .. } => self.run_bound(),
        }
        .map_err(|e| SessionError::Run(one_line(e.message())))?;
        let labels = self.shape.labels;
        if data.len() != rows.len() * labels {
            return Err(SessionError::Run(format!(
                "logits hold {} numbers, expected {} rows × {labels} labels",
                data.len(),
                rows.len()
            )));
        }
        Ok(data.chunks_exact(labels).map(finite).collect())
    }

    fn run_plain(&mut self) -> ort::Result<Vec<f32>> {
        let inputs = self.padded.tensors(&self.inputs)?;
        let outputs = self.inner.run_with_options(inputs, &self.only_logits)?;
        Ok(outputs["logits"].try_extract_tensor::<f32>()?.1.to_vec())
    }

    /// I/O binding: inputs are copied to the device once, `logits` alone comes back.
    fn run_bound(&mut self) -> ort::Result<Vec<f32>> {
        let mut binding = self.inner.create_binding()?;
        for (name, tensor) in self.padded.tensors(&self.inputs)? {
            binding.bind_input(name, &tensor)?;
        }
        let host = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput)?;
        binding.bind_output_to_device("logits", &host)?;
        let outputs = self.inner.run_binding(&binding)?;
        binding.synchronize_outputs()?;
        Ok(outputs["logits"].try_extract_tensor::<f32>()?.1.to_vec())
    }
}

fn configure(builder: SessionBuilder, provider: Provider) -> Result<SessionBuilder, SessionError> {
    let run = |e: ort::Error<SessionBuilder>| SessionError::Run(one_line(e.message()));
    // Shapes change with every micro-batch: a memory pattern would be planned for each of them.
    let builder = builder.with_memory_pattern(false).map_err(run)?.with_inter_threads(1).map_err(run)?;
    match provider {
        // A waiting thread must leave its core to the other stages: no spinning.
        Provider::Cpu { threads } => builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(run)?
            .with_intra_threads(threads)
            .map_err(run)?
            .with_intra_op_spinning(false)
            .map_err(run)?
            .with_execution_providers([ep::CPU::default().with_arena_allocator(true).build()])
            .map_err(run),
        // Without error_on_failure the runtime would go on with the CPU and say nothing.
        Provider::Cuda { device_id } => builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(run)?
            .with_intra_threads(1)
            .map_err(run)?
            .with_execution_providers([ep::CUDA::default()
                .with_device_id(device_id)
                .build()
                .error_on_failure()])
            .map_err(|e| SessionError::Cuda { device_id, message: one_line(e.message()) }),
    }
}

/// The inputs that the graph wants; an error says what is wrong with its inputs or outputs.
fn check_graph(session: &OrtSession, labels: usize) -> Result<Vec<Input>, String> {
    let mut inputs = Vec::new();
    for outlet in session.inputs() {
        let name = outlet.name();
        let Some((_, input)) = Input::NAMES.iter().find(|(n, _)| *n == name) else {
            return Err(format!(
                "the graph asks for input '{name}', expected input_ids, attention_mask and perhaps token_type_ids"
            ));
        };
        if !is_free_matrix(outlet.dtype()) {
            return Err(format!("input '{name}' is {}, expected int64 [batch, tokens]", outlet.dtype()));
        }
        inputs.push(*input);
    }
    for required in [Input::Ids, Input::Mask] {
        if !inputs.contains(&required) {
            return Err(format!(
                "the graph has no input '{}' (inputs: {})",
                required.name(),
                names(session.inputs())
            ));
        }
    }
    let Some(logits) = session.outputs().iter().find(|o| o.name() == "logits") else {
        return Err(format!("the graph has no output 'logits' (outputs: {})", names(session.outputs())));
    };
    let fits = matches!(logits.dtype(), ValueType::Tensor { ty: TensorElementType::Float32, shape, .. }
        if shape.len() == 2 && (shape[1] == -1 || usize::try_from(shape[1]) == Ok(labels)));
    if !fits {
        return Err(format!(
            "output 'logits' is {}, expected float [batch, {labels}] for the {labels} labels of this folder",
            logits.dtype()
        ));
    }
    Ok(inputs)
}

fn is_free_matrix(dtype: &ValueType) -> bool {
    matches!(dtype, ValueType::Tensor { ty: TensorElementType::Int64, shape, .. }
        if shape.len() == 2 && shape.iter().all(|d| *d == -1))
}

fn names(outlets: &[Outlet]) -> String {
    outlets.iter().map(Outlet::name).collect::<Vec<_>>().join(", ")
}

fn finite(logits: &[f32]) -> Result<Logits, String> {
    if logits.iter().all(|x| x.is_finite()) {
        Ok(logits.to_vec())
    } else {
        Err(format!("the model's logits are not finite: {logits:?}"))
    }
}

/// The runtime's messages can run over lines and quote its source files.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The inputs of one micro-batch, kept between runs for their memory.
#[derive(Default)]
struct Padded {
    rows: usize,
    width: usize,
    ids: Vec<i64>,
    mask: Vec<i64>,
    types: Vec<i64>,
}

impl Padded {
    fn fill(&mut self, rows: &[&Encoding], width: usize, pad_id: u32) {
        (self.rows, self.width) = (rows.len(), width);
        self.ids.clear();
        self.mask.clear();
        for row in rows {
            let padding = width - row.len();
            self.ids.extend(row.ids.iter().map(|id| i64::from(*id)));
            self.ids.extend(std::iter::repeat_n(i64::from(pad_id), padding));
            self.mask.extend(std::iter::repeat_n(1, row.len()));
            self.mask.extend(std::iter::repeat_n(0, padding));
        }
        self.types.clear();
        self.types.resize(self.ids.len(), 0);
    }

    fn tensors(&self, inputs: &[Input]) -> ort::Result<Vec<(&'static str, SessionInputValue<'_>)>> {
        inputs
            .iter()
            .map(|input| {
                let data = match input {
                    Input::Ids => &self.ids,
                    Input::Mask => &self.mask,
                    Input::Types => &self.types,
                };
                let tensor = TensorRef::from_array_view(([self.rows, self.width], data.as_slice()))?;
                Ok((input.name(), tensor.into()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_one_width() {
        let rows = [Encoding { ids: vec![5, 6, 7] }, Encoding { ids: vec![8] }];
        let mut p = Padded::default();
        p.fill(&[&rows[0], &rows[1]], 4, 9);
        assert_eq!(p.ids, [5, 6, 7, 9, 8, 9, 9, 9]);
        assert_eq!(p.mask, [1, 1, 1, 0, 1, 0, 0, 0]);
        assert_eq!(p.types, [0; 8]);
        p.fill(&[&rows[1]], 1, 9);
        assert_eq!((p.rows, p.width, p.ids.as_slice(), p.types.as_slice()), (1, 1, &[8i64][..], &[0i64][..]));
    }

    #[test]
    fn logits_must_be_finite() {
        assert_eq!(finite(&[1.0, -2.0]), Ok(vec![1.0, -2.0]));
        assert!(finite(&[f32::NAN, 0.0]).is_err() && finite(&[f32::INFINITY]).is_err());
    }

    #[test]
    fn messages_of_the_runtime_become_one_line() {
        assert_eq!(one_line("a\n  b\t c\n"), "a b c");
    }
}
