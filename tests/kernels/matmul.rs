use burrstone::DType;
use burrstone::cpu::{Isa, Matrix};
use burrstone::ops::Ops;
use proptest::prelude::*;

use crate::problems::matmul::PROBLEMS;
use crate::reference::matmul::matmul;
use crate::support::*;

/// A matrix of blocks, its values and its biases.
struct Layer {
    matrix: Matrix,
    values: Vec<f32>,
    bias: Option<Vec<f32>>,
}

fn layer(isa: Isa, sizes: &[usize], k: usize, dtype: DType, biased: bool) -> Layer {
    let (mut values, mut bias) = (Vec::new(), Vec::new());
    let (mut blocks, mut biases) = (Vec::new(), Vec::new());
    for (i, &n) in sizes.iter().enumerate() {
        let block = numbers(10 + i as u64, n * k, dtype);
        blocks.push(view(&block, &[n, k], dtype));
        values.extend(block);
        if biased {
            let b = numbers(20 + i as u64, n, dtype);
            biases.push(view(&b, &[n], dtype));
            bias.extend(b);
        }
    }
    let matrix = cpu(isa, 1).matrix(parts(blocks, biases)).unwrap();
    Layer { matrix, values, bias: biased.then_some(bias) }
}

fn product(isa: Isa, threads: usize, rows: usize, x: &[f32], dtype: DType, matrix: &Matrix) -> Vec<f32> {
    let cpu = cpu(isa, threads);
    let x = buffer(&cpu, dtype, x);
    let mut out = cpu.buffer(DType::F32, rows * matrix.n()).unwrap();
    cpu.matmul(rows, &x, matrix, &mut out).unwrap();
    out.read(rows * matrix.n()).unwrap()
}

proptest! {
    #![proptest_config(cases(60))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        rows in prop_oneof![1usize..20, Just(70)],
        sizes in proptest::collection::vec(1usize..70, 1..4),
        k in prop_oneof![1usize..100, 500usize..530, 1020usize..1030, Just(2100)],
        x_dtype in any_dtype(),
        dtype in any_dtype(),
        biased in any::<bool>(),
    ) {
        let layer = layer(isa, &sizes, k, dtype, biased);
        let n = sizes.iter().sum();
        let x = numbers(1, rows * k, x_dtype);
        let got = product(isa, threads, rows, &x, x_dtype, &layer.matrix);
        let bias = layer.bias.as_deref();
        let plain = matmul::<f32>(&x, &layer.values, bias, rows, n, k);
        let exact = matmul::<f64>(&x, &layer.values, bias, rows, n, k);
        assert_close(&format!("{isa}"), DType::F32, &got, &plain, &exact);
    }

    /// What is there gets the bits of the product, rows of several blocks and few and many of them.
    #[test]
    fn a_product_is_added_to_what_is_there(
        isa in any_isa(),
        threads in 1usize..4,
        rows in prop_oneof![1usize..20, Just(70), Just(520)],
        sizes in proptest::collection::vec(1usize..120, 1..3),
        k in prop_oneof![1usize..100, 500usize..530, Just(2100)],
        dtype in any_dtype(),
        biased in any::<bool>(),
    ) {
        let (layer, n) = (layer(isa, &sizes, k, dtype, biased), sizes.iter().sum::<usize>());
        let x = numbers(1, rows * k, dtype);
        let product = product(isa, threads, rows, &x, dtype, &layer.matrix);
        let before = numbers(2, (rows + 1) * n, DType::F32);
        let cpu = cpu(isa, threads);
        let mut residual = buffer(&cpu, DType::F32, &before);
        cpu.matmul_add(rows, &buffer(&cpu, dtype, &x), &layer.matrix, &mut residual).unwrap();
        // A row further nothing changes.
        let after = before.iter().enumerate().map(|(i, before)| before + product.get(i).copied().unwrap_or_default());
        assert_same_bits(&format!("{isa}"), &residual.read((rows + 1) * n).unwrap(), &after.collect::<Vec<_>>());
    }

    /// A row's bits are the same alone, among few, among many, and on any number of threads.
    #[test]
    fn rows_do_not_depend_on_company(
        isa in any_isa(),
        n in 1usize..120,
        k in prop_oneof![1usize..100, 500usize..530, 1020usize..1030, Just(2100)],
        x_dtype in any_dtype(),
        dtype in any_dtype(),
    ) {
        let layer = layer(isa, &[n], k, dtype, true);
        let x = numbers(2, 600 * k, x_dtype);
        let all = product(isa, 2, 600, &x, x_dtype, &layer.matrix);
        for (rows, threads) in [(1, 1), (2, 3), (3, 1), (5, 2), (8, 1), (9, 2), (13, 3), (24, 2), (25, 1), (64, 1)] {
            // The last rows of all: so they also sit elsewhere in a panel, and in another chunk.
            let first = 600 - rows;
            let some = product(isa, threads, rows, &x[first * k..], x_dtype, &layer.matrix);
            assert_same_bits(&format!("{isa}, {rows} rows"), &some, &all[first * n..]);
        }
    }
}

/// The layers of real models, whole.
#[test]
fn the_layers_that_are_measured_agree_with_the_oracle() {
    for problem in PROBLEMS {
        let (n, k) = (problem.n, problem.k);
        let layer = layer(Isa::best(), &[n], k, DType::BF16, false);
        let x = numbers(1, k, DType::BF16);
        let got = product(Isa::best(), 2, 1, &x, DType::BF16, &layer.matrix);
        let plain = matmul::<f32>(&x, &layer.values, None, 1, n, k);
        let exact = matmul::<f64>(&x, &layer.values, None, 1, n, k);
        assert_close(problem.label, DType::F32, &got, &plain, &exact);
    }
}

#[test]
fn blocks_of_different_dtypes_share_a_matrix() {
    let (k, rows) = (96, 11);
    for isa in isas() {
        let cpu = cpu(isa, 2);
        let a = numbers(1, 10 * k, DType::BF16);
        let b = numbers(2, 7 * k, DType::F32);
        let views = vec![view(&a, &[10, k], DType::BF16), view(&b, &[7, k], DType::F32)];
        let matrix = cpu.matrix(parts(views, Vec::new())).unwrap();
        let x = numbers(3, rows * k, DType::BF16);
        let got = product(isa, 2, rows, &x, DType::BF16, &matrix);
        let w = [a, b].concat();
        let (plain, exact) = (matmul(&x, &w, None, rows, 17, k), matmul(&x, &w, None, rows, 17, k));
        assert_close("mixed", DType::F32, &got, &plain, &exact);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let w = view(&[0.0; 12], &[3, 4], DType::F32);
    let matrix = cpu.matrix(parts(vec![w.clone()], Vec::new())).unwrap();
    let x = buffer(&cpu, DType::F32, &[0.0; 8]);
    let mut out = cpu.buffer(DType::F32, 6).unwrap();
    assert_refused(cpu.matmul(3, &x, &matrix, &mut out), "matmul", "x");
    let long = buffer(&cpu, DType::F32, &[0.0; 12]);
    assert_refused(cpu.matmul(3, &long, &matrix, &mut out), "matmul", "out");
    assert_refused(cpu.matmul(usize::MAX, &x, &matrix, &mut out), "matmul", "x");
    let mut narrow = cpu.buffer(DType::BF16, 6).unwrap();
    assert_refused(cpu.matmul(2, &x, &matrix, &mut narrow), "matmul", "out");
    assert_refused(cpu.matmul_add(3, &x, &matrix, &mut out), "matmul_add", "x");
    assert_refused(cpu.matmul_add(2, &x, &matrix, &mut narrow), "matmul_add", "residual");

    assert_refused(cpu.matrix(parts(Vec::new(), Vec::new())), "matrix", "parts");
    let mut bent = w.clone();
    bent.shape = vec![4, 4];
    assert_refused(cpu.matrix(parts(vec![bent.clone()], Vec::new())), "matrix", "data");
    bent.shape = vec![12];
    assert_refused(cpu.matrix(parts(vec![bent.clone()], Vec::new())), "matrix", "shape");
    bent.shape = vec![4, 3];
    assert_refused(cpu.matrix(parts(vec![w.clone(), bent], Vec::new())), "matrix", "shape");
    let bias = view(&[0.0; 4], &[4], DType::F32);
    assert_refused(cpu.matrix(parts(vec![w], vec![bias])), "matrix", "bias");
}

#[path = "matmul_device.rs"]
mod on_the_device;

#[path = "matmul_plan.rs"]
mod plans;

#[path = "matmul_coded.rs"]
mod coded;
