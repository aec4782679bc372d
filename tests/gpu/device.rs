//! Selects the device of the tests, and the variants that `tests/gpu/run` leaves out.

use std::sync::OnceLock;

use burrstone::device::Stream;

/// Whether `BURRSTONE_TEST_DEVICE` selects the first GPU instead of the simulator.
pub fn on_a_gpu() -> bool {
    match std::env::var("BURRSTONE_TEST_DEVICE").as_deref() {
        Err(_) | Ok("sim") => false,
        Ok("cuda") if cfg!(feature = "cuda") => true,
        Ok(other) => {
            panic!("BURRSTONE_TEST_DEVICE: expected sim, or cuda in a build with that feature, found {other:?}")
        }
    }
}

/// The first GPU: one stream for the whole process, as creating a CUDA context takes most of a second.
pub fn gpu() -> Stream {
    static GPU: OnceLock<Stream> = OnceLock::new();
    #[cfg(feature = "cuda")]
    let open = || Stream::cuda(0).unwrap_or_else(|error| panic!("{error}"));
    #[cfg(not(feature = "cuda"))]
    let open = || unreachable!("`on_a_gpu` is false in a build without the feature cuda");
    GPU.get_or_init(open).clone()
}

/// Whether `BURRSTONE_TEST_WITHOUT`, a comma-separated list, names `variant`: an earlier try failed, hung or crashed in
/// it.
pub fn is_left_out(variant: &str) -> bool {
    let without = std::env::var("BURRSTONE_TEST_WITHOUT").unwrap_or_default();
    without.split(',').any(|name| name == variant)
}

/// Prints to stderr which variant a GPU is about to run. If the process hangs or dies, the last such line names it.
pub fn announce(variant: &str) {
    if on_a_gpu() {
        eprintln!("variant: {variant}");
    }
}
