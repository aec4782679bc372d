//! A token through a stack of decoder layers with random weights: the time of all kernels in sequence, replayed as a
//! graph.

use burrstone::DType;
use burrstone::ops::{Activation, Attention, LinearPart, RopeTable, RotaryKvWrite, Scoring};
use criterion::Criterion;

use crate::support::{Bench, Lab, Layers, Work, slots};

struct Layer<D: Bench> {
    qkv: D::Matrix,
    output: D::Matrix,
    gate_up: D::GatedMatrix,
    down: D::Matrix,
}

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    let Some(shape) = lab.device.layers() else { return };
    let Layers { label, layers, hidden, heads, kv_heads, head_dim, intermediate, depth } = shape;
    let (device, dtype, qkv_width) = (&lab.device, lab.device.dtype(), (heads + 2 * kv_heads) * head_dim);
    let matrix = |n: usize, k: usize, from: usize| {
        device.matrix(vec![LinearPart::dense(lab.view(dtype, vec![n, k], from))]).expect("a matrix")
    };
    let make = |layer: usize| {
        // Each layer starts at another place of the random numbers.
        let from = layer * 4096;
        let gate_up = [0, intermediate].map(|at| lab.view(dtype, vec![intermediate, hidden], from + 2 * at));
        Layer::<D> {
            qkv: matrix(qkv_width, hidden, from),
            output: matrix(hidden, heads * head_dim, from),
            gate_up: device.gated_matrix(gate_up.map(LinearPart::dense).into()).expect("a matrix"),
            down: matrix(hidden, intermediate, from),
        }
    };
    let stack: Vec<Layer<D>> = (0..layers).map(make).collect();
    let norm = lab.vector(hidden);
    for sequences in [1, 64] {
        let batch = vec![(depth, 1); sequences];
        let step = lab.step(&batch, vec![0]);
        let (mut cache, _) = lab.cache(layers, slots(&batch), kv_heads, head_dim);
        let factors = lab.buffer(DType::F32, (depth + 1) * head_dim);
        let mut residual = lab.buffer(lab.wide_dtype(), sequences * hidden);
        let mut normed = lab.buffer(dtype, sequences * hidden);
        let mut qkv = lab.buffer(lab.wide_dtype(), sequences * qkv_width);
        let [mut query, mut attended] = [(); 2].map(|()| lab.buffer(dtype, sequences * heads * head_dim));
        let mut gated = lab.buffer(dtype, sequences * intermediate);
        let weights = hidden * (qkv_width + heads * head_dim + 3 * intermediate);
        let kv = sequences * (depth + 1) * kv_heads * head_dim * 2;
        let work = Work {
            bytes: layers * (weights + kv) * lab.narrow(),
            flops: layers * (2 * sequences * weights + 4 * sequences * (depth + 1) * heads * head_dim),
        };
        lab.measure(criterion, "layers", &format!("{label}/{sequences}x{depth}"), work, 1, |_| {
            for (layer, weights) in stack.iter().enumerate() {
                device.rms_norm(sequences, hidden, &mut residual, None, &norm, 1e-5, &mut normed)?;
                device.matmul(sequences, &normed, &weights.qkv, &mut qkv)?;
                let write = RotaryKvWrite {
                    qkv: &qkv,
                    query: &mut query,
                    cache: &mut cache,
                    layer,
                    heads,
                    kv_heads,
                    head_dim,
                    rotary_dim: head_dim,
                    rope: RopeTable { factors: &factors, rows: depth + 1 },
                    qk_norm: None,
                };
                device.rotary_kv_write(&step, write)?;
                let scoring = Scoring::scaled(1.0 / (head_dim as f32).sqrt());
                let (query, cache, out) = (&query, &cache, &mut attended);
                device.attention(&step, Attention { query, cache, layer, out, heads, scoring })?;
                device.matmul_add(sequences, &attended, &weights.output, &mut residual)?;
                device.rms_norm(sequences, hidden, &mut residual, None, &norm, 1e-5, &mut normed)?;
                device.gated_matmul(sequences, &normed, &weights.gate_up, Activation::Silu, &mut gated)?;
                device.matmul_add(sequences, &gated, &weights.down, &mut residual)?;
            }
            Ok(())
        });
    }
}
