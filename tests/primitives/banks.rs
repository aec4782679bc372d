//! Wavefronts and sectors of known access patterns.

use burrstone::device::sim::{SiteStats, Space};

use crate::probe::{Probe, bytes};

/// The access statistics of the source line that contains `text`.
fn sites(name: &str, stride: u32) -> impl Fn(&str) -> SiteStats + use<> {
    let a = vec![0_f32; 32 * 8];
    let mut probe = Probe::new(1, [&bytes(&a), &[], &[]], 128);
    probe.n = stride;
    probe.count_accesses();
    let stats = probe.launch(name, 1).unwrap_or_else(|fault| panic!("{fault}"));
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/csrc/probes/banks.cu")).unwrap();
    move |text| {
        let line = source.lines().position(|l| l.contains(text)).unwrap() + 1;
        let site = stats.sites.iter().find(|s| s.place.line as usize == line);
        site.unwrap_or_else(|| panic!("{text}: no access counted in {:?}", stats.sites)).clone()
    }
}

#[test]
fn a_column_takes_a_wavefront_for_each_row_in_the_same_bank() {
    let column = sites("banks__r32_v1_t32", 1)("// a column");
    assert_eq!((column.space, column.store, column.instructions), (Space::Shared, false, 1));
    assert_eq!((column.cost, column.ideal), (32, 1));
    let padded = sites("banks__r33_v1_t32", 1)("// a column");
    assert_eq!((padded.cost, padded.ideal), (1, 1));
}

#[test]
fn wide_accesses_go_by_half_and_quarter_warps() {
    for (vec, phases) in [(1, 1), (2, 2), (4, 4)] {
        let site = sites(&format!("banks__r32_v{vec}_t32"), 1);
        let wide = site("sum += shared.tile.template load_vec<V::vec>(lane * V::vec)");
        assert_eq!((wide.cost, wide.ideal), (phases, phases), "{vec} words a lane");
        let pairs = site("// pairs");
        assert_eq!((pairs.cost, pairs.ideal), (phases, phases), "{vec} words a pair of lanes");
        assert_eq!(site("// broadcast").cost, 1);
    }
}

#[test]
fn every_loop_iteration_is_counted() {
    let rows = sites("banks__r32_v1_t32", 1)("// rows");
    assert_eq!((rows.store, rows.instructions, rows.cost, rows.ideal), (true, 36, 36, 36));
}

#[test]
fn touched_and_needed_sectors_are_counted() {
    for (stride, touched) in [(1, 4), (2, 8), (8, 32)] {
        let strided = sites("banks__r32_v1_t32", stride)("// global, strided");
        assert_eq!((strided.space, strided.cost, strided.ideal), (Space::Global, touched, 4), "stride {stride}");
    }
    let site = sites("banks__r32_v4_t32", 1);
    let wide = site("auto wide");
    assert_eq!((wide.cost, wide.ideal), (16, 16));
    assert!(site("store(pointer<float>").store);
}
