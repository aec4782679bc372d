use burrstone::DType;
use burrstone::cpu::Isa;
use burrstone::ops::Ops;
use proptest::prelude::*;

use crate::problems::embedding::PROBLEMS;
use crate::reference::embedding::embedding;
use crate::support::*;

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn agrees_with_the_oracle(
        isa in any_isa(),
        threads in 1usize..4,
        sizes in proptest::collection::vec(1usize..20, 1..4),
        width in prop_oneof![1usize..100, one_of(PROBLEMS, |p| p.width)],
        dtype in any_dtype(),
        picks in proptest::collection::vec(any::<u32>(), 1..40),
    ) {
        let cpu = cpu(isa, threads);
        let table = numbers(1, sizes.iter().sum::<usize>() * width, dtype);
        let mut blocks = Vec::new();
        let mut rest = table.as_slice();
        for &n in &sizes {
            let (block, after) = rest.split_at(n * width);
            blocks.push(view(block, &[n, width], dtype));
            rest = after;
        }
        let matrix = cpu.matrix(parts(blocks, Vec::new())).unwrap();
        let tokens: Vec<u32> = picks.iter().map(|p| p % matrix.n() as u32).collect();
        let mut out = cpu.buffer(DType::F32, tokens.len() * width).unwrap();
        cpu.embedding(&step_of(&cpu, &tokens, &[]), &matrix, &mut out).unwrap();
        let got = out.read(tokens.len() * width).unwrap();
        assert_same_bits(&format!("{isa}"), &got, &embedding(&table, &tokens, width));
    }
}

#[test]
fn a_token_out_of_range_is_refused() {
    let cpu = cpu(Isa::best(), 1);
    let matrix = cpu.matrix(parts(vec![view(&[0.0; 6], &[3, 2], DType::F32)], Vec::new())).unwrap();
    let mut out = cpu.buffer(DType::F32, 2).unwrap();
    assert_refused(cpu.embedding(&step_of(&cpu, &[3], &[]), &matrix, &mut out), "embedding", "tokens");
    assert_refused(cpu.embedding(&step_of(&cpu, &[0, 1], &[]), &matrix, &mut out), "embedding", "out");
}

/// On the device rows are copied bit for bit, whatever their dtype, length and alignment. A row outside the table is
/// read as all ones.
mod on_the_device {
    use burrstone::kernels::Embedding;

    use super::*;
    use crate::device::{Placed, stream, variants};

    fn gathered(table: &[u8], row: usize, rows: &[u32]) -> Vec<u8> {
        let missing = vec![0xff; row];
        rows.iter().flat_map(|&r| table.chunks(row).nth(r as usize).unwrap_or(&missing).to_vec()).collect()
    }

    proptest! {
        #![proptest_config(cases(30))]

        #[test]
        fn every_variant_gathers(
            n in 1usize..12,
            width in prop_oneof![1usize..70, one_of(PROBLEMS, |p| p.width), 2040usize..2060],
            dtype in proptest::sample::select(vec![DType::BF16, DType::F32, DType::U8]),
            shifts in (0usize..3, 0usize..3),
            picks in proptest::collection::vec(0u32..14, 0..9),
        ) {
            let bytes: Vec<u8> = (0..n * width * dtype.size()).map(|i| bits(5, i as u64) as u8).collect();
            for variant in variants("embedding", &[]) {
                let Some(stream) = stream(variant, 1) else { continue };
                let table = Placed::new(&stream, dtype, &bytes, shifts.0);
                let rows = Placed::indices(&stream, &picks, 0);
                let mut out = Placed::untouched(&stream, dtype, picks.len() * width, shifts.1);
                let (tokens, table, rows) = (picks.len(), table.slice(), rows.slice());
                Embedding { table, rows, out: out.slice_mut(), tokens, width }.launch_variant(&stream, variant).unwrap();
                prop_assert_eq!(out.bytes(), gathered(&bytes, width * dtype.size(), &picks), "{}", variant.name);
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let stream = stream(variants("embedding", &[])[0], 1).expect("a variant for every device");
        let attempt = |out_dtype, out_len, rows, width| {
            let table = Placed::of(&stream, DType::F32, &[0.0; 6], 0);
            let rows = Placed::indices(&stream, rows, 0);
            let mut out = Placed::untouched(&stream, out_dtype, out_len, 0);
            let (table, rows) = (table.slice(), rows.slice());
            Embedding { table, rows, out: out.slice_mut(), tokens: 2, width }.launch(&stream)
        };
        attempt(DType::F32, 4, &[0, 1], 2).unwrap();
        assert_refused(attempt(DType::F32, 4, &[0], 2), "embedding", "rows");
        assert_refused(attempt(DType::F32, 3, &[0, 1], 2), "embedding", "out");
        assert_refused(attempt(DType::BF16, 4, &[0, 1], 2), "embedding", "out");
        assert_refused(attempt(DType::F32, 4, &[0, 1], usize::MAX), "embedding", "out");
    }
}
