//! Error bounds for sums on real tensor cores, compared with sums that are rounded to nearest.
//!
//! A matrix instruction adds several products to its accumulator in one step. Hardware aligns all of them to the
//! largest one and cuts off the bits below, with 0 to 2 extra bits (Fasi et al., 2021, for V100 to A100; later
//! measurements for H100), while the simulator rounds each step once, to nearest. So a GPU's sums err towards zero by
//! up to about 2⁻²³ of the largest partial sum in every step. On a GPU the tests' bounds grow by that much; the test of
//! cuBLASLt is the control.

use burrstone::DType;
use burrstone::device::{Value, Variant};

use crate::gpu::on_a_gpu;
use crate::reference::matmul::matmul;
use crate::support::{allowed, numbers};

/// Products that the hardware adds in one step of this variant's instruction.
pub fn products_a_step(variant: &Variant) -> usize {
    match variant.value("instruction") {
        Some(Value::Text("m8n8k4" | "m16n8k8")) => 4,
        Some(Value::Text("m16n8k16")) => 8,
        Some(Value::Text("m64k16")) => 16,
        other => panic!("{}: no tensor core instruction is called {other:?}", variant.name),
    }
}

/// The largest magnitude of any partial sum and any product in sums of `x_i · w_i` over `k` elements, for each row of
/// `x` with each row of `w`.
pub fn largest_partial(x: &[f32], w: &[f32], k: usize) -> f64 {
    let mut largest = 0.0f64;
    for x in x.chunks(k.max(1)) {
        for w in w.chunks(k.max(1)) {
            let mut sum = 0.0;
            for (&x, &w) in x.iter().zip(w) {
                let product = f64::from(x) * f64::from(w);
                sum += product;
                largest = largest.max(sum.abs()).max(product.abs());
            }
        }
    }
    largest
}

/// The truncation error of a sum of `products` on hardware, with partial sums up to `largest`.
pub fn truncation(products: usize, products_a_step: usize, largest: f64) -> f64 {
    products.div_ceil(products_a_step) as f64 * 0.5f64.powi(23) * largest
}

/// The same for the product of `x` and `w` by `variant`; 0 on the simulator, which rounds to nearest.
pub fn matmul_truncation(variant: &Variant, x: &[f32], w: &[f32], k: usize) -> f64 {
    if !on_a_gpu() {
        return 0.0;
    }
    truncation(k, products_a_step(variant), largest_partial(x, w, k))
}

/// A sum as hardware computes it: each step aligns its products to the largest and keeps 24 + `extra_bits` bits.
fn truncated_sum(x: &[f32], w: &[f32], products_a_step: usize, extra_bits: i32) -> f32 {
    let mut sum = 0.0f32;
    for (x, w) in x.chunks(products_a_step).zip(w.chunks(products_a_step)) {
        let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
        let terms: Vec<f64> = products.chain([f64::from(sum)]).collect();
        let largest = terms.iter().fold(0.0f64, |a, term| a.max(term.abs()));
        if largest == 0.0 {
            continue;
        }
        let unit = 2f64.powi(largest.log2().floor() as i32 - 23 - extra_bits);
        let total: f64 = terms.iter().map(|term| (term / unit).trunc() * unit).sum();
        // Truncated once more, to the 24 bits of the accumulator.
        let near = total as f32;
        sum = if f64::from(near).abs() > total.abs() { f32::from_bits(near.to_bits() - 1) } else { near };
    }
    sum
}

/// The bound for sums rounded to nearest rejects truncated sums; with the truncation error added it accepts them, for
/// every number of extra bits.
#[test]
fn truncating_sums_need_the_wider_bound() {
    let (rows, n) = (12, 16);
    for products_a_step in [4, 8, 16] {
        // Counted without extra bits.
        let (mut cases, mut refused) = (0, 0);
        for (k, seed, extra_bits) in [16usize, 40, 64, 136, 512]
            .into_iter()
            .flat_map(|k| (0..8).flat_map(move |seed| (0..3).map(move |extra_bits| (k, seed, extra_bits))))
        {
            let dtype = [DType::F16, DType::BF16][seed as usize % 2];
            let (x, w) = (numbers(3 * seed + 1, rows * k, dtype), numbers(3 * seed + 2, n * k, dtype));
            let plain = matmul::<f32>(&x, &w, None, rows, n, k);
            let exact = matmul::<f64>(&x, &w, None, rows, n, k);
            let pairs = x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| (x, w)));
            let got = pairs.map(|(x, w)| truncated_sum(x, w, products_a_step, extra_bits));
            let error = got.zip(&exact).fold(0.0f64, |a, (got, e)| a.max((f64::from(got) - e).abs()));
            let bound = allowed(DType::F32, &plain, &exact);
            let more = truncation(k, products_a_step, largest_partial(&x, &w, k));
            let what = format!("{products_a_step} products a step, {extra_bits} extra bits, k = {k}, seed {seed}");
            assert!(error <= bound + more, "{what}: off by {error:e}, allowed {bound:e} + {more:e}");
            if extra_bits == 0 {
                cases += 1;
                refused += usize::from(error > bound);
            }
        }
        println!("{products_a_step} products a step: the bound for rounded sums refuses {refused} of {cases} cases");
        assert!(refused > 0, "{products_a_step} products a step: none of {cases} cases needs the wider bound");
    }
}
