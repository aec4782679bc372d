//! Which device the tests run on, and which variants `tests/gpu/run` asks them to leave out.

use std::sync::OnceLock;

use burrstone::device::Stream;

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

/// The first GPU: one stream for the whole process, as a CUDA context takes a good part of a second to make.
pub fn gpu() -> Stream {
    static GPU: OnceLock<Stream> = OnceLock::new();
    #[cfg(feature = "cuda")]
    let open = || Stream::cuda(0).unwrap_or_else(|error| panic!("{error}"));
    #[cfg(not(feature = "cuda"))]
    let open = || unreachable!("`on_a_gpu` is false in a build without the feature cuda");
    GPU.get_or_init(open).clone()
}

/// Whether a GPU is not to run `variant`: `BURRSTONE_TEST_WITHOUT`, a list with commas, names variants that an earlier try
/// ended with.
pub fn is_left_out(variant: &str) -> bool {
    let without = std::env::var("BURRSTONE_TEST_WITHOUT").unwrap_or_default();
    without.split(',').any(|name| name == variant)
}

/// Says on stderr which variant a GPU is about to run: where the process hangs or dies, the last such line names it.
pub fn announce(variant: &str) {
    if on_a_gpu() {
        eprintln!("variant: {variant}");
    }
}
