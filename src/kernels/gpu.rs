//! Implements [`Ops`](crate::ops::Ops) with the CUDA kernels, on a GPU or the simulator.
//!
//! Activations, residual stream and weights have one dtype, f16 or bf16; logits are f32; reductions accumulate in f32.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::attention::MAX_HEAD_DIM;
use super::kv_cache::Cache;
use super::rates::rates;
use super::sample::MAX_VOCAB;
use super::step::{Step, TILE_QUERIES};
use super::weights::{GatedMatrix, Matrix, OnDevice, stacked};
use super::{
    AttentionDecode, AttentionPrefill, Embedding, Heads, MatMul, Norm, PermuteColumns, QkGains, RmsNorm, RotaryKvWrite,
    Sample, Scoring, SplitStates, TargetLogprobs,
};
use crate::device::{Counters, Graph, Memory, Slice, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{
    self, Activation, Batch, CacheShape, KernelLimits, LinearPart, Ops, Rates, Sampled, StepShape, Weight, WeightView,
};

/// A device that runs the CUDA kernels.
pub struct Gpu {
    stream: Stream,
    /// Dtype of activations and weights.
    dtype: DType,
    /// Tokens of the largest step.
    batch_tokens: usize,
    vocab: usize,
    /// Workspace of products; launches on one stream share it.
    workspace: Mutex<Memory>,
    states: Mutex<DecodeStates>,
    /// Activations in the order of a weight's codes; empty without such weights.
    permuted: Mutex<Memory>,
}

/// Workspace of decode attention: see [`SplitStates`].
struct DecodeStates {
    counters: Memory,
    partials: Memory,
}

impl Gpu {
    /// Bytes of workspace beside a KV cache of this shape, for any number of pages: that of the kernels, and the pages
    /// in which moves to and from the host are staged.
    pub fn workspace_bytes(cache: &CacheShape) -> u64 {
        let words = MatMul::WORKSPACE + SplitStates::COUNTERS + SplitStates::PARTIALS;
        (4 * words).saturating_add(Cache::staging_bytes(cache)) as u64
    }

    /// `dtype` is that of activations and weights; checkpoints in another one are converted while loading.
    /// `batch_tokens` is the size of the largest step, `vocab` the model's vocabulary.
    ///
    /// # Errors
    /// The kernels do not support the dtype on this device, or device memory is short.
    pub fn new(stream: Stream, dtype: DType, batch_tokens: usize, vocab: usize) -> Result<Self> {
        let arch = stream.arch();
        match dtype {
            DType::F16 => {}
            DType::BF16 if arch >= 80 => {}
            DType::BF16 => {
                let expected = format!("f16: sm_{arch} has no bf16, give --dtype f16");
                return Err(Error::request("dtype", expected, dtype));
            }
            _ => return Err(Error::request("dtype", "bf16 or f16 on a GPU", dtype)),
        }
        let workspace = Mutex::new(stream.alloc(DType::U32, MatMul::WORKSPACE)?);
        // Fresh memory is zero, as counters require.
        let counters = stream.alloc(DType::U32, SplitStates::COUNTERS)?;
        let partials = stream.alloc(DType::F32, SplitStates::PARTIALS)?;
        let states = Mutex::new(DecodeStates { counters, partials });
        let permuted = Mutex::new(stream.alloc(dtype, 0)?);
        Ok(Self { stream, dtype, batch_tokens, vocab, workspace, states, permuted })
    }

    /// Default dtype for a checkpoint stored as `stored`: the same if the device supports it, bf16 for f32, f16 on
    /// Volta and Turing, which have no bf16.
    pub fn default_dtype(arch: u32, stored: DType) -> DType {
        if stored == DType::F16 || arch < 80 { DType::F16 } else { DType::BF16 }
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Makes room for activations of the largest step, where the weight needs them in another order.
    fn reserve_permuted(&self, weight: &OnDevice, k: usize) -> Result<()> {
        let mut permuted = self.permuted.lock().unwrap_or_else(PoisonError::into_inner);
        let len = self.batch_tokens.saturating_mul(k);
        if weight.order().is_some() && permuted.len() < len {
            *permuted = self.stream.alloc(self.dtype, len)?;
        }
        Ok(())
    }

    /// Calls `f` with the activations `[rows, k]` in the order of the weight's codes.
    fn in_order(
        &self,
        [rows, k]: [usize; 2],
        x: &Memory,
        weight: &OnDevice,
        f: impl FnOnce(Slice<'_>) -> Result<()>,
    ) -> Result<()> {
        let Some(order) = weight.order() else { return f(x.slice()) };
        let mut permuted = self.permuted.lock().unwrap_or_else(PoisonError::into_inner);
        PermuteColumns { x: x.slice(), order, out: permuted.slice_mut(), rows, width: k }.launch(&self.stream)?;
        f(permuted.slice())
    }

    fn product(&self, rows: usize, x: &Memory, weight: &Matrix, out: &mut Memory, accumulate: bool) -> Result<()> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_order([rows, weight.k], x, &weight.weight, |x| {
            let args = MatMul {
                x,
                weight: weight.weight.operand(),
                bias: weight.bias.as_ref().map(Memory::slice),
                gate: None,
                out: out.slice_mut(),
                accumulate,
                scale: None,
                workspace: Some(workspace.slice_mut()),
                m: rows,
                n: weight.n,
                k: weight.k,
            };
            args.launch(&self.stream)
        })
    }
}

impl Ops for Gpu {
    type Buffer = Memory;
    type Matrix = Matrix;
    type GatedMatrix = GatedMatrix;
    type Vector = Memory;
    type Cache = Cache;
    type Step = Step;
    type Recording = Graph;

    fn describe(&self) -> String {
        let info = self.stream.info();
        format!("{} ({}, {} multiprocessors)", info.device, info.name, info.sms)
    }

    fn limits(&self) -> KernelLimits {
        KernelLimits { head_dim: MAX_HEAD_DIM, vocab: MAX_VOCAB }
    }

    fn counters(&self) -> Counters {
        self.stream.counters()
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn check(&self) -> Result<()> {
        self.stream.synchronize()
    }

    fn fails_for_good(&self) -> bool {
        self.stream.fails_for_good()
    }

    fn rates(&self, _activations: DType) -> Result<Rates> {
        rates(&self.stream)
    }

    fn wide_dtype(&self, activation: DType) -> DType {
        activation
    }

    fn matrix(&self, parts: Vec<LinearPart>) -> Result<Matrix> {
        let matrix = Matrix::new(&self.stream, self.dtype, parts)?;
        self.reserve_permuted(&matrix.weight, matrix.k)?;
        Ok(matrix)
    }

    /// Its kernel gathers rows of the activations' dtype.
    fn table(&self, weight: Weight) -> Result<Matrix> {
        let weight = match weight {
            Weight::Coded(coded) => {
                coded.check()?;
                Weight::Dense(coded.dense(self.dtype))
            }
            dense => dense,
        };
        self.matrix(vec![LinearPart { weight, bias: None }])
    }

    fn gated_matrix(&self, parts: Vec<LinearPart>) -> Result<GatedMatrix> {
        let matrix = GatedMatrix::new(&self.stream, self.dtype, parts)?;
        self.reserve_permuted(&matrix.weight, matrix.k)?;
        Ok(matrix)
    }

    fn vector(&self, weight: WeightView) -> Result<Memory> {
        stacked(&self.stream, self.dtype, &[weight])
    }

    fn floats(&self, values: &[f32]) -> Result<Memory> {
        let mut memory = self.stream.alloc(DType::F32, values.len())?;
        memory.write(values)?;
        Ok(memory)
    }

    fn buffer(&self, dtype: DType, len: usize) -> Result<Memory> {
        self.stream.alloc(dtype, len)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache> {
        Cache::new(&self.stream, self.dtype, shape)
    }

    fn step(&self) -> Result<Step> {
        Step::new(&self.stream, self.batch_tokens, self.vocab)
    }

    fn prepare(&self, batch: &Batch, step: &mut Step) -> Result<()> {
        step.prepare(batch)
    }

    fn upload(&self, batch: &Batch, step: &mut Step) -> Result<StepShape> {
        step.upload(batch)
    }

    fn write_floats(&self, x: &mut Memory, start: usize, values: &[f32]) -> Result<()> {
        x.write_at(start, values)
    }

    fn embedding(&self, step: &Step, table: &Matrix, out: &mut Memory) -> Result<()> {
        let OnDevice::Dense(weight) = &table.weight else {
            return Err(Error::operator("embedding", "table", "a dense weight", "codes"));
        };
        let args = Embedding {
            table: weight.slice(),
            rows: step.tokens()?,
            out: out.slice_mut(),
            tokens: step.shape().tokens,
            width: table.k,
        };
        args.launch(&self.stream)
    }

    fn gather_rows(&self, step: &Step, rows: Range<usize>, width: usize, x: &Memory, out: &mut Memory) -> Result<()> {
        let tokens = rows.len();
        let rows = step.logit_rows(rows)?;
        Embedding { table: x.slice(), rows, out: out.slice_mut(), tokens, width }.launch(&self.stream)
    }

    fn copy_pages(&self, cache: &mut Cache, pairs: &[[u32; 2]]) -> Result<()> {
        ops::check_page_copies(cache.shape().pages, pairs)?;
        cache.copy_pages(&self.stream, pairs)
    }

    fn read_pages(&self, cache: &mut Cache, pages: &[u32]) -> Result<Vec<u8>> {
        cache.read_pages(&self.stream, pages)
    }

    fn write_pages(&self, cache: &mut Cache, pages: &[u32], from: &[u8]) -> Result<()> {
        cache.write_pages(&self.stream, pages, from)
    }

    fn rms_norm(
        &self,
        rows: usize,
        width: usize,
        residual: &mut Memory,
        delta: Option<&Memory>,
        weight: &Memory,
        eps: f32,
        out: &mut Memory,
    ) -> Result<()> {
        let args = RmsNorm {
            residual: residual.slice_mut(),
            delta: delta.map(Memory::slice),
            weight: weight.slice(),
            bias: None,
            out: out.slice_mut(),
            scales: None,
            rows,
            width,
            eps,
            weight_offset: 0.0,
            norm: Norm::Rms,
        };
        args.launch(&self.stream)
    }

    fn matmul(&self, rows: usize, x: &Memory, weight: &Matrix, out: &mut Memory) -> Result<()> {
        self.product(rows, x, weight, out, false)
    }

    fn matmul_add(&self, rows: usize, x: &Memory, weight: &Matrix, residual: &mut Memory) -> Result<()> {
        self.product(rows, x, weight, residual, true)
    }

    fn gated_matmul(
        &self,
        rows: usize,
        x: &Memory,
        weight: &GatedMatrix,
        activation: Activation,
        out: &mut Memory,
    ) -> Result<()> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        self.in_order([rows, weight.k], x, &weight.weight, |x| {
            let args = MatMul {
                x,
                weight: weight.weight.operand(),
                bias: weight.bias.as_ref().map(Memory::slice),
                gate: Some(activation),
                out: out.slice_mut(),
                accumulate: false,
                scale: None,
                workspace: Some(workspace.slice_mut()),
                m: rows,
                n: weight.width,
                k: weight.k,
            };
            args.launch(&self.stream)
        })
    }

    fn rotary_kv_write(&self, step: &Step, args: ops::RotaryKvWrite<'_, Self>) -> Result<()> {
        let gains = args.qk_norm.map(|norm| QkGains {
            query: norm.query.slice(),
            key: norm.key.slice(),
            eps: norm.eps,
            offset: 0.0,
        });
        let launch = RotaryKvWrite {
            qkv: args.qkv.slice(),
            query: args.query.slice_mut(),
            cache: args.cache.write(args.layer)?,
            slots: step.slots()?,
            rope: step.rope(args.rope.factors.slice(), args.rope.rows, args.rotary_dim)?,
            gains,
            tokens: step.shape().tokens,
            heads: args.heads,
            kv_heads: args.kv_heads,
            head_dim: args.head_dim,
            rotary_dim: args.rotary_dim,
        };
        launch.launch(&self.stream)
    }

    fn attention(&self, step: &Step, args: ops::Attention<'_, Self>) -> Result<()> {
        let (query, shape) = (args.query.slice(), args.cache.shape());
        let (tokens, kv_heads, head_dim) = (step.shape().tokens, shape.kv_heads, shape.head_dim);
        let heads = Heads { tokens, heads: args.heads, kv_heads, head_dim };
        let (cache, spans, page_table) = (args.cache.read(args.layer)?, step.spans()?, step.page_table());
        args.scoring.check("attention", step.has_trees())?;
        let ops::Scoring { scale, soft_cap, window, chunk, slopes, sinks } = args.scoring;
        let (slopes, sinks) = (slopes.map(Memory::slice), sinks.map(Memory::slice));
        let scoring = Scoring { scale, soft_cap, window, chunk, slopes, sinks };
        let masks = step.masks()?;
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let DecodeStates { counters, partials } = &mut *states;
        let states = SplitStates { counters: counters.slice_mut(), partials: partials.slice_mut() };
        if !step.is_decode() {
            let launch = AttentionPrefill {
                query,
                out: args.out.slice_mut(),
                cache,
                spans,
                tiles: step.tiles()?,
                tile_queries: TILE_QUERIES,
                kv_len: step.kv_len(),
                page_table,
                masks,
                heads,
                scoring,
            };
            let plan = launch.plan(&self.stream, states.records(head_dim))?;
            if !plan.decodes {
                return launch.launch_variant(&self.stream, plan.variant);
            }
        }
        let out = args.out.slice_mut();
        let launch = AttentionDecode { query, out, cache, spans, page_table, states, masks, heads, scoring };
        launch.launch(&self.stream)
    }

    fn edit_row(&self, x: &mut Memory, row: usize, width: usize, edit: &mut dyn FnMut(&mut [f32])) -> Result<()> {
        let mut values = vec![0f32; width];
        x.read_at(row * width, bytemuck::cast_slice_mut(&mut values))?;
        edit(&mut values);
        x.write_at(row * width, &values)
    }

    fn sample(&self, step: &mut Step, rows: Range<usize>, vocab: usize, logits: &mut Memory) -> Result<()> {
        let last = rows.end == step.shape().logit_rows;
        let (len, found) = (rows.len() * vocab, logits.len());
        let wrong = || Error::operator("sample", "logits", format!("at least {len} elements"), found);
        let words = step.samples(rows)?;
        let (rows, lists, results) = (words.rows, words.lists, words.results);
        let logits = logits.slice_mut().range(0..len).ok_or_else(wrong)?;
        Sample { logits, rows, lists, results, vocab }.launch(&self.stream)?;
        // One copy to the host, after the last group of rows.
        if last { step.collect_samples() } else { Ok(()) }
    }

    fn sampled(&self, step: &mut Step) -> Result<Vec<Result<Sampled>>> {
        step.sampled()
    }

    fn target_logprobs(&self, step: &mut Step, rows: Range<usize>, vocab: usize, logits: &Memory) -> Result<()> {
        let last = rows.end == step.shape().logit_rows;
        let len = rows.len() * vocab;
        let wrong = || Error::operator("target_logprobs", "logits", format!("at least {len} elements"), logits.len());
        let (targets, out) = step.targets(rows)?;
        TargetLogprobs { logits: logits.slice().range(0..len).ok_or_else(wrong)?, targets, out, vocab }
            .launch(&self.stream)?;
        if last { step.collect_scores() } else { Ok(()) }
    }

    fn scored(&self, step: &mut Step) -> Result<Vec<f32>> {
        step.scored()
    }

    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.stream.capture(work)
    }

    fn replay(&self, recording: &Graph) -> Result<()> {
        recording.replay()
    }
}
