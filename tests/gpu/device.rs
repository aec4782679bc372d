//! Which device the tests run on, and which variants `tests/gpu/run` asks them to leave out.

/// Whether `BURRSTONE_TEST_DEVICE` asks for the first GPU. Without it, kernels run on the simulator.
pub fn on_a_gpu() -> bool {
    match std::env::var("BURRSTONE_TEST_DEVICE").as_deref() {
        Err(_) | Ok("sim") => false,
        Ok("cuda") if cfg!(feature = "cuda") => true,
        Ok(other) => {
            panic!("BURRSTONE_TEST_DEVICE: expected sim, or cuda in a build with that feature, found {other:?}")
        }
    }
}

/// Whether a GPU is to run `variant`, which is then named on stderr: where the process hangs or dies, that line says which
/// variant was running. `BURRSTONE_TEST_WITHOUT`, a list with commas, names variants that an earlier try ended with.
pub fn is_tried(variant: &str) -> bool {
    let without = std::env::var("BURRSTONE_TEST_WITHOUT").unwrap_or_default();
    let tried = !without.split(',').any(|name| name == variant);
    if tried {
        eprintln!("variant: {variant}");
    }
    tried
}

/// The first GPU.
pub fn gpu() -> burrstone::device::Stream {
    #[cfg(feature = "cuda")]
    return burrstone::device::Stream::cuda(0).unwrap_or_else(|error| panic!("{error}"));
    #[cfg(not(feature = "cuda"))]
    unreachable!("`on_a_gpu` is false in a build without the feature cuda");
}
