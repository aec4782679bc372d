//! Tests the generator's command line.

use std::process::{Command, Output};

use crate::support::Copy;

/// Runs the program on the copy, in an environment without compilers.
fn run(copy: &Copy, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burrstone-codegen"));
    command.args(arguments).arg("--root").arg(copy.path("")).env("BURRSTONE_CUDA_COMPILER", "none");
    command.output().unwrap()
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn variants_are_listed_with_their_architectures() {
    let output = run(&Copy::new(), &["list", "scale"]);
    assert!(output.status.success());
    let lines = lines(&output.stdout);
    assert_eq!(lines.len(), 8);
    assert_eq!(lines[0], "scale__f32_v1_t128  sm_70 sm_75 sm_80 sm_86 sm_89 sm_90a  fallback");
    assert_eq!(lines[2], "scale__f32_v1_t64   sm_70 sm_75 sm_80 sm_86 sm_89 sm_90a");
    assert_eq!(lines[3], "scale__f32_v4_t64   sm_80 sm_86 sm_89 sm_90a");
}

#[test]
fn names_choose_kernels_and_variants() {
    let listed = |names: &[&str]| lines(&run(&Copy::new(), &[&["list"], names].concat()).stdout).len();
    assert_eq!(listed(&[]), 9);
    assert_eq!(listed(&["first_lane"]), 1);
    assert_eq!(listed(&["scale__f32_v4_t64", "first_lane"]), 2);
}

#[test]
fn what_is_pruned_is_printed_with_its_reason() {
    let output = run(&Copy::new(), &["pruned"]);
    let lines = lines(&output.stdout);
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], "scale__f32_v4_t64   sm_70 sm_75  wide loads are for newer ones");
}

#[test]
fn a_variant_is_printed_as_a_translation_unit() {
    let copy = Copy::new();
    let lines = lines(&run(&copy, &["unit", "scale__f32_v4_t64"]).stdout);
    assert_eq!(lines[1], "#include \"kernels/scale.cu\"");
    assert_eq!(lines.last().unwrap(), "BURRSTONE_KERNEL(scale, scale__f32_v4_t64, scale__f32_v4_t64_::variant)");
    assert_eq!(run(&copy, &["unit", "scale"]).status.code(), Some(1));
}

#[test]
fn kernels_for_the_simulator_can_be_loaded() {
    let copy = Copy::new();
    let file = copy.path("kernels.so");
    let output = run(&copy, &["simulator", "scale", "--out", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    /// An entry of the table in tests/tree/csrc/sim/kernels.h.
    #[repr(C)]
    struct Entry {
        name: *const std::ffi::c_char,
        run: *const std::ffi::c_void,
        shared_bytes: *const u32,
    }
    // SAFETY: the object of tests/tree has no initialisers, and its table has these types.
    let (name, bytes) = unsafe {
        let library = libloading::Library::new(&file).unwrap();
        let table = library.get::<extern "C" fn() -> *const Entry>(b"burrstone_sim_kernels").unwrap();
        let first = &*table();
        (std::ffi::CStr::from_ptr(first.name).to_str().unwrap().to_owned(), *first.shared_bytes)
    };
    assert_eq!((name.as_str(), bytes), ("scale__f32_v1_t128", 512));
}

#[test]
fn mistakes_are_one_line_and_fail() {
    let copy = Copy::new();
    let error = |arguments: &[&str]| {
        let output = run(&copy, arguments);
        assert_eq!(output.status.code(), Some(1));
        let lines = lines(&output.stderr);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    assert_eq!(
        error(&["list", "scal"]),
        "error: expected a kernel of scale, first_lane, or a variant of one, found \"scal\""
    );
    assert_eq!(error(&["report", "--archs", "all"]), "error: nothing can be compiled");
    copy.replace("codegen/specs/scale.toml", "arch >= 80", "arc >= 80");
    assert!(error(&["check"]).contains("scale.toml: rule 0: "));
}
