//! What the cost model chooses for products, on every card.

use std::collections::{BTreeSet, HashMap};

use burrstone::device::GpuSpec;
use burrstone::kernels::{CostModel, MatMul, MatMulPair, MatMulPlan, MatMulShape, WeightKind};

use super::*;

/// Layers of Llama 3 8B and 70B and of Qwen3, beside those of the specification: n, k.
const LAYERS: [(usize, usize); 9] = [
    (6144, 4096),
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
    (10240, 8192),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
    (128_256, 4096),
];

fn layers() -> impl Iterator<Item = (usize, usize)> {
    PROBLEMS.iter().map(|problem| (problem.n, problem.k)).chain(LAYERS)
}

fn plan(model: &CostModel, m: usize, n: usize, k: usize) -> (MatMulPlan, MatMulShape) {
    let weight = WeightKind::Dense;
    let shape = MatMulShape { dtype: DType::F16, out: DType::F16, m, n, k, gated: false, accumulate: false, weight };
    (MatMulPlan::choose(model, &shape, MatMul::WORKSPACE).unwrap(), shape)
}

/// Where spans could fill a wave, a decode step fills it, or more than half of it where sharing tiles would cost more than
/// it gives.
#[test]
fn no_wave_is_empty_that_could_be_full() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        for (n, k) in layers() {
            for m in [1, 2, 4, 8, 16] {
                let (plan, shape) = plan(&model, m, n, k);
                let blocks = plan.items(&shape);
                let full = blocks / plan.splits * shape.k_slices() >= model.sms as usize;
                assert!(
                    2 * blocks > model.sms as usize || !full,
                    "{}: {shape:?}: {blocks} blocks of {}",
                    card.name,
                    plan.variant.name
                );
            }
        }
    }
}

/// Numbers of rows up to some tiles of every height, with one more than fills them, and powers of two beyond.
fn batches() -> Vec<usize> {
    let tiles = (1..16).chain((16..400).step_by(16)).chain([17, 33, 65, 129, 193, 257, 385]);
    tiles.chain((0..14).map(|power| 1 << power)).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Twice the rows take at most twice the time. Between the powers of two a row more can begin a tile that is nearly empty,
/// which reads as much of the weight as a full one, and a wave of its own: of all batches few lose much by it against a
/// smaller one.
#[test]
fn throughput_does_not_fall_with_the_batch() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        let (mut least, mut below, mut all) = (1.0f64, 0, 0);
        for (n, k) in layers() {
            let mut best: f64 = 0.0;
            let mut times = HashMap::new();
            for m in batches() {
                let seconds = plan(&model, m, n, k).0.seconds;
                times.insert(m, seconds);
                if let Some(half) = times.get(&(m / 2)).filter(|_| m.is_power_of_two()) {
                    assert!(seconds <= 2.0 * half, "{}: [{n}, {k}]: {m} rows: {seconds:e}, half: {half:e}", card.name);
                }
                let throughput = m as f64 / seconds;
                (least, all) = (least.min(throughput / best.max(throughput)), all + 1);
                below += usize::from(throughput < 0.9 * best);
                best = best.max(throughput);
            }
        }
        // What was reached when this was written; where waves are as large as batches, as on A100, a wave more is most.
        let [most_lost, often] = match card.name {
            "v100" => [0.67, 0.12],
            "t4" => [0.64, 0.09],
            "a100" => [0.61, 0.10],
            "3090" => [0.72, 0.14],
            "4090" => [0.67, 0.11],
            _ => [0.75, 0.03],
        };
        let share = below as f64 / f64::from(all);
        assert!(least >= most_lost && share <= often, "{}: {least} at the least, {share} below 0.9", card.name);
    }
}

/// What no launch can be faster than no plan is; and they come in order.
#[test]
fn plans_are_ranked_above_the_floor() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        for (n, k) in layers() {
            for m in batches() {
                let shape = plan(&model, m, n, k).1;
                let shapes = [shape, MatMulShape { accumulate: true, ..shape }, MatMulShape { gated: true, ..shape }];
                for shape in shapes {
                    let plans = MatMulPlan::ranked(&model, &shape, MatMul::WORKSPACE).unwrap();
                    let chosen = MatMulPlan::choose(&model, &shape, MatMul::WORKSPACE).unwrap();
                    assert_eq!((plans[0].variant.name, plans[0].splits), (chosen.variant.name, chosen.splits));
                    assert!(plans.is_sorted_by(|a, b| a.seconds <= b.seconds), "{}: {shape:?}", card.name);
                    let floor = shape.floor(&model);
                    assert!(plans[0].seconds > floor.seconds(), "{}: {shape:?}: {floor:?}", card.name);
                }
                let [of, sum, _] = shapes.map(|shape| shape.floor(&model));
                let read = (2 * m * n) as f64 / model.memory_bandwidth;
                assert!(((sum.memory - of.memory) / read - 1.0).abs() < 1e-6 && sum.products == of.products);
            }
        }
    }
}

/// Blocks are pairs on Hopper, and only where x has rows for more than one tile; then they take less from the L2 cache for
/// all large layers. They share what is more of the tile.
#[test]
fn many_rows_are_for_pairs() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        for (n, k) in layers() {
            for m in [1, 8, 64, 192] {
                let (plan, shape) = plan(&model, m, n, k);
                let tile = plan.variant.int("m").unwrap() as usize;
                assert!(plan.pair.is_none() || card.arch == 90 && m > tile, "{}: {shape:?}: {plan:?}", card.name);
            }
            let (plan, shape) = plan(&model, 8192, n, k);
            let [tile_m, tile_n] = ["m", "n"].map(|axis| plan.variant.int(axis).unwrap());
            let expected =
                (card.arch == 90).then_some(if tile_m >= tile_n { MatMulPair::X } else { MatMulPair::Weight });
            assert_eq!(plan.pair, expected, "{}: {shape:?}: {plan:?}", card.name);
            assert!(plan.items(&shape).is_multiple_of(if plan.pair.is_some() { 2 } else { 1 }), "{plan:?}");
        }
        assert_eq!(plan(&CostModel::new(90, 1), 8192, 4096, 4096).0.pair, None);
    }
}

/// Rows of the weight in pairs leave half the results to be written, and nothing else changes.
#[test]
fn gates_save_what_is_not_written() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        for (n, k) in layers().filter(|(n, _)| n % 16 == 0) {
            for m in [1, 64, 4096] {
                let (plan, shape) = plan(&model, m, n, k);
                let gated = MatMulShape { n: n / 2, gated: true, ..shape };
                let of_gated = MatMulPlan::of(&model, &gated, MatMul::WORKSPACE, plan.variant);
                assert!(of_gated.seconds <= plan.seconds, "{}: {shape:?}", card.name);
                assert_eq!(gated.weight_rows(), n, "{shape:?}");
            }
        }
        // Little depth: the results are most of what memory is asked for.
        let (plan, shape) = plan(&model, 8192, 65536, 64);
        let gated = MatMulShape { n: shape.n / 2, gated: true, ..shape };
        let seconds = MatMulPlan::of(&model, &gated, 0, plan.variant).seconds;
        assert!(seconds < 0.9 * plan.seconds, "{}: {seconds:e} {:e}", card.name, plan.seconds);
    }
}

#[test]
fn a_choice_is_the_same_for_the_same_problem() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        for (m, n, k) in [(1, 4096, 4096), (300, 4096, 4096), (4096, 4096, 4096), (5, 1, 0)] {
            let (first, second) = (plan(&model, m, n, k).0, plan(&model, m, n, k).0);
            let named = |plan: &MatMulPlan| (plan.variant.name, plan.splits, plan.pair);
            assert_eq!(named(&first), named(&second));
            assert!(first.seconds.is_finite() && first.seconds > 0.0, "{first:?}");
        }
    }
}

/// Codes save bytes, and so a decode step's time, the more the narrower they are. Larger batches are to take no longer.
#[test]
fn codes_save_time() {
    for card in &GpuSpec::ALL {
        let model = CostModel::from(card);
        for (n, k) in LAYERS {
            for m in [1, 16, 128, 2048] {
                let dense = plan(&model, m, n, k).1;
                let seconds = |weight| {
                    let shape = MatMulShape { weight, ..dense };
                    let plan = MatMulPlan::choose(&model, &shape, MatMul::WORKSPACE).unwrap();
                    assert!(plan.seconds > shape.floor(&model).seconds(), "{}: {shape:?}: {plan:?}", card.name);
                    plan.seconds
                };
                let codes = |bits| WeightKind::Codes { bits, group: 128 };
                let [dense, eight, four] = [WeightKind::Dense, codes(8), codes(4)].map(seconds);
                let what = format!("{}: {m} × [{n}, {k}]: {four:e}, {eight:e}, dense {dense:e}", card.name);
                assert!(four <= eight && eight < 1.01 * dense, "{what}");
                assert!(m > 1 || eight < 0.8 * dense, "{what}");
            }
        }
    }
}
