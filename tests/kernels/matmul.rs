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
    let matrix = cpu(isa, 1).matrix(blocks, biases).unwrap();
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
        for (rows, threads) in [(1, 1), (2, 3), (3, 1), (5, 2), (8, 1), (9, 2), (13, 3), (64, 1)] {
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
        let matrix = cpu.matrix(views, Vec::new()).unwrap();
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
    let matrix = cpu.matrix(vec![w.clone()], Vec::new()).unwrap();
    let x = buffer(&cpu, DType::F32, &[0.0; 8]);
    let mut out = cpu.buffer(DType::F32, 6).unwrap();
    assert_refused(cpu.matmul(3, &x, &matrix, &mut out), "matmul", "x");
    let long = buffer(&cpu, DType::F32, &[0.0; 12]);
    assert_refused(cpu.matmul(3, &long, &matrix, &mut out), "matmul", "out");
    assert_refused(cpu.matmul(usize::MAX, &x, &matrix, &mut out), "matmul", "x");
    let mut narrow = cpu.buffer(DType::BF16, 6).unwrap();
    assert_refused(cpu.matmul(2, &x, &matrix, &mut narrow), "matmul", "out");

    assert_refused(cpu.matrix(Vec::new(), Vec::new()), "matrix", "blocks");
    let mut bent = w.clone();
    bent.shape = vec![4, 4];
    assert_refused(cpu.matrix(vec![bent.clone()], Vec::new()), "matrix", "data");
    bent.shape = vec![12];
    assert_refused(cpu.matrix(vec![bent.clone()], Vec::new()), "matrix", "shape");
    bent.shape = vec![4, 3];
    assert_refused(cpu.matrix(vec![w.clone(), bent], Vec::new()), "matrix", "shape");
    let bias = view(&[0.0; 4], &[4], DType::F32);
    assert_refused(cpu.matrix(vec![w.clone()], vec![bias.clone()]), "matrix", "bias");
    assert_refused(cpu.matrix(vec![w], vec![bias.clone(), bias]), "matrix", "biases");
}

#[cfg(feature = "sim")]
mod on_the_device {
    use burrstone::device::sim::Space;
    use burrstone::device::{Stream, Value, Variant};
    use burrstone::kernels::MatMul;

    use super::*;
    use crate::device::{Placed, assert_no_waste, counting_stream, decode, named, stream, variants};

    #[derive(Clone, Debug)]
    struct Case {
        m: usize,
        n: usize,
        k: usize,
        dtype: DType,
        out: DType,
        biased: bool,
        /// Elements away from the best alignment: x, weight.
        shifts: [usize; 2],
    }

    impl Case {
        /// The product of x's rows from `first` on.
        fn run(&self, stream: &Stream, variant: Option<&'static Variant>, first: usize) -> Vec<u8> {
            let Case { n, k, dtype, shifts, .. } = *self;
            let m = self.m - first;
            let x = Placed::of(stream, dtype, &numbers(1, self.m * k, dtype)[first * k..], shifts[0]);
            let weight = Placed::of(stream, dtype, &numbers(2, n * k, dtype), shifts[1]);
            let bias = Placed::of(stream, dtype, &numbers(3, n, dtype), 1);
            let mut out = Placed::untouched(stream, self.out, m * n, 1);
            let (x, weight, bias) = (x.slice(), weight.slice(), self.biased.then(|| bias.slice()));
            let args = MatMul { x, weight, bias, out: out.slice_mut(), m, n, k };
            match variant {
                Some(variant) => args.launch_variant(stream, variant),
                None => args.launch(stream),
            }
            .unwrap();
            out.bytes()
        }

        fn check(&self) {
            let Case { m, n, k, dtype, out, biased, .. } = *self;
            let (x, w, b) = (numbers(1, m * k, dtype), numbers(2, n * k, dtype), numbers(3, n, dtype));
            let bias = biased.then_some(b.as_slice());
            let plain = matmul::<f32>(&x, &w, bias, m, n, k);
            let exact = matmul::<f64>(&x, &w, bias, m, n, k);
            let mut first: Option<Vec<u8>> = None;
            for variant in variants("matmul", &[("dtype", named(dtype)), ("out", named(out))]) {
                let Some(stream) = stream(variant, k as u64) else { continue };
                let got = self.run(&stream, Some(variant), 0);
                assert_close(variant.name, out, &decode(out, &got), &plain, &exact);
                // Whatever the tile: the narrow one and the wide one meet in one batch of requests.
                let expected = first.get_or_insert(got.clone());
                assert!(*expected == got, "{}: the first variant differs", variant.name);
            }
            let expected = first.expect("a variant for the device");
            let key = [("dtype", named(dtype)), ("out", named(out)), ("m", Value::Int(4))];
            let stream = stream(variants("matmul", &key)[0], 9).expect("a device");
            assert!(expected.ends_with(&self.run(&stream, None, m - 1)), "a row alone differs");
        }
    }

    fn any_case(shape: impl Strategy<Value = (usize, usize, usize)>) -> impl Strategy<Value = Case> {
        let dtype = proptest::sample::select(vec![DType::BF16, DType::F16]);
        let shifts = proptest::sample::select(vec![[0, 0], [8, 16], [1, 0], [0, 3]]);
        (shape, dtype, any::<bool>(), any::<bool>(), shifts).prop_map(|((m, n, k), dtype, wide, biased, shifts)| {
            let out = if wide { DType::F32 } else { dtype };
            Case { m, n, k, dtype, out, biased, shifts }
        })
    }

    proptest! {
        #![proptest_config(cases(24))]

        #[test]
        fn every_variant_agrees_with_the_oracle(
            case in any_case((1usize..12, 1usize..80, prop_oneof![1usize..40, (1usize..30).prop_map(|g| 8 * g)])),
        ) {
            case.check();
        }

        /// Around the borders of tiles.
        #[test]
        fn borders_agree_with_the_oracle(
            case in any_case((
                proptest::sample::select(vec![3usize, 4, 5, 63, 64, 65]),
                proptest::sample::select(vec![31usize, 32, 33, 64, 65]),
                proptest::sample::select(vec![56usize, 64, 65, 72, 128, 136]),
            )),
        ) {
            case.check();
        }
    }

    /// Tiles are loaded in whole sectors, and no bank of shared memory is asked twice.
    #[test]
    fn tiles_use_memory_to_the_full() {
        let (m, n, k, dtype, out) = (64, 64, 128, DType::BF16, DType::F32);
        let case = Case { m, n, k, dtype, out, biased: false, shifts: [0; 2] };
        for variant in variants("matmul", &[("dtype", named(dtype)), ("out", named(out))]) {
            let stream = counting_stream(variant);
            case.run(&stream, Some(variant), 0);
            assert_no_waste(&stream, |site| site.space == Space::Shared || !site.store);
        }
    }

    #[test]
    fn nothing_times_nothing_is_the_bias() {
        let case = Case { m: 2, n: 3, k: 0, dtype: DType::F16, out: DType::F32, biased: true, shifts: [0; 2] };
        for variant in variants("matmul", &[("dtype", named(DType::F16)), ("out", named(DType::F32))]) {
            let Some(stream) = stream(variant, 1) else { continue };
            let bias = numbers(3, 3, DType::F16);
            assert_eq!(decode(DType::F32, &case.run(&stream, Some(variant), 0)), [bias.clone(), bias].concat());
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let stream = stream(variants("matmul", &[("dtype", named(DType::F16))])[0], 1).expect("f16 is everywhere");
        let attempt = |x_len, w_dtype, bias_len, out_dtype, m| {
            let x = Placed::untouched(&stream, DType::F16, x_len, 0);
            let weight = Placed::untouched(&stream, w_dtype, 12, 0);
            let bias = Placed::untouched(&stream, DType::F16, bias_len, 0);
            let mut out = Placed::untouched(&stream, out_dtype, 6, 0);
            let (x, weight, bias) = (x.slice(), weight.slice(), Some(bias.slice()));
            MatMul { x, weight, bias, out: out.slice_mut(), m, n: 3, k: 4 }.launch(&stream)
        };
        const OP: &str = "matmul";
        attempt(8, DType::F16, 3, DType::F16, 2).unwrap();
        attempt(8, DType::F16, 3, DType::F16, 0).unwrap();
        assert_refused(attempt(7, DType::F16, 3, DType::F16, 2), OP, "x");
        assert_refused(attempt(8, DType::BF16, 3, DType::F16, 2), OP, "weight");
        assert_refused(attempt(8, DType::F16, 2, DType::F16, 2), OP, "bias");
        assert_refused(attempt(12, DType::F16, 3, DType::F16, 3), OP, "out");
        assert_refused(attempt(8, DType::F16, 3, DType::BF16, 2), OP, "out");
        assert_refused(attempt(8, DType::F16, 3, DType::F16, usize::MAX), OP, "x");
    }
}
