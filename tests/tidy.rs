//! Rules of the code's structure that a machine can check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn stems(folder: &str) -> BTreeSet<String> {
    fs::read_dir(root().join(folder))
        .unwrap_or_else(|e| panic!("{folder}: {e}"))
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

fn files_below(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, extensions, found);
        } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
            found.push(path);
        }
    }
}

/// Names in the specifications: kernels, kernels with device code, and the operations they implement.
struct Specs {
    kernels: BTreeSet<String>,
    on_devices: BTreeSet<String>,
    ops: BTreeSet<String>,
}

fn specs() -> Specs {
    let kernels = stems("codegen/specs");
    assert!(!kernels.is_empty());
    let (mut on_devices, mut ops) = (BTreeSet::new(), BTreeSet::new());
    for kernel in &kernels {
        let text = fs::read_to_string(root().join(format!("codegen/specs/{kernel}.toml"))).unwrap();
        let op = text.lines().find_map(|line| line.strip_prefix("op = \"")?.strip_suffix('"'));
        ops.insert(op.unwrap_or(kernel).to_owned());
        if text.contains("\n[[axis]]\n") {
            on_devices.insert(kernel.clone());
        }
    }
    Specs { kernels, on_devices, ops }
}

/// A kernel has the same file name in every directory; kernels of one operation share the files that do not depend on
/// the implementation.
#[test]
fn every_kernel_has_its_files() {
    let specs = specs();
    for (room, names) in [
        ("csrc/abi", &specs.on_devices),
        ("csrc/kernels", &specs.on_devices),
        ("src/kernels", &specs.on_devices),
        ("src/cpu", &specs.ops),
        ("tests/reference", &specs.ops),
        ("tests/kernels", &specs.kernels),
        ("benches/kernels", &specs.ops),
    ] {
        let here = stems(room);
        let missing: Vec<_> = names.difference(&here).collect();
        assert!(missing.is_empty(), "{room} lacks {missing:?}");
    }
}

/// Oracles, tests and benches belong to a kernel with a specification.
#[test]
fn oracles_tests_and_benches_belong_to_a_kernel() {
    let kernels = stems("codegen/specs");
    let extra: Vec<_> = stems("tests/reference").difference(&kernels).filter(|s| *s != "mod").cloned().collect();
    assert!(extra.is_empty(), "tests/reference has {extra:?}, which no codegen/specs names");
}

/// `unsafe` occurs only where hardware or foreign code is called.
#[test]
fn unsafe_stays_in_its_modules() {
    let mut sources = Vec::new();
    files_below(&root().join("src"), &["rs"], &mut sources);
    files_below(&root().join("codegen/src"), &["rs"], &mut sources);
    files_below(&root().join("codegen/sim-kernels/src"), &["rs"], &mut sources);
    let rooms = ["src/device", "src/kernels", "src/cpu", "codegen/src/nvidia.rs", "codegen/src/parallel.rs"];
    for path in sources {
        let inside = path.strip_prefix(root()).unwrap();
        if rooms.iter().chain(&["codegen/sim-kernels"]).any(|room| inside.starts_with(room)) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let word = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        assert!(!word, "{} uses unsafe", inside.display());
    }
}

/// The simulator passes its functions to compiled kernels as a table; Rust and C++ must agree on its order.
#[test]
fn the_simulators_functions_have_the_same_order_in_rust_and_cpp() {
    let header = fs::read_to_string(root().join("csrc/sim/runtime.h")).unwrap();
    let (_, fields) = header.split_once("struct burrstone_sim_hooks {").unwrap();
    let fields = fields.lines().filter_map(|line| Some(line.split_once("(*")?.1.split_once(")(")?.0));
    let table = fs::read_to_string(root().join("src/device/sim/hook_table.rs")).unwrap();
    let entries = table.lines().filter_map(|line| line.split_once("::hook_")?.1.strip_suffix(" as *const (),"));
    assert_eq!(entries.collect::<Vec<_>>(), fields.collect::<Vec<_>>());
}

/// Only known files and directories are on the top level.
#[test]
fn the_top_level_has_only_known_entries() {
    let rooms = ["Cargo.toml", "Cargo.lock", "build.rs", "README.md", "rustfmt.toml"];
    let rooms = rooms.into_iter().chain(["codegen", "csrc", "src", "tests", "benches", "tuning", "target"]);
    let rooms: BTreeSet<_> = rooms.chain(["LICENSE-MIT", "LICENSE-APACHE"]).collect();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name();
        let name = name.to_str().unwrap();
        assert!(name.starts_with('.') || rooms.contains(name), "{name} is not a known entry of the top level");
    }
}

/// A module uses only the modules below it.
#[test]
fn modules_use_only_those_below() {
    const ENGINE: [&str; 6] = ["engine", "batching", "capacity", "kv", "scheduler", "simulation"];
    let floors: [(&str, &[&str]); 6] = [
        ("model", &["kernels", "cpu"]),
        ("kernels", &["model", "cpu", "text"]),
        ("cpu", &["model", "kernels", "text"]),
        ("ops", &["model", "kernels", "cpu", "text"]),
        ("device", &["model", "ops", "kernels", "cpu", "text"]),
        ("text", &["model", "ops", "kernels", "cpu", "device"]),
    ];
    for (room, others) in floors {
        let mut files = Vec::new();
        files_below(&root().join("src").join(room), &["rs"], &mut files);
        assert!(!files.is_empty());
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for above in ENGINE.iter().chain(others) {
                    let found = [";", "::", "{"].iter().any(|end| line.contains(&format!("crate::{above}{end}")));
                    assert!(!found, "{}: {line}", file.display());
                }
            }
        }
    }
}

/// The engine's modules from the bottom up: each uses only those before it.
#[test]
fn engine_modules_use_only_those_below() {
    let rooms = ["kv", "scheduler", "sampling", "capacity", "step", "request", "load", "simulation"];
    for (floor, room) in rooms.iter().enumerate() {
        let mut files = Vec::new();
        files_below(&root().join("src/engine").join(room), &["rs"], &mut files);
        assert!(!files.is_empty(), "src/engine/{room} has no files");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            // Unit tests come last in a file, and may use modules above.
            let code = text.split("#[cfg(test)]").next().unwrap().split("#[cfg(all(test").next().unwrap();
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for above in &rooms[floor + 1..] {
                    let found = ["engine::", "crate::"].iter().any(|path| line.contains(&format!("{path}{above}::")));
                    assert!(!found, "{}: {line}", file.display());
                }
            }
        }
    }
}
