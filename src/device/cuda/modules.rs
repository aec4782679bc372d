//! Kernels on the device: a variant is loaded at its first launch.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::explain;
use crate::device::variant::Variant;

/// Dynamic shared memory that a block may use without opting in.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function {
    pub handle: sys::CUfunction,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

// SAFETY: a driver handle, which any thread may use.
unsafe impl Send for Function {}

/// The loaded variants by name. They are never unloaded, because a graph may contain any of them.
#[derive(Default)]
pub(super) struct Modules(Mutex<HashMap<&'static str, Function>>);

impl Modules {
    /// The variant's function, in the current context.
    pub fn function(&self, variant: &'static Variant, arch: u32) -> Result<Function, String> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.get(variant.name) {
            return Ok(*function);
        }
        let function = load(variant, arch)?;
        loaded.insert(variant.name, function);
        Ok(function)
    }
}

fn load(variant: &'static Variant, arch: u32) -> Result<Function, String> {
    let cubin = variant.cubins.iter().find(|cubin| cubin.arch == arch).ok_or_else(|| {
        let built: Vec<String> = variant.cubins.iter().map(|cubin| format!("sm_{}", cubin.arch)).collect();
        let built = if built.is_empty() { "no CUDA compiler was found".to_owned() } else { built.join(", ") };
        format!("this build has no code for sm_{arch} ({built}); build with BURRSTONE_CUDA_ARCHS={arch} or all")
    })?;
    let name = CString::new(variant.name).map_err(|e| e.to_string())?;
    // SAFETY: the image is a whole cubin, compiled and parsed by the build; the module is never unloaded.
    unsafe {
        let module = result::module::load_data(cubin.image.as_ptr().cast()).map_err(explain)?;
        let handle = result::module::get_function(module, name).map_err(explain)?;
        if cubin.shared_bytes > SHARED_WITHOUT_ASKING {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(cubin.shared_bytes).map_err(|e| e.to_string())?;
            result::function::set_function_attribute(handle, attribute, bytes).map_err(explain)?;
        }
        Ok(Function { handle, shared_bytes: cubin.shared_bytes })
    }
}
