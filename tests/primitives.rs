//! Each primitive of `csrc/common` alone, on the simulator or a GPU, compared with the PTX manual. Tests that end in
//! `_on_the_simulator`, and those of `fault` and `banks`, check what the simulator detects.
#![cfg(feature = "sim")]

#[path = "primitives/banks.rs"]
mod banks;
#[path = "primitives/cluster.rs"]
mod cluster;
#[path = "primitives/convert.rs"]
mod convert;
#[path = "primitives/cp_async.rs"]
mod cp_async;
#[path = "primitives/fault.rs"]
mod fault;
#[path = "gpu/device.rs"]
mod gpu;
#[path = "primitives/ldmatrix.rs"]
mod ldmatrix;
#[path = "primitives/memory.rs"]
mod memory;
#[path = "primitives/mma.rs"]
mod mma;
#[path = "primitives/pairs.rs"]
mod pairs;
#[path = "primitives/pipeline.rs"]
mod pipeline;
#[path = "primitives/probe.rs"]
mod probe;
#[path = "primitives/registers.rs"]
mod registers;
mod simulator;
#[path = "primitives/tensor.rs"]
mod tensor;
#[path = "primitives/warp.rs"]
mod warp;
#[path = "primitives/wgmma.rs"]
mod wgmma;

/// A probe has the same name in every directory.
#[test]
fn every_probe_has_its_files() {
    let stems = |folder: &str| -> std::collections::BTreeSet<String> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let probes = stems("codegen/probes");
    assert_eq!(stems("csrc/probes"), probes);
    let mut tests = stems("tests/primitives");
    assert!(tests.remove("probe"));
    assert_eq!(tests, probes);
    let list = include_str!("primitives.rs");
    assert!(probes.iter().all(|probe| list.contains(&format!("mod {probe};\n"))), "tests/primitives.rs lacks a probe");
}
