#![cfg(feature = "sim")]

use burrstone::DType;
use burrstone::kernels::PermuteColumns;
use proptest::prelude::*;

use crate::device::{Placed, stream, variants};
use crate::support::*;

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn columns_come_in_the_given_order_on_devices(
        rows in 1usize..9,
        width in prop_oneof![(1usize..40).prop_map(|g| 8 * g), Just(2048), Just(3000)],
        dtype in proptest::sample::select(vec![DType::BF16, DType::F16]),
        shift in 0usize..3,
    ) {
        let (x, order) = (numbers(1, rows * width, dtype), shuffled(2, width));
        let expected: Vec<f32> = (0..rows * width).map(|i| x[i / width * width + order[i % width] as usize]).collect();
        for variant in variants("permute_columns", &[]) {
            let Some(stream) = stream(variant, width as u64) else { continue };
            let x = Placed::of(&stream, dtype, &x, shift);
            let order = Placed::indices(&stream, &order, 0);
            let mut out = Placed::untouched(&stream, dtype, rows * width, 0);
            PermuteColumns { x: x.slice(), order: order.slice(), out: out.slice_mut(), rows, width }
                .launch_variant(&stream, variant)
                .unwrap();
            assert_same_bits(variant.name, &out.read(), &expected);
        }
    }
}

#[test]
fn wrong_shapes_are_refused_on_devices() {
    let Some(stream) = stream(variants("permute_columns", &[])[0], 1) else { return };
    let attempt = |x_len, x_dtype, order_len, order_shift, out_len, out_shift, width| {
        let x = Placed::untouched(&stream, x_dtype, x_len, 0);
        let order = Placed::indices(&stream, &vec![0; order_len], order_shift);
        let mut out = Placed::untouched(&stream, DType::F16, out_len, out_shift);
        PermuteColumns { x: x.slice(), order: order.slice(), out: out.slice_mut(), rows: 2, width }.launch(&stream)
    };
    const OP: &str = "permute_columns";
    attempt(32, DType::F16, 16, 0, 32, 0, 16).unwrap();
    assert_refused(attempt(31, DType::F16, 16, 0, 32, 0, 16), OP, "x");
    assert_refused(attempt(32, DType::F32, 16, 0, 32, 0, 16), OP, "x");
    assert_refused(attempt(32, DType::F16, 15, 0, 32, 0, 16), OP, "order");
    assert_refused(attempt(32, DType::F16, 16, 1, 32, 0, 16), OP, "order");
    assert_refused(attempt(32, DType::F16, 16, 0, 31, 0, 16), OP, "out");
    assert_refused(attempt(32, DType::F16, 16, 0, 32, 1, 16), OP, "out");
    assert_refused(attempt(32, DType::F16, 16, 0, 32, 0, 12), OP, "width");
}
