//! Products that end in gates: the bits of the products, and of the activation after them.

use burrstone::DType;
use burrstone::cpu::{Buffer, Cpu, Isa};
use burrstone::ops::{Activation, Ops, WeightView};
use proptest::prelude::*;

use crate::reference::act_mul::silu;
use crate::reference::matmul::matmul;
use crate::support::*;

const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

/// Gate and up projections of `[width, k]`, and biases.
fn projections(width: usize, k: usize, dtype: DType, biased: bool) -> (Vec<WeightView>, Vec<WeightView>) {
    let weight = |seed| view(&numbers(seed, width * k, dtype), &[width, k], dtype);
    let bias = |seed| view(&numbers(seed, width, dtype), &[width], dtype);
    (vec![weight(2), weight(3)], if biased { vec![bias(4), bias(5)] } else { Vec::new() })
}

fn gated(cpu: &Cpu, rows: usize, x: &Buffer, projections: (Vec<WeightView>, Vec<WeightView>), out: DType) -> Vec<f32> {
    let matrix = cpu.gated_matrix(parts(projections.0, projections.1)).unwrap();
    let mut product = cpu.buffer(out, rows * matrix.width()).unwrap();
    cpu.gated_matmul(rows, x, &matrix, Activation::Silu, &mut product).unwrap();
    product.read(rows * matrix.width()).unwrap()
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn a_gated_product_is_two_products_and_their_gates(
        isa in any_isa(),
        threads in 1usize..4,
        rows in prop_oneof![1usize..30, Just(70), Just(530)],
        width in prop_oneof![1usize..40, 90usize..260],
        k in prop_oneof![1usize..100, 510usize..530, Just(1100)],
        dtypes in (any_dtype(), any_dtype(), any_dtype()),
        biased in any::<bool>(),
    ) {
        let (x_dtype, dtype, out) = dtypes;
        let cpu = cpu(isa, threads);
        let x = buffer(&cpu, x_dtype, &numbers(1, rows * k, x_dtype));
        let (blocks, biases) = projections(width, k, dtype, biased);
        let stacked = cpu.matrix(parts(blocks.clone(), biases.clone())).unwrap();
        let mut products = cpu.buffer(DType::F32, rows * 2 * width).unwrap();
        cpu.matmul(rows, &x, &stacked, &mut products).unwrap();
        let products = products.read(rows * 2 * width).unwrap();
        let got = gated(&cpu, rows, &x, (blocks, biases), out);
        for (row, got) in products.chunks(2 * width).zip(got.chunks(width)) {
            let (gate, up) = row.split_at(width);
            assert_same_bits(&format!("{isa}"), got, &act_mul(&cpu, Activation::Silu, gate, up, out));
        }
    }
}

#[test]
fn gate_and_up_may_differ_in_dtype() {
    let (rows, width, k) = (5, 30, 96);
    for isa in isas() {
        let cpu = cpu(isa, 2);
        let values = numbers(1, rows * k, DType::BF16);
        let x = buffer(&cpu, DType::BF16, &values);
        let (gate, up) = (numbers(2, width * k, DType::BF16), numbers(3, width * k, DType::F32));
        let blocks = vec![view(&gate, &[width, k], DType::BF16), view(&up, &[width, k], DType::F32)];
        let got = gated(&cpu, rows, &x, (blocks, Vec::new()), DType::F32);
        let product = |w: &[f32]| {
            (matmul::<f32>(&values, w, None, rows, width, k), matmul::<f64>(&values, w, None, rows, width, k))
        };
        let ((gate, exact_gate), (up, exact_up)) = (product(&gate), product(&up));
        let plain: Vec<f32> = gate.iter().zip(&up).map(|(&g, u)| silu(g) * u).collect();
        let exact: Vec<f64> = exact_gate.iter().zip(&exact_up).map(|(&g, u)| silu(g) * u).collect();
        assert_close(&format!("{isa}"), DType::F32, &got, &plain, &exact);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = cpu(Isa::best(), 1);
    let (blocks, _) = projections(3, 4, DType::F32, false);
    let matrix = cpu.gated_matrix(parts(blocks.clone(), Vec::new())).unwrap();
    assert_eq!((matrix.width(), matrix.k()), (3, 4));
    let x = buffer(&cpu, DType::F32, &[0.0; 8]);
    let mut out = cpu.buffer(DType::F32, 6).unwrap();
    let mut attempt = |rows| cpu.gated_matmul(rows, &x, &matrix, Activation::Silu, &mut out);
    attempt(2).unwrap();
    assert_refused(attempt(3), "gated_matmul", "x");
    assert_refused(attempt(usize::MAX), "gated_matmul", "x");
    let mut short = cpu.buffer(DType::F32, 5).unwrap();
    assert_refused(cpu.gated_matmul(2, &x, &matrix, Activation::Silu, &mut short), "gated_matmul", "out");

    let other = view(&[0.0; 8], &[2, 4], DType::F32);
    let gate = blocks[0].clone();
    for wrong in [vec![], vec![gate.clone()], vec![gate.clone(), other], vec![gate.clone(), gate.clone(), gate]] {
        assert_refused(cpu.gated_matrix(parts(wrong, Vec::new())), "gated_matrix", "parts");
    }
    let bias = view(&[0.0; 4], &[4], DType::F32);
    assert_refused(cpu.gated_matrix(parts(blocks, vec![bias])), "matrix", "bias");
}

mod on_devices {
    use std::collections::BTreeSet;

    use burrstone::device::sim::Space;
    use burrstone::device::{SimOptions, Stream, Value, Variant};
    use burrstone::kernels::{ActMul, Gpu, MatMul, MatMulPair, MatMulPlan};

    use super::*;
    use crate::device::{Placed, assert_no_waste, counting_stream, dense_products, planned, some_variants, stream};

    #[derive(Clone, Debug)]
    struct Case {
        m: usize,
        width: usize,
        k: usize,
        dtype: DType,
        activation: Activation,
        biased: bool,
        /// Elements away from the best alignment: x, weight, out.
        shifts: [usize; 3],
    }

    /// Gates' and ups' rows of `columns` elements, which lie behind each other, as a gated product wants them. Rows that
    /// fill up are ones: nobody is to see them.
    fn alternating(stacked: &[f32], columns: usize) -> Vec<f32> {
        let width = stacked.len() / columns / 2;
        let row = |r: usize| match r / 16 * 8 + r % 8 {
            i if i < width => stacked[(r / 8 % 2 * width + i) * columns..][..columns].to_vec(),
            _ => vec![1.0; columns],
        };
        (0..MatMul::gated_rows(width)).flat_map(row).collect()
    }

    impl Case {
        fn operands(&self) -> [Vec<f32>; 3] {
            let Case { m, width, k, dtype, .. } = *self;
            [numbers(1, m * k, dtype), numbers(2, 2 * width * k, dtype), numbers(3, 2 * width, dtype)]
        }

        fn run(&self, stream: &Stream, plan: &MatMulPlan) -> Vec<u8> {
            let Case { m, width: n, k, dtype, activation, shifts, .. } = *self;
            let [x, weight, bias] = self.operands();
            let x = Placed::of(stream, dtype, &x, shifts[0]);
            let weight = Placed::of(stream, dtype, &alternating(&weight, k), shifts[1]);
            let bias = Placed::of(stream, dtype, &alternating(&bias, 1), 1);
            let mut workspace = stream.alloc(DType::U32, MatMul::WORKSPACE / 8).unwrap();
            let mut out = Placed::untouched(stream, dtype, m * n, shifts[2]);
            let (x, weight, bias) = (x.slice(), weight.slice(), self.biased.then(|| bias.slice()));
            let (gate, workspace) = (Some(activation), Some(workspace.slice_mut()));
            let args = MatMul {
                x,
                weight: weight.into(),
                bias,
                gate,
                out: out.slice_mut(),
                accumulate: false,
                scale: None,
                workspace,
                m,
                n,
                k,
            };
            args.launch_plan(stream, plan).unwrap();
            out.bytes()
        }

        /// The products in a launch of their own.
        fn run_apart(&self, stream: &Stream) -> Vec<u8> {
            let Case { m, width, k, dtype, activation, .. } = *self;
            let [x, weight, bias] = self.operands().map(|values| Placed::of(stream, dtype, &values, 0));
            let mut gate_up = Placed::untouched(stream, dtype, m * 2 * width, 0);
            let mut out = Placed::untouched(stream, dtype, m * width, 0);
            let (x, weight, bias) = (x.slice(), weight.slice(), self.biased.then(|| bias.slice()));
            let (n, to) = (2 * width, gate_up.slice_mut());
            MatMul {
                x,
                weight: weight.into(),
                bias,
                gate: None,
                out: to,
                accumulate: false,
                scale: None,
                workspace: None,
                m,
                n,
                k,
            }
            .launch(stream)
            .unwrap();
            let (gate_up, to) = (gate_up.slice(), out.slice_mut());
            ActMul { gate_up, out: to, scales: None, rows: m, width, activation }.launch(stream).unwrap();
            out.bytes()
        }

        fn variants(&self) -> Vec<&'static Variant> {
            dense_products(self.dtype, self.dtype)
        }

        fn check(&self) {
            let spans = self.k.div_ceil(512);
            let mut apart: Vec<(Value, Vec<u8>)> = Vec::new();
            for variant in some_variants(self.variants()) {
                let Some(stream) = stream(variant, self.k as u64) else { continue };
                let instruction = variant.value("instruction").expect("an axis");
                if apart.iter().all(|(own, _)| *own != instruction) {
                    apart.push((instruction, self.run_apart(&stream)));
                }
                let (_, expected) = apart.iter().find(|(own, _)| *own == instruction).expect("it was pushed");
                for splits in [1, 2, spans].into_iter().filter(|&s| s <= spans).collect::<BTreeSet<_>>() {
                    let got = self.run(&stream, &planned(variant, splits, None));
                    assert!(got == *expected, "{} in {splits} differs", variant.name);
                }
            }
        }
    }

    fn any_case(shape: impl Strategy<Value = (usize, usize, usize)>) -> impl Strategy<Value = Case> {
        let dtype = proptest::sample::select(vec![DType::BF16, DType::F16]);
        let activation = proptest::sample::select(ALL.to_vec());
        let shifts = proptest::sample::select(vec![[0, 0, 0], [8, 16, 8], [1, 0, 1], [0, 3, 2]]);
        (shape, dtype, activation, any::<bool>(), shifts).prop_map(
            |((m, width, k), dtype, activation, biased, shifts)| Case {
                m,
                width,
                k,
                dtype,
                activation,
                biased,
                shifts,
            },
        )
    }

    proptest! {
        #![proptest_config(cases(16))]

        /// Around the borders of tiles and of gates' rows.
        #[test]
        fn every_variant_gives_the_bits_of_two_launches(
            case in any_case((
                proptest::sample::select(vec![1usize, 7, 8, 17, 64, 65, 129]),
                proptest::sample::select(vec![1usize, 7, 8, 12, 13, 31, 32, 33, 60, 64, 65]),
                proptest::sample::select(vec![5usize, 24, 64, 72]),
            )),
        ) {
            case.check();
        }
    }

    proptest! {
        #![proptest_config(cases(4))]

        /// The last block of a tile gates what all of them have summed up.
        #[test]
        fn splits_give_the_bits_of_two_launches(
            case in any_case((
                proptest::sample::select(vec![1usize, 9]),
                proptest::sample::select(vec![5usize, 32, 36]),
                proptest::sample::select(vec![520usize, 1032, 1543]),
            )),
        ) {
            case.check();
        }
    }

    /// Of tiles beyond the matrix there are neither gates nor ups.
    #[test]
    fn pairs_give_the_bits_of_two_launches() {
        let (m, width, k, dtype, activation) = (70, 150, 72, DType::F16, Activation::Silu);
        let case = Case { m, width, k, dtype, activation, biased: true, shifts: [0; 3] };
        for variant in case.variants().into_iter().filter(|variant| variant.archs.contains(&90)) {
            let Some(stream) = stream(variant, 2).filter(|_| variant.int("m") == Some(32)) else { continue };
            for pair in [MatMulPair::X, MatMulPair::Weight] {
                let got = case.run(&stream, &planned(variant, 1, Some(pair)));
                assert!(got == case.run_apart(&stream), "{} in pairs with one {pair:?} differs", variant.name);
            }
        }
    }

    /// Results leave in whole sectors, through banks that Volta's fragments alone share. (Of a warp's sixteen rows on Hopper
    /// eight remain, half a sector of each token.)
    #[test]
    fn gates_use_memory_to_the_full_on_the_simulator() {
        let (m, width, k, dtype, activation) = (64, 64, 128, DType::F16, Activation::Silu);
        let case = Case { m, width, k, dtype, activation, biased: false, shifts: [0; 3] };
        let by = |variant: &Variant, name| variant.value("instruction") == Some(Value::Text(name));
        for variant in case.variants().into_iter().filter(|variant| !by(variant, "m64k16")) {
            let stream = counting_stream(variant);
            case.run(&stream, &planned(variant, 1, None));
            assert_no_waste(&stream, |site| site.space == Space::Global || !by(variant, "m8n8k4"));
        }
    }

    /// Projections as checkpoints have them: of any dtype, larger than what is converted at a time, and of a width that
    /// leaves the last rows alone.
    #[test]
    fn uploaded_projections_alternate() {
        let (rows, dtype) = (3, DType::F16);
        for (width, k, stored) in [(13, 24, DType::F16), (2100, 520, DType::F32)] {
            let gpu = Gpu::new(crate::support::stream(3), dtype, rows, 100).unwrap();
            let (blocks, biases) = projections(width, k, stored, true);
            let stacked = gpu.matrix(parts(blocks.clone(), biases.clone())).unwrap();
            let matrix = gpu.gated_matrix(parts(blocks, biases)).unwrap();
            let room = |len| gpu.buffer(dtype, rows * len).unwrap();
            let (mut x, mut gate_up, mut apart, mut out) = (room(k), room(2 * width), room(width), room(width));
            x.write(&encode(&numbers(1, rows * k, dtype), dtype)).unwrap();
            gpu.matmul(rows, &x, &stacked, &mut gate_up).unwrap();
            let (to, activation) = (apart.slice_mut(), Activation::GeluTanh);
            ActMul { gate_up: gate_up.slice(), out: to, scales: None, rows, width, activation }
                .launch(gpu.stream())
                .unwrap();
            gpu.gated_matmul(rows, &x, &matrix, activation, &mut out).unwrap();
            assert_eq!(out.read::<u8>().unwrap(), apart.read::<u8>().unwrap(), "[{width}, {k}] of {stored}");
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let variant = dense_products(DType::F16, DType::F16)[0];
        let stream = stream(variant, 1).expect("f16 is everywhere");
        let attempt = |weight_len, bias_len, out_dtype, n| {
            let x = Placed::untouched(&stream, DType::F16, 8, 0);
            let weight = Placed::untouched(&stream, DType::F16, weight_len, 0);
            let bias = Placed::untouched(&stream, DType::F16, bias_len, 0);
            let mut out = Placed::untouched(&stream, out_dtype, 6, 0);
            let (x, weight, bias, gate) = (x.slice(), weight.slice(), Some(bias.slice()), Some(Activation::Gelu));
            MatMul {
                x,
                weight: weight.into(),
                bias,
                gate,
                out: out.slice_mut(),
                accumulate: false,
                scale: None,
                workspace: None,
                m: 2,
                n,
                k: 4,
            }
            .launch(&stream)
        };
        const OP: &str = "matmul";
        attempt(64, 16, DType::F16, 3).unwrap();
        assert_refused(attempt(63, 16, DType::F16, 3), OP, "weight");
        assert_refused(attempt(64, 15, DType::F16, 3), OP, "bias");
        assert_refused(attempt(64, 16, DType::F16, 4), OP, "out");
        assert_refused(attempt(64, 16, DType::F32, 3), OP, "out");
        assert_refused(attempt(64, 16, DType::F16, usize::MAX), OP, "weight");
        let stream = simulated(SimOptions::default());
        let gpu = Gpu::new(stream, DType::F16, 1, 100).unwrap();
        let (mut blocks, _) = projections(3, 4, DType::F16, false);
        blocks.truncate(1);
        assert_refused(gpu.gated_matrix(parts(blocks, Vec::new())), "gated_matrix", "parts");
    }
}
