//! Products with quantized weights.

use std::sync::Arc;

use burrstone::device::Bytes;
use burrstone::ops::{ActivationBits, Code, CodedWeight, LinearPart, Scales, Weight, Zeros};

use super::*;

#[derive(Clone, Debug)]
struct Format {
    code: Code,
    group: usize,
    has_zeros: bool,
    is_ordered: bool,
    activations: ActivationBits,
}

/// Small integers that look random.
fn integers(seed: u64, n: usize, most: u32) -> impl Iterator<Item = u32> {
    numbers(seed, n, DType::F32).into_iter().map(move |x| (x.to_bits() ^ x.to_bits() >> 9) % (most + 1))
}

fn coded(seed: u64, n: usize, k: usize, format: &Format) -> CodedWeight {
    let Format { code, group, has_zeros, is_ordered, activations } = format.clone();
    let codes: Vec<u8> = integers(seed, n * code.row_bytes(k), 255).map(|code| code as u8).collect();
    let columns = group.min(k);
    let blocks = n * k.div_ceil(columns);
    let values = numbers(seed + 1, blocks, DType::F32).iter().map(|x| 0.01 + x.abs() / 16.0).collect();
    let most = (1u32 << code.bits()) - 1;
    let zeros = match has_zeros && !matches!(code, Code::Table(_)) {
        true => Zeros::Each(integers(seed + 2, blocks, most).map(|zero| zero as u8).collect()),
        false => Zeros::All(most.div_ceil(2) as u8),
    };
    let order = is_ordered.then(|| {
        let mut order: Vec<u32> = (0..k as u32).collect();
        let places: Vec<u32> = integers(seed + 3, k, u32::MAX - 1).collect();
        order.sort_by_key(|&column| places[column as usize]);
        Arc::from(order)
    });
    let scales = Scales { rows: 1, columns, values, zeros };
    CodedWeight { name: "w".to_owned(), shape: [n, k], code, codes: Bytes::from(codes), scales, order, activations }
}

fn dequantized(weight: &CodedWeight) -> Vec<f32> {
    let [n, k] = weight.shape;
    let mut values = vec![0.0; n * k];
    values.chunks_mut(k).enumerate().for_each(|(row, values)| weight.row(row, values));
    values
}

fn part(weight: &CodedWeight) -> LinearPart {
    LinearPart { weight: Weight::Coded(weight.clone()), bias: None }
}

fn any_format() -> impl Strategy<Value = Format> {
    (
        prop_oneof![Just(Code::U4), Just(Code::U8), Just(Code::E2M1)],
        prop_oneof![Just(16usize), Just(32), Just(64), Just(96), Just(128), Just(256), Just(usize::MAX)],
        any::<bool>(),
        any::<bool>(),
        prop_oneof![3 => Just(ActivationBits::Full), 1 => Just(ActivationBits::Eight)],
    )
        .prop_map(|(code, group, has_zeros, is_ordered, activations)| Format {
            code,
            group,
            has_zeros,
            is_ordered,
            activations,
        })
}

/// What rounding activations to integers may change of a row's results, and of float32's own rounding 64 units.
fn bound(x: &[f32], w: &[f32], format: &Format) -> f64 {
    let levels = if format.activations == ActivationBits::Full { 127.0 * 128.0 } else { 127.0 };
    let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let weights: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
    let products: f64 = x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum();
    weights * f64::from(largest) / levels * 0.51 + products * 64.0 * f64::from(f32::EPSILON)
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        rows in prop_oneof![1usize..20, Just(70)],
        sizes in proptest::collection::vec(1usize..70, 1..3),
        k in prop_oneof![1usize..100, 250usize..260, Just(2100)],
        x_dtype in any_dtype(),
        formats in proptest::collection::vec(any_format(), 2),
    ) {
        let weights: Vec<CodedWeight> =
            sizes.iter().zip(&formats).enumerate().map(|(i, (&n, format))| coded(10 * i as u64, n, k, format)).collect();
        let matrix = cpu(isa, 1).matrix(weights.iter().map(part).collect()).unwrap();
        let x = numbers(1, rows * k, x_dtype);
        let got = product(isa, threads, rows, &x, x_dtype, &matrix);
        let mut start = 0;
        for (weight, format) in weights.iter().zip(&formats) {
            let values = dequantized(weight);
            for (row, x) in x.chunks(k).enumerate() {
                for (column, w) in values.chunks(k).enumerate() {
                    let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let found = f64::from(got[row * matrix.n() + start + column]);
                    let bound = bound(x, w, format);
                    prop_assert!(
                        (found - exact).abs() <= bound,
                        "{isa}, {format:?}, row {row}, column {column}: {found}, expected {exact} ± {bound}"
                    );
                }
            }
            start += weight.shape[0];
        }
    }

    /// The integer sums are exact, so instruction sets that fuse multiplication and addition agree bit by bit.
    #[test]
    fn rows_depend_neither_on_company_nor_on_the_instruction_set(
        n in 1usize..120,
        k in prop_oneof![1usize..100, 500usize..530, Just(2100)],
        x_dtype in any_dtype(),
        format in any_format(),
    ) {
        let x = numbers(2, 150 * k, x_dtype);
        let mut first_set: Option<Vec<f32>> = None;
        for isa in isas() {
            let matrix = cpu(isa, 1).matrix(vec![part(&coded(3, n, k, &format))]).unwrap();
            let all = product(isa, 2, 150, &x, x_dtype, &matrix);
            for (rows, threads) in [(1, 1), (2, 3), (3, 1), (5, 2), (7, 1), (11, 2), (13, 3), (25, 1)] {
                let first = 150 - rows;
                let some = product(isa, threads, rows, &x[first * k..], x_dtype, &matrix);
                assert_same_bits(&format!("{isa}, {format:?}, {rows} rows"), &some, &all[first * n..]);
            }
            if !matches!(isa, Isa::Portable | Isa::PortableWide) {
                match &first_set {
                    Some(first) => assert_same_bits(&format!("{isa}, {format:?}"), &all, first),
                    None => first_set = Some(all),
                }
            }
        }
    }

    #[test]
    fn embeddings_are_dequantized_rows(isa in any_isa(), n in 1usize..40, k in 1usize..200, format in any_format()) {
        let cpu = cpu(isa, 2);
        let weight = coded(5, n, k, &format);
        let table = cpu.table(Weight::Coded(weight.clone())).unwrap();
        let tokens: Vec<u32> = (0..n as u32).rev().collect();
        let step = step_of(&cpu, &tokens, &[]);
        let mut out = cpu.buffer(DType::F32, n * k).unwrap();
        cpu.embedding(&step, &table, &mut out).unwrap();
        let expected: Vec<f32> = dequantized(&weight).chunks(k).rev().flatten().copied().collect();
        prop_assert_eq!(out.read(n * k).unwrap(), expected);
    }
}

/// e4m3 with scales of blocks, rows or the whole: exact but for float32's rounding.
#[test]
fn small_floats_agree_with_the_oracle() {
    let (rows, n, k) = (7, 37, 300);
    let x = numbers(1, rows * k, DType::BF16);
    for (block_rows, columns) in [(1, k), (n, k), (16, 128), (1, 256)] {
        let mut weight = coded(7, n, k, &Format { group: 32, code: Code::U8, ..ANY });
        let blocks = n.div_ceil(block_rows) * k.div_ceil(columns);
        let values = numbers(8, blocks, DType::F32).iter().map(|x| 0.1 + x.abs()).collect();
        // Without the codes of NaN.
        let codes: Vec<u8> = weight.codes.iter().map(|code| code & 0xbf).collect();
        weight = CodedWeight {
            code: Code::E4m3,
            codes: Bytes::from(codes),
            scales: Scales { rows: block_rows, columns, values, zeros: Zeros::All(0) },
            order: None,
            ..weight
        };
        let values = dequantized(&weight);
        let plain = matmul::<f32>(&x, &values, None, rows, n, k);
        let exact = matmul::<f64>(&x, &values, None, rows, n, k);
        for isa in isas() {
            for dtype in [DType::BF16, DType::F32] {
                let matrix = cpu(isa, 2).matrix(vec![part(&weight)]).unwrap();
                let got = product(isa, 2, rows, &x, dtype, &matrix);
                assert_close(&format!("{isa}, {dtype}, {block_rows} x {columns}"), DType::F32, &got, &plain, &exact);
            }
        }
    }
}

/// Codes without kernels of their own become f16, or f32 where their numbers may be too large for that.
#[test]
fn other_codes_are_dequantized() {
    let (n, k) = (20, 64);
    let table = std::array::from_fn(|i| (i as f32 - 7.3) / 11.0);
    let mut weight = CodedWeight { code: Code::Table(table), ..coded(7, n, k, &Format { has_zeros: false, ..ANY }) };
    let x = numbers(1, k, DType::F32);
    for (scale, dtype) in [(0.3, DType::F16), (1e6, DType::F32)] {
        weight.scales.values.fill(scale);
        for isa in isas() {
            let matrix = cpu(isa, 1).matrix(vec![part(&weight)]).unwrap();
            let dense = cpu(isa, 1).matrix(vec![LinearPart::dense(weight.dense(dtype))]).unwrap();
            let [coded, dense] = [matrix, dense].map(|matrix| product(isa, 1, 1, &x, DType::F32, &matrix));
            assert_same_bits(&format!("{isa}"), &coded, &dense);
        }
    }
}

const ANY: Format =
    Format { code: Code::U4, group: 32, has_zeros: true, is_ordered: true, activations: ActivationBits::Full };

#[test]
fn a_nan_or_an_infinity_shows_in_its_row_alone() {
    let (n, k) = (20, 64);
    for isa in isas() {
        let matrix = cpu(isa, 1).matrix(vec![part(&coded(1, n, k, &ANY))]).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = numbers(1, 2 * k, DType::F32);
            x[k + 40] = bad;
            let got = product(isa, 1, 2, &x, DType::F32, &matrix);
            assert!(got[..n].iter().all(|x| x.is_finite()) && got[n..].iter().all(|x| x.is_nan()), "{isa}: {got:?}");
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let (n, k) = (4, 64);
    let attempt = |change: &dyn Fn(&mut CodedWeight)| {
        let mut weight = coded(1, n, k, &ANY);
        change(&mut weight);
        cpu.matrix(vec![part(&weight)])
    };
    attempt(&|_| {}).unwrap();
    assert_refused(attempt(&|w| w.codes = Bytes::from(vec![0; n * k / 2 - 1])), "matrix", "codes");
    assert_refused(attempt(&|w| w.scales.values.truncate(1)), "matrix", "scales");
    assert_refused(attempt(&|w| w.scales.columns = 16), "matrix", "scales");
    assert_refused(attempt(&|w| w.scales.zeros = Zeros::Each(vec![0; 3])), "matrix", "zeros");
    assert_refused(attempt(&|w| w.code = Code::E2M1), "matrix", "zeros");
    assert_refused(attempt(&|w| w.order = Some(vec![0; k].into())), "matrix", "order");
    assert_refused(attempt(&|w| w.order = Some((1..=k as u32).collect::<Vec<_>>().into())), "matrix", "order");
    assert_refused(attempt(&|w| w.shape = [usize::MAX, 2]), "matrix", "shape");
    assert_refused(attempt(&|w| w.shape = [0, k]), "matrix", "shape");

    let table = cpu.table(Weight::Dense(view(&[0.0; 6], &[3, 2], DType::F32))).unwrap();
    let x = buffer(&cpu, DType::F32, &[0.0; 2]);
    let mut out = cpu.buffer(DType::F32, 3).unwrap();
    assert_refused(cpu.matmul(1, &x, &table, &mut out), "matmul", "weight");
}
