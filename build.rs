//! From specifications to what the crate includes: problems, kernels for GPUs, dispatch tables.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burrstone_codegen::device::{self, Cubin, Store};
use burrstone_codegen::discover::Environment;
use burrstone_codegen::render::{problems, tables};
use burrstone_codegen::toolchain::Toolchain;
use burrstone_codegen::{Error, Kernel, Role, Tree, Variant, write_if_changed};

fn main() -> ExitCode {
    let errors = generate().err().unwrap_or_default();
    for error in &errors {
        // Cargo takes one line at a time.
        error.lines().for_each(|line| println!("cargo::error={line}"));
    }
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn generate() -> Result<(), Vec<String>> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let tree = Tree::own();
    watch_inputs(&tree);
    let kernels = tree.kernels().map_err(one)?;
    let cubins = compile_for_gpus(&tree, &kernels, &root, &out)?;
    write_all(&kernels, &cubins, &out).map_err(one)
}

fn watch_inputs(tree: &Tree) {
    for input in tree.inputs() {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    let own = ["BURRSTONE_CUDA_VARIANTS", "DOCS_RS"];
    for name in Environment::VARIABLES.iter().chain(&own) {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

/// Cubins within their budgets, and a report of what they use, with the feature and where there is a CUDA compiler.
/// Those are the fallbacks; tests on a GPU and tuners ask for all variants, the probes' among them.
fn compile_for_gpus<'a>(
    tree: &Tree,
    kernels: &'a [Kernel],
    root: &Path,
    out: &Path,
) -> Result<Vec<Cubin<'a>>, Vec<String>> {
    let all = match std::env::var("BURRSTONE_CUDA_VARIANTS").as_deref() {
        Ok("all") => true,
        Ok("fallback") | Err(_) => false,
        Ok(other) => return Err(vec![format!("BURRSTONE_CUDA_VARIANTS: expected all or fallback, found {other:?}")]),
    };
    let wanted =
        |(kernel, variant): &(&Kernel, &Variant)| all || (kernel.spec.role == Role::Kernel && variant.fallback);
    let variants: Vec<_> = kernels.iter().flat_map(Kernel::pairs).filter(wanted).collect();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() || documentation_only() || variants.is_empty() {
        return Ok(Vec::new());
    }
    let environment = Environment::new(&|name| std::env::var_os(name));
    let found = Toolchain::find(&environment, root).map_err(|reason| vec![reason])?;
    found.notes.iter().for_each(|note| println!("cargo::warning={note}"));
    let Some(toolchain) = found.toolchain else { return Ok(Vec::new()) };
    let shared = environment.path("BURRSTONE_CUBIN_CACHE");
    let store = Store { own: &out.join("cubins"), shared: shared.as_deref(), scratch: &out.join("nvcc") };
    let cubins = device::build(&toolchain, tree, variants.into_iter(), store, &|_| ()).map_err(one)?;
    write_if_changed(&out.join("kernels.txt"), &device::report(&cubins)).map_err(one)?;
    let over = device::over_budget(&cubins);
    if over.is_empty() { Ok(cubins) } else { Err(over.iter().map(Error::to_string).collect()) }
}

fn write_all(kernels: &[Kernel], cubins: &[Cubin], out: &Path) -> Result<(), Error> {
    write_if_changed(&out.join("problems.rs"), &problems::problems(kernels))?;
    for (role, file) in [(Role::Kernel, "kernels.rs"), (Role::Probe, "probes.rs")] {
        write_if_changed(&out.join(file), &tables::tables(role, kernels, cubins))?;
    }
    Ok(())
}

/// docs.rs has no compilers, and runs nothing.
fn documentation_only() -> bool {
    std::env::var_os("DOCS_RS").is_some()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn one(error: Error) -> Vec<String> {
    vec![error.to_string()]
}
