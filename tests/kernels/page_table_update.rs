use burrstone::cpu::Isa;
use burrstone::ops::{Batch, Ops, Span};
use proptest::prelude::*;

use crate::reference::page_table_update::page_table_update;
use crate::support::*;

/// `count` distinct entries below `len`, each with a page.
fn changes(seed: u64, len: usize, count: usize) -> Vec<[u32; 2]> {
    shuffled(seed, len).into_iter().take(count).map(|entry| [entry, bits(seed, entry.into()) as u32 % 1000]).collect()
}

proptest! {
    #![proptest_config(cases(30))]

    /// A step sees the current table after partial updates, even if batches with another table come between.
    #[test]
    fn a_step_sees_the_current_table(
        len in 1usize..300,
        updates in proptest::collection::vec((0usize..20, any::<u64>(), any::<bool>()), 1..20),
    ) {
        let cpu = cpu(Isa::best(), 1);
        let mut step = cpu.step().unwrap();
        let spans = vec![Span { start: 0, len: 1, kv_len: 1, pages: 0 }];
        let page_table = vec![0; len].into();
        let mut batch =
            Batch { tokens: vec![0], slots: vec![0], rope_rows: vec![0], spans, page_table, ..Batch::default() };
        let mut expected = vec![0; len];
        for (count, seed, is_other) in updates {
            let changes = changes(seed, len, count);
            page_table_update(&mut expected, &changes);
            changes.iter().for_each(|&[entry, page]| batch.page_table.write(entry as usize, &[page]));
            if is_other {
                cpu.upload(&Batch { page_table: vec![7; 2 * len].into(), ..batch.clone() }, &mut step).unwrap();
            }
            cpu.upload(&batch, &mut step).unwrap();
            prop_assert_eq!(step.page_table(), expected.as_slice());
        }
    }
}

mod on_the_device {
    use burrstone::DType;
    use burrstone::kernels::PageTableUpdate;

    use super::*;
    use crate::device::{Placed, stream, variants};

    proptest! {
        #![proptest_config(cases(30))]

        #[test]
        fn every_variant_writes_what_changed(len in 1usize..600, count in 0usize..300, seed in any::<u64>()) {
            let mut changes = changes(seed, len, count);
            let before: Vec<u32> = (0..len).map(|i| bits(3, i as u64) as u32).collect();
            let mut expected = before.clone();
            page_table_update(&mut expected, &changes);
            // Entries outside the table are ignored.
            changes.extend([[len as u32, 1], [u32::MAX, 2]]);
            for variant in variants("page_table_update", &[]) {
                let Some(stream) = stream(variant, 3) else { continue };
                let mut table = Placed::indices(&stream, &before, 1);
                let there = Placed::indices(&stream, changes.as_flattened(), 1);
                let args =
                    PageTableUpdate { table: table.slice_mut(), changes: there.slice(), count: changes.len() };
                args.launch_variant(&stream, variant).unwrap();
                let expected: Vec<u8> = expected.iter().flat_map(|page| page.to_le_bytes()).collect();
                prop_assert_eq!(table.bytes(), expected, "{}", variant.name);
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let stream = stream(variants("page_table_update", &[])[0], 1).expect("a variant for every device");
        let attempt = |dtype, count| {
            let mut table = Placed::untouched(&stream, dtype, 4, 0);
            let changes = Placed::indices(&stream, &[0, 1], 0);
            PageTableUpdate { table: table.slice_mut(), changes: changes.slice(), count }.launch(&stream)
        };
        attempt(DType::U32, 1).unwrap();
        assert_refused(attempt(DType::U32, 2), "page_table_update", "changes");
        assert_refused(attempt(DType::F32, 1), "page_table_update", "table");
    }
}
