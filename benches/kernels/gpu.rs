//! Benches on a GPU: events around graph replays, whose calls rotate their buffers.

use std::time::Duration;

use burrstone::device::{Memory, Stream};
use burrstone::kernels::{ActMul, Gpu};
use burrstone::ops::{Activation, WeightView};
use burrstone::{DType, Result};
use half::{bf16, f16};

use crate::support::{Bench, Layers, Timer, VendorMatmul};

/// At least twice the L2 cache of any GPU.
const COLD: usize = 256 << 20;
/// The fewest calls of a graph, so that its launch costs little per call.
const CALLS: usize = 16;
/// The largest step in tokens, and the largest vocabulary, of all benches.
const LARGEST: usize = 8192;
const VOCAB: usize = 1 << 18;

/// The first GPU.
pub fn gpu(stream: Stream) -> Result<Gpu> {
    let dtype = Gpu::default_dtype(stream.arch(), DType::BF16);
    Gpu::new(stream, dtype, LARGEST, VOCAB)
}

impl Bench for Gpu {
    fn dtype(&self) -> DType {
        Gpu::default_dtype(self.stream().arch(), DType::BF16)
    }

    fn rows(&self) -> &'static [usize] {
        &[1, 32, 512, LARGEST]
    }

    fn product_rows(&self) -> &'static [usize] {
        &[1, 16, 128, 4096]
    }

    fn cold_bytes(&self) -> usize {
        COLD
    }

    fn measurement_time(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// Those of Llama-3-8B; on the simulator a tiny model, to try the bench.
    fn layers(&self) -> Option<Layers> {
        let (heads, kv_heads) = (32, 8);
        Some(if self.stream().info().device == "sim" {
            let (hidden, intermediate) = (64, 128);
            Layers { label: "tiny", layers: 2, hidden, heads: 4, kv_heads: 2, head_dim: 16, intermediate, depth: 40 }
        } else {
            let (hidden, intermediate) = (4096, 14336);
            Layers { label: "8b", layers: 32, hidden, heads, kv_heads, head_dim: 128, intermediate, depth: 1024 }
        })
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
    fn vendor_matmul(&self, weights: Vec<WeightView>, n: usize, k: usize) -> Option<VendorMatmul<Memory>> {
        use burrstone::device::CublasLt;
        use burrstone::kernels::MatMul;

        let (stream, dtype) = (self.stream(), self.dtype());
        if stream.info().device == "sim" {
            return None;
        }
        let library = CublasLt::new(stream).inspect_err(|error| eprintln!("{error}")).ok()?;
        let upload = |view: WeightView| {
            let mut weight = stream.alloc(dtype, n * k).expect("a weight");
            weight.write(&view.data[..]).expect("a weight");
            weight
        };
        let weights: Vec<Memory> = weights.into_iter().map(upload).collect();
        let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE).expect("a workspace");
        Some(Box::new(move |set, m, x, out| {
            let weight = &weights[set % weights.len()];
            let (x, weight, workspace) = (x.slice(), weight.slice(), Some(workspace.slice_mut()));
            let args = MatMul {
                x,
                weight: weight.into(),
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

    /// A call with uploads cannot be captured, so it is timed as it is enqueued.
    fn timer<'a>(&'a self, sets: usize, call: &'a mut dyn FnMut(usize) -> Result<()>) -> Result<Timer<'a>> {
        // The first call loads the kernel's module.
        call(0)?;
        let stream = self.stream();
        let calls = CALLS.next_multiple_of(sets);
        let Ok(graph) = stream.capture(|| (0..calls).try_for_each(|i| call(i % sets))) else {
            return Ok(Box::new(move |calls| stream.timed(|| (0..calls).try_for_each(|i| call(i as usize % sets)))));
        };
        graph.replay()?;
        Ok(Box::new(move |wanted| {
            let replays = wanted.div_ceil(calls as u64);
            let time = stream.timed(|| (0..replays).try_for_each(|_| graph.replay()))?;
            Ok(time.mul_f64(wanted as f64 / (replays * calls as u64) as f64))
        }))
    }
}
