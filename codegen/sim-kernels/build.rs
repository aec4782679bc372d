//! Compiles every kernel and probe as C++, to a library that programs link and to a shared object that tests load.

use std::path::PathBuf;
use std::process::ExitCode;

use burrstone_codegen::{Error, Tree, host};

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(compiled)");
    let Err(error) = compile() else { return ExitCode::SUCCESS };
    // Cargo reads each line as a directive.
    error.to_string().lines().for_each(|line| println!("cargo::error={line}"));
    ExitCode::FAILURE
}

fn compile() -> Result<(), Error> {
    let out = PathBuf::from(variable("OUT_DIR"));
    let tree = Tree::own();
    for input in tree.inputs() {
        println!("cargo::rerun-if-changed={}", input.display());
    }
    for name in ["CXX", "CXXFLAGS", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    // docs.rs has no compilers and runs nothing.
    if std::env::var_os("DOCS_RS").is_some() {
        return Ok(());
    }
    let compiler = match host::Compiler::find(&tree, &variable("TARGET"), &variable("HOST"), "") {
        Ok(compiler) => compiler,
        Err(reason) => {
            println!("cargo::warning=no C++ compiler, so no kernels for the simulator: {reason}");
            return Ok(());
        }
    };
    let folder = out.join("objects");
    let objects = compiler.objects(&tree, &tree.kernels()?, &folder)?;
    host::keep_only(&folder, &objects)?;
    compiler.link(&objects, &out)?;
    let shared = out.join("kernels.so");
    compiler.shared_object(&objects, &shared)?;
    println!("cargo::rustc-cfg=compiled");
    println!("cargo::rustc-env=BURRSTONE_SIM_KERNELS_FILE={}", shared.display());
    Ok(())
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
