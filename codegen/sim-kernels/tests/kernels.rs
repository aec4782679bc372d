//! Compares the compiled kernels with their specifications.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use burrstone_codegen::{Role, Tree};

/// `burrstone_sim_kernel` of csrc/sim/kernels.h.
#[repr(C)]
struct Kernel {
    name: *const c_char,
    run: *const c_void,
    shared_bytes: *const u32,
}

/// The number of pointers in `burrstone_sim_hooks` of csrc/sim/runtime.h.
const HOOKS: usize = 32;

/// Bytes of shared memory of a block, by variant.
fn compiled() -> BTreeMap<String, u32> {
    let kernels = burrstone_sim_kernels::LINKED.expect("this test needs a C++ compiler");
    let hooks = [std::ptr::null::<c_void>(); HOOKS];
    // SAFETY: no kernel runs, so no hook is called. The list ends with an entry without a name.
    unsafe {
        let mut kernel = kernels(hooks.as_ptr().cast(), size_of_val(&hooks) as u64).cast::<Kernel>();
        assert!(!kernel.is_null(), "runtime.h has another number of hooks");
        let mut found = BTreeMap::new();
        while !(*kernel).name.is_null() {
            assert!(!(*kernel).run.is_null());
            let name = CStr::from_ptr((*kernel).name).to_str().unwrap();
            found.insert(name.to_owned(), *(*kernel).shared_bytes);
            kernel = kernel.add(1);
        }
        found
    }
}

/// The cost model uses the specification's shared memory, also in programs without these kernels.
#[test]
fn every_variant_is_compiled_with_the_shared_memory_of_its_specification() {
    let compiled = compiled();
    let kernels = Tree::own().kernels().unwrap();
    let mut variants = 0;
    for (kernel, variant) in kernels.iter().flat_map(|kernel| kernel.pairs()) {
        let bytes = compiled.get(&variant.name).unwrap_or_else(|| panic!("{} is missing", variant.name));
        if kernel.spec.role == Role::Kernel {
            assert_eq!(variant.shared_bytes, *bytes, "[[shared]] of {}: {}", kernel.spec.file.display(), variant.name);
        }
        variants += 1;
    }
    assert_eq!(compiled.len(), variants);
}

#[test]
fn another_simulator_gets_no_kernels() {
    let kernels = burrstone_sim_kernels::LINKED.expect("this test needs a C++ compiler");
    let hooks = [std::ptr::null::<c_void>(); HOOKS - 1];
    // SAFETY: the table is refused for its size.
    assert!(unsafe { kernels(hooks.as_ptr().cast(), size_of_val(&hooks) as u64) }.is_null());
}

#[test]
fn the_shared_object_exists() {
    assert!(std::path::Path::new(burrstone_sim_kernels::FILE.expect("this test needs a C++ compiler")).is_file());
}
