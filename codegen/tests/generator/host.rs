//! Kernels compiled for the simulator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::Copy;
use burrstone_codegen::{Error, host, this_target};

fn objects(copy: &Copy, sanitize: &str) -> Result<Vec<PathBuf>, Error> {
    let tree = copy.tree();
    let compiler = host::Compiler::find(&tree, &this_target(), &this_target(), sanitize).unwrap();
    compiler.objects(&tree, &tree.kernels()?, &copy.path("out"))
}

fn changed(old: &[PathBuf], new: &[PathBuf]) -> BTreeSet<String> {
    let stem = |path: &Path| path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned();
    new.iter().filter(|path| !old.contains(path)).map(|path| stem(path)).collect()
}

#[test]
fn a_change_recompiles_what_it_touches() {
    let copy = Copy::new();
    let first = objects(&copy, "").unwrap();
    assert_eq!(changed(&[], &first), ["kernel_first_lane", "kernel_scale", "table"].map(String::from).into());
    let written = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
    let times: Vec<_> = first.iter().map(written).collect();
    assert_eq!(objects(&copy, "").unwrap(), first);
    assert_eq!(first.iter().map(written).collect::<Vec<_>>(), times);

    copy.replace("csrc/kernels/scale.cu", "args.factor", "args.factor * 2");
    let second = objects(&copy, "").unwrap();
    assert_eq!(changed(&first, &second), ["kernel_scale".to_owned()].into());
    assert!(first.iter().chain(&second).all(|object| object.exists()));
    host::keep_only(&copy.path("out"), &second).unwrap();
    assert!(second.iter().all(|object| object.exists()));
    assert!(first.iter().all(|object| object.exists() == second.contains(object)));

    copy.replace("csrc/common/kernel.cuh", "Just enough", "Enough");
    assert_eq!(changed(&second, &objects(&copy, "").unwrap()).len(), 2);
}

#[test]
fn sanitized_objects_are_others() {
    let copy = Copy::new();
    let plain = objects(&copy, "").unwrap();
    let sanitized = objects(&copy, "address,undefined").unwrap();
    assert_eq!(changed(&plain, &sanitized).len(), 3);
    let bytes = std::fs::read(&sanitized[1]).unwrap();
    assert!(bytes.windows(6).any(|window| window == b"__asan"));
}

#[test]
fn a_warning_is_an_error_that_names_its_line() {
    let copy = Copy::new();
    copy.replace("csrc/kernels/scale.cu", "using T =", "int unused;\n    using T =");
    let error = objects(&copy, "").unwrap_err().to_string();
    assert!(error.contains("csrc/kernels/scale.cu:14") && error.contains("unused"), "{error}");
}

#[test]
fn an_unknown_sanitizer_is_the_compilers_error() {
    let error = objects(&Copy::new(), "colour").unwrap_err().to_string();
    assert!(error.contains("colour"), "{error}");
}
