//! From specifications to what the crate includes: problems, kernels for the simulator, dispatch tables.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burrstone_codegen::render::{problems::problems, tables::tables};
use burrstone_codegen::{Error, Kernel, Role, Tree, host, write_if_changed};

fn main() -> ExitCode {
    match generate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={}", error.to_string().replace('\n', "\ncargo::error="));
            ExitCode::FAILURE
        }
    }
}

fn generate() -> Result<(), Error> {
    let tree = Tree::at(&PathBuf::from(variable("CARGO_MANIFEST_DIR")));
    let out = PathBuf::from(variable("OUT_DIR"));
    watch_inputs(&tree);
    let kernels = tree.kernels()?;
    write_if_changed(&out.join("problems.rs"), &problems(&kernels))?;
    let simulated = compile_for_the_simulator(&tree, &kernels, &out)?;
    for (role, file) in [(Role::Kernel, "kernels.rs"), (Role::Probe, "probes.rs")] {
        write_if_changed(&out.join(file), &tables(role, &kernels, simulated, |_| Vec::new()))?;
    }
    Ok(())
}

fn watch_inputs(tree: &Tree) {
    for input in tree.inputs() {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    for name in ["BURRSTONE_SIM_SANITIZE", "CXX", "CXXFLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

/// Whether there is a simulator: with the feature, and where there is a C++ compiler.
fn compile_for_the_simulator(tree: &Tree, kernels: &[Kernel], out: &Path) -> Result<bool, Error> {
    if std::env::var_os("CARGO_FEATURE_SIM").is_none() {
        return Ok(false);
    }
    let sanitize = std::env::var("BURRSTONE_SIM_SANITIZE").unwrap_or_default();
    let compiler = match host::Compiler::find(tree, &variable("TARGET"), &variable("HOST"), &sanitize) {
        Ok(compiler) => compiler,
        Err(reason) => {
            println!("cargo::warning=no C++ compiler, so no simulator of the CUDA kernels: {reason}");
            return Ok(false);
        }
    };
    let objects = compiler.objects(tree, kernels, &out.join("sim"))?;
    compiler.link(&objects, out)?;
    Ok(true)
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
