//! Kernels compiled for GPUs, by each compiler of this machine. Without one nothing is tested.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::support::Copy;
use burrstone_codegen::cubin::Resources;
use burrstone_codegen::device::{Store, build, over_budget, report};
use burrstone_codegen::discover::Environment;
use burrstone_codegen::toolchain::Toolchain;
use burrstone_codegen::{Arch, Error, Kernel};

/// This machine's toolchains, for an older architecture and the newest.
fn toolchains() -> Vec<Toolchain> {
    let toolchains: Vec<_> = ["nvrtc", "nvcc"]
        .iter()
        .filter_map(|compiler| {
            let read = |name: &str| match name {
                "BURRSTONE_CUDA_COMPILER" => Some(compiler.into()),
                "BURRSTONE_CUDA_ARCHS" => Some("75,90a".into()),
                _ => std::env::var_os(name),
            };
            Toolchain::find(&Environment::new(&read), "..".as_ref()).ok()?.toolchain
        })
        .collect();
    if toolchains.is_empty() {
        println!("no CUDA compiler: nothing is compiled");
    }
    toolchains
}

/// The number of units that a build of the copy compiled, and the files of all its cubins.
fn compiled(
    toolchain: &Toolchain,
    copy: &Copy,
    shared: bool,
) -> Result<(Vec<String>, BTreeMap<String, PathBuf>), Error> {
    let tree = copy.tree();
    let kernels = tree.kernels()?;
    let (own, shared_folder, scratch) = (copy.path("own"), copy.path("shared"), copy.path("scratch"));
    let store = Store { own: &own, shared: shared.then_some(&shared_folder), scratch: &scratch };
    let compiled = Mutex::new(Vec::new());
    let cubins = build(toolchain, &tree, kernels.iter().flat_map(Kernel::pairs), store, &|progress| {
        compiled.lock().unwrap().push(format!("{} {}", progress.name, progress.arch));
    })?;
    for cubin in &cubins {
        let used = Resources::read(&cubin.variant.name, &std::fs::read(&cubin.file).unwrap()).unwrap();
        assert_eq!(used, cubin.used);
    }
    assert_eq!(std::fs::read_dir(&own).unwrap().count(), cubins.len());
    let name = |cubin: &burrstone_codegen::device::Cubin| format!("{} {}", cubin.variant.name, cubin.arch);
    let files = cubins.iter().map(|cubin| (name(cubin), cubin.file.clone())).collect();
    let mut compiled = compiled.into_inner().unwrap();
    compiled.sort();
    Ok((compiled, files))
}

#[test]
fn a_change_recompiles_what_it_touches_and_a_damaged_cubin_itself() {
    for toolchain in toolchains() {
        let copy = Copy::new();
        let (first, files) = compiled(&toolchain, &copy, true).unwrap();
        // Four legal variants on the older architecture, all eight on the newest, and the probe's single one on both.
        assert_eq!(first.len(), 4 + 8 + 2);
        assert_eq!(files.keys().cloned().collect::<Vec<_>>(), first);
        assert!(!files.contains_key("scale__f32_v4_t64 sm_75"));
        assert_eq!(compiled(&toolchain, &copy, true).unwrap(), (vec![], files.clone()));

        std::fs::write(&files["scale__f32_v1_t64 sm_75"], "cut off").unwrap();
        assert_eq!(compiled(&toolchain, &copy, false).unwrap().0, ["scale__f32_v1_t64 sm_75"]);

        copy.replace("csrc/kernels/scale.cu", "args.factor", "args.factor * 2");
        let (second, _) = compiled(&toolchain, &copy, true).unwrap();
        assert_eq!(second.len(), 12);
        copy.replace("csrc/kernels/scale.cu", "args.factor * 2", "args.factor");
        std::fs::remove_dir_all(copy.path("own")).unwrap();
        assert_eq!(compiled(&toolchain, &copy, true).unwrap().0, Vec::<String>::new());
    }
}

#[test]
fn resources_are_read_and_held_against_the_gate() {
    for toolchain in toolchains().into_iter().take(1) {
        let copy = Copy::new();
        // An array indexed at run time is in local memory.
        let table = "int table[32]; for (int k = 0; k < 32; ++k) table[k] = values[k]; for (int i = thread";
        copy.replace("csrc/kernels/scale.cu", "for (int i = thread", table);
        copy.replace("csrc/kernels/scale.cu", "* args.factor)", "* args.factor * table[i % 32])");
        copy.replace("codegen/specs/scale.toml", "registers = 40", "registers = 4");
        copy.replace("codegen/specs/scale.toml", "shared_bytes = 1024", "shared_bytes = 511");
        let tree = copy.tree();
        let kernels = tree.kernels().unwrap();
        let (own, scratch) = (copy.path("own"), copy.path("scratch"));
        let store = Store { own: &own, shared: None, scratch: &scratch };
        let cubins = build(&toolchain, &tree, kernels.iter().flat_map(Kernel::pairs), store, &|_| ()).unwrap();
        let scale = cubins.iter().find(|cubin| cubin.variant.name == "scale__f32_v1_t128").unwrap();
        assert_eq!((scale.arch, scale.used.shared_bytes, scale.used.local_bytes), (Arch::ALL[1], 512, 128));
        assert!((8..64).contains(&scale.used.registers));
        let errors: Vec<_> = over_budget(&cubins).iter().map(ToString::to_string).collect();
        let over = |what: &str| errors.iter().filter(|e| e.contains(what)).count();
        assert_eq!((over("gate.registers"), over("gate.shared_bytes")), (12, 6));
        let registers = scale.used.registers;
        assert!(errors[0].ends_with(&format!(
            "codegen/specs/scale.toml: scale__f32_v1_t128 on sm_75: gate.registers: expected at most 4, found {registers}"
        )));
        assert!(
            errors.iter().any(
                |e| e.ends_with("scale__f32_v1_t128 on sm_90a: gate.shared_bytes: expected at most 511, found 512")
            )
        );
        assert!(
            errors
                .iter()
                .any(|e| e.ends_with("scale__i32_v1_t64 on sm_75: gate.local_bytes: expected at most 0, found 128"))
        );
        assert_eq!(report(&cubins).lines().count(), 1 + 14);
    }
}

#[test]
fn a_refused_kernel_names_its_file_and_line() {
    for toolchain in toolchains() {
        let copy = Copy::new();
        copy.replace("csrc/kernels/scale.cu", "using T =", "undeclared(); using T =");
        let error = compiled(&toolchain, &copy, false).unwrap_err().to_string();
        let nvrtc = toolchain.name().starts_with("NVRTC");
        assert!(!nvrtc || error.contains("kernels/scale.cu(14)") && error.contains("undeclared"), "{error}");
        assert!(nvrtc || error.contains("nvcc: cannot compile a kernel"), "{error}");
    }
}

#[test]
fn a_warning_counts_as_an_error() {
    for toolchain in toolchains() {
        let copy = Copy::new();
        copy.replace("csrc/kernels/scale.cu", "using T =", "int unused; using T =");
        assert!(compiled(&toolchain, &copy, false).is_err(), "{}", toolchain.name());
    }
}
