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
        let matrix = cpu.matrix(blocks, Vec::new()).unwrap();
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
    let matrix = cpu.matrix(vec![view(&[0.0; 6], &[3, 2], DType::F32)], Vec::new()).unwrap();
    let mut out = cpu.buffer(DType::F32, 2).unwrap();
    assert_refused(cpu.embedding(&step_of(&cpu, &[3], &[]), &matrix, &mut out), "embedding", "tokens");
    assert_refused(cpu.embedding(&step_of(&cpu, &[0, 1], &[]), &matrix, &mut out), "embedding", "out");
}
