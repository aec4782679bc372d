//! Rules of the code's structure that a machine can check.

use std::collections::{BTreeMap, BTreeSet};
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

/// A file without comments and unit tests. These come last, and may look further.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap().split("#[cfg(all(test").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

/// What the specifications name: kernels, those of them with device code, and the operations that they are kernels of.
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
            for line in code(&file).lines() {
                for above in &rooms[floor + 1..] {
                    let found = ["engine::", "crate::"].iter().any(|path| line.contains(&format!("{path}{above}::")));
                    assert!(!found, "{}: {line}", file.display());
                }
            }
        }
    }
}

/// The paths of the `use` tree (or the path) at the start of `rest`; the text after it.
fn expand<'a>(mut rest: &'a str, mut path: Vec<&'a str>, found: &mut Vec<Vec<&'a str>>) -> &'a str {
    loop {
        rest = rest.trim_start();
        if let Some(mut group) = rest.strip_prefix('{') {
            while !group.is_empty() && !group.starts_with('}') {
                group = expand(group, path.clone(), found);
                // A name behind `as` is left out.
                group = &group[group.find([',', '}']).unwrap_or(group.len())..];
                group = group.trim_start_matches(',').trim_start();
            }
            return group.get(1..).unwrap_or_default();
        }
        let (name, after) = rest.split_at(rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len()));
        path.push(name);
        match after.strip_prefix("::") {
            Some(more) => rest = more,
            None => {
                found.push(path);
                return after;
            }
        }
    }
}

/// The paths that begin with `start`, in full.
fn paths<'a>(code: &'a str, start: &str) -> Vec<Vec<&'a str>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            expand(code[at..].trim_start_matches("use "), Vec::new(), &mut found);
        }
    }
    found
}

/// The modules next to each other in one module do not use each other in a circle: neither by their own paths nor by
/// names that the module around them re-exports.
#[test]
fn modules_side_by_side_have_no_circles() {
    let (src, mut files) = (root().join("src"), Vec::new());
    files_below(&src, &["rs"], &mut files);
    let mut modules: BTreeMap<Vec<String>, String> = BTreeMap::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap().with_extension("");
        let mut module: Vec<_> = inside.iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        module.pop_if(|last| last == "mod" || last == "lib");
        if !module.iter().any(|name| name == "tests") {
            modules.insert(module, code(&file));
        }
    }
    let mut circles = Vec::new();
    for (parent, text) in &modules {
        let depth = parent.len();
        let below = || modules.iter().filter(|(module, _)| module.len() > depth && module.starts_with(parent));
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        owners.extend(
            paths(text, "use ").iter().filter(|path| path.len() > 1).map(|path| (path[path.len() - 1], path[0])),
        );
        owners.extend(below().map(|(module, _)| (&*module[depth], &*module[depth])));
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (module, code) in below() {
            let own = &*module[depth];
            let used = uses.entry(own).or_default();
            for path in paths(code, "super::").into_iter().chain(paths(code, "crate::")) {
                let ups = path.iter().take_while(|name| **name == "super").count();
                let start = if ups == 0 { &[] } else { &module[..module.len() - ups] };
                let whole: Vec<&str> =
                    start.iter().map(String::as_str).chain(path[ups.max(1)..].iter().copied()).collect();
                if whole.len() > depth && whole.iter().zip(parent).all(|(a, b)| a == b) {
                    used.extend(owners.get(whole[depth]).filter(|owner| **owner != own));
                }
            }
        }
        // Those at the bottom go first, then those that only use these, and so on.
        while let Some(bottom) = uses.iter().find(|(_, used)| !used.iter().any(|name| uses.contains_key(name))) {
            let bottom = *bottom.0;
            uses.remove(bottom);
        }
        if !uses.is_empty() {
            circles.push((parent.join("::"), format!("{uses:?}")));
        }
    }
    assert!(circles.is_empty(), "modules that use each other, and those above them: {circles:#?}");
}
