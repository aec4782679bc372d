//! What the build makes of a kernel: its variants, compiled.

use crate::error::{Error, Result};

/// A kernel and all of its variants, best first.
#[derive(Debug)]
pub struct Kernel {
    pub name: &'static str,
    /// The fallbacks, which every build for a GPU has, come before variants that are only built for tuning.
    pub variants: &'static [Variant],
}

/// One instance of a kernel's template.
#[derive(Debug)]
pub struct Variant {
    /// Symbol, tuning value and bench label: `rms_norm__bf16_v8_t256`.
    pub name: &'static str,
    /// The axes of the kernel's specification, in the order of the name.
    pub values: &'static [(&'static str, Value)],
    /// Threads of a block.
    pub threads: u32,
    /// Architectures that may run it: 70 is sm_70.
    pub archs: &'static [u32],
    /// The one of its kind that is always built.
    pub fallback: bool,
    pub cubins: &'static [Cubin],
    /// `None` where the build had no C++ compiler, or not the feature `sim`.
    pub sim: Option<SimEntry>,
}

/// A variant's value on one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Int(u32),
    Text(&'static str),
}

/// Machine code for one architecture, and what it takes.
#[derive(Debug)]
pub struct Cubin {
    pub arch: u32,
    pub image: &'static [u8],
    /// Bytes of dynamic shared memory that a block is launched with.
    pub shared_bytes: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: its stack and its spills.
    pub local_bytes: u32,
}

/// A variant compiled as C++ for the simulator.
#[derive(Clone, Copy, Debug)]
pub struct SimEntry {
    /// Runs one thread: called on a fiber of the simulator with the argument struct and the block's shared memory.
    pub run: unsafe extern "C" fn(args: *const std::ffi::c_void, shared: *mut std::ffi::c_void),
    pub shared_bytes: &'static u32,
}

impl Kernel {
    /// The best variant that `arch` can run and whose axes have the values of `key`.
    ///
    /// # Errors
    /// There is none: the message names kernel, architecture and key.
    pub fn pick(&'static self, arch: u32, key: &[(&str, Value)]) -> Result<&'static Variant> {
        let fits =
            |v: &&Variant| v.archs.contains(&arch) && key.iter().all(|(axis, value)| v.value(axis) == Some(*value));
        self.variants.iter().find(fits).ok_or_else(|| {
            let key: Vec<String> = key.iter().map(|(axis, value)| format!("{axis} = {value}")).collect();
            let expected = format!("a variant for sm_{arch} with {}", key.join(", "));
            Error::operator(self.name, "variant", expected, "none in this build")
        })
    }
}

impl Variant {
    /// Its value on `axis`; `None` where the kernel has no such axis.
    pub fn value(&self, axis: &str) -> Option<Value> {
        self.values.iter().find(|(name, _)| *name == axis).map(|(_, value)| *value)
    }

    /// Its value on an axis of numbers; `None` where the kernel has no such axis.
    pub fn int(&self, axis: &str) -> Option<u32> {
        match self.value(axis)? {
            Value::Int(value) => Some(value),
            Value::Text(_) => None,
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

/// Architectures that code is made for.
pub const ARCHS: [u32; 6] = [70, 75, 80, 86, 89, 90];

#[cfg(test)]
mod tests {
    use super::*;

    static KERNEL: Kernel = Kernel { name: "k", variants: &[] };

    #[test]
    fn a_missing_variant_is_named() {
        let error = KERNEL.pick(70, &[("dtype", Value::Text("bf16"))]).unwrap_err().to_string();
        assert_eq!(
            error,
            "operator k: variant: expected a variant for sm_70 with dtype = bf16, found none in this build"
        );
    }
}
