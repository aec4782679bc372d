//! A GPU as a device that is measured: by replays of graphs, with the L2 cache cold.

use std::time::{Duration, Instant};

use burrstone::device::{Memory, Stream};
use burrstone::kernels::{ActMul, Gpu};
use burrstone::ops::Activation;
use burrstone::{DType, Result};
use half::{bf16, f16};

use crate::support::{Bench, VendorMatmul};

/// More than the L2 cache of any GPU.
const COLD: usize = 256 << 20;
/// Calls of a graph: enough to make its start a small part.
const CALLS: u64 = 16;
/// Tokens of the largest step, and the largest vocabulary, of all benches.
const LARGEST: usize = 8192;
const VOCAB: usize = 1 << 18;

/// The first GPU.
pub fn gpu(stream: Stream) -> Result<Gpu> {
    let dtype = Gpu::default_dtype(stream.arch(), DType::BF16);
    Gpu::new(stream, dtype, LARGEST, VOCAB)
}

/// Time of `times` replays of what `work` enqueues.
fn replayed(stream: &Stream, times: u64, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let graph = stream.capture(work)?;
    graph.replay()?;
    stream.synchronize()?;
    let start = Instant::now();
    (0..times).try_for_each(|_| graph.replay())?;
    stream.synchronize()?;
    Ok(start.elapsed())
}

impl Bench for Gpu {
    fn dtype(&self) -> DType {
        Gpu::default_dtype(self.stream().arch(), DType::BF16)
    }

    fn rows(&self) -> &'static [usize] {
        &[1, 32, 512, LARGEST]
    }

    fn sequences(&self) -> Vec<(&'static str, Vec<(usize, usize)>)> {
        let ragged = std::iter::once((32_767, 1)).chain(std::iter::repeat_n((511, 1), 63));
        vec![
            ("prefill-512", vec![(0, 512)]),
            ("prefill-8192", vec![(0, LARGEST)]),
            ("decode-1x32768", vec![(32_767, 1)]),
            ("decode-64x4096", vec![(4095, 1); 64]),
            ("decode-ragged", ragged.collect()),
        ]
    }

    fn write(&self, buffer: &mut Memory, values: &[f32]) {
        let written = match buffer.dtype() {
            DType::BF16 => buffer.write(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            DType::F16 => buffer.write(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
            _ => buffer.write(values),
        };
        written.expect("the values");
    }

    fn act_mul(&self, rows: usize, width: usize, gate_up: &Memory, out: &mut Memory) -> Option<Result<()>> {
        let (gate_up, out, activation) = (gate_up.slice(), out.slice_mut(), Activation::Silu);
        Some(ActMul { gate_up, out, scales: None, rows, width, activation }.launch(self.stream()))
    }

    #[cfg(feature = "cuda")]
    fn vendor_matmul(&self, n: usize, k: usize) -> Option<VendorMatmul<Memory>> {
        use burrstone::device::CublasLt;
        use burrstone::kernels::MatMul;

        let (stream, dtype) = (self.stream(), self.dtype());
        if stream.info().device == "sim" {
            return None;
        }
        let library = CublasLt::new(stream).inspect_err(|error| eprintln!("{error}")).ok()?;
        let mut weight = stream.alloc(dtype, n * k).expect("a weight");
        // As the weights of all benches.
        weight.write(&vec![0x3cu8; n * k * dtype.size()]).expect("a weight");
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE).expect("a workspace");
        Some(Box::new(move |m, x, out| {
            let (x, weight, workspace) = (x.slice(), weight.slice(), Some(workspace.slice_mut()));
            let args = MatMul {
                x,
                weight,
                bias: None,
                gate: None,
                out: out.slice_mut(),
                accumulate: false,
                scale: None,
                workspace,
                m,
                n,
                k,
            };
            args.launch_cublas_lt(&library)
        }))
    }

    /// Each call finds a cold cache, cleared by zeros; what these take by themselves is taken off. A call that cannot be
    /// captured is timed as it is enqueued.
    fn time(&self, calls: u64, call: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        // The first one loads the kernel's module.
        call()?;
        let stream = self.stream();
        let mut cold = stream.alloc(DType::U8, COLD)?;
        let graphs = calls.div_ceil(CALLS);
        let both = replayed(stream, graphs, || {
            (0..CALLS).try_for_each(|_| {
                cold.clear()?;
                call()
            })
        });
        let Ok(both) = both else {
            let start = Instant::now();
            (0..calls).try_for_each(|_| call())?;
            stream.synchronize()?;
            return Ok(start.elapsed());
        };
        let clears = replayed(stream, graphs, || (0..CALLS).try_for_each(|_| cold.clear()))?;
        Ok(both.saturating_sub(clears).mul_f64(calls as f64 / (graphs * CALLS) as f64))
    }
}
