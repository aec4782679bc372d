//! Kernels and their compiled variants.

use crate::error::{Error, Result};

/// A kernel and all of its variants, best first.
#[derive(Debug)]
pub struct Kernel {
    pub name: &'static str,
    /// The fallbacks, which every GPU build has, come before the variants built only for tuning.
    pub variants: &'static [Variant],
}

/// One instance of a kernel's template.
#[derive(Debug)]
pub struct Variant {
    /// Its symbol, tuning value and bench label: `rms_norm__bf16_v8_t256`.
    pub name: &'static str,
    /// The values on the specification's axes, in the order of the name.
    pub values: &'static [(&'static str, Value)],
    /// Threads of a block.
    pub threads: u32,
    /// Architectures that can run it: 70 is sm_70.
    pub archs: &'static [u32],
    /// Whether every GPU build has it.
    pub fallback: bool,
    /// Bytes of dynamic shared memory of a block, from the specification.
    pub shared_bytes: u32,
    pub cubins: &'static [Cubin],
}

/// A variant's value on one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Int(u32),
    Text(&'static str),
}

/// Machine code for one architecture, and its resource usage.
#[derive(Debug)]
pub struct Cubin {
    pub arch: u32,
    pub image: &'static [u8],
    /// Bytes of dynamic shared memory of a block at launch.
    pub shared_bytes: u32,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: its stack and its spills.
    pub local_bytes: u32,
}

impl Kernel {
    /// The first variant that `arch` can run and whose axes have the values of `key`.
    ///
    /// # Errors
    /// There is none; the message names kernel, architecture and key.
    pub fn pick(&'static self, arch: u32, key: &[(&str, Value)]) -> Result<&'static Variant> {
        self.fitting(arch, key).next().ok_or_else(|| self.missing(arch, key))
    }

    /// The cheapest of the variants that every build has; the first one on a tie.
    ///
    /// # Errors
    /// As [`pick`](Self::pick).
    pub fn best(
        &'static self,
        arch: u32,
        key: &[(&str, Value)],
        cost: impl Fn(&'static Variant) -> f64,
    ) -> Result<&'static Variant> {
        let built = self.fitting(arch, key).filter(|variant| variant.fallback);
        let costs = built.map(|variant| (variant, cost(variant)));
        let best = costs.min_by(|(_, a), (_, b)| a.total_cmp(b));
        best.map(|(variant, _)| variant).ok_or_else(|| self.missing(arch, key))
    }

    /// The plans of those variants, cheapest first; ties in the variants' order.
    ///
    /// # Errors
    /// As [`pick`](Self::pick).
    pub fn ranked<T>(
        &'static self,
        arch: u32,
        key: &[(&str, Value)],
        plan: impl Fn(&'static Variant) -> T,
        cost: impl Fn(&T) -> f64,
    ) -> Result<Vec<T>> {
        let built = self.fitting(arch, key).filter(|variant| variant.fallback);
        let mut plans: Vec<T> = built.map(plan).collect();
        if plans.is_empty() {
            return Err(self.missing(arch, key));
        }
        plans.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
        Ok(plans)
    }

    fn fitting(&'static self, arch: u32, key: &[(&str, Value)]) -> impl Iterator<Item = &'static Variant> {
        self.variants.iter().filter(move |variant| {
            variant.archs.contains(&arch) && key.iter().all(|(axis, value)| variant.value(axis) == Some(*value))
        })
    }

    fn missing(&self, arch: u32, key: &[(&str, Value)]) -> Error {
        let key: Vec<String> = key.iter().map(|(axis, value)| format!("{axis} = {value}")).collect();
        let expected = format!("a variant for sm_{arch} with {}", key.join(", "));
        Error::operator(self.name, "variant", expected, "none in this build")
    }
}

impl Variant {
    /// The value on `axis`; `None` if the kernel has no such axis.
    pub fn value(&self, axis: &str) -> Option<Value> {
        self.values.iter().find(|(name, _)| *name == axis).map(|(_, value)| *value)
    }

    /// The value on a numeric axis; `None` if the kernel has no such axis.
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

/// Architectures that the build can compile for.
pub const ARCHS: [u32; 6] = [70, 75, 80, 86, 89, 90];

#[cfg(test)]
mod tests {
    use super::*;

    const fn variant(name: &'static str, values: &'static [(&'static str, Value)], fallback: bool) -> Variant {
        Variant { name, values, threads: 32, archs: &[80, 90], fallback, shared_bytes: 0, cubins: &[] }
    }

    static KERNEL: Kernel = Kernel {
        name: "k",
        variants: &[
            variant("narrow", &[("m", Value::Int(8))], true),
            variant("wide", &[("m", Value::Int(64))], true),
            variant("tall", &[("m", Value::Int(64))], true),
            variant("tuned", &[("m", Value::Int(1))], false),
        ],
    };

    #[test]
    fn a_missing_variant_is_named() {
        let expected = "operator k: variant: expected a variant for sm_70 with m = 8, found none in this build";
        let key = [("m", Value::Int(8))];
        assert_eq!(KERNEL.pick(70, &key).unwrap_err().to_string(), expected);
        assert_eq!(KERNEL.best(70, &key, |_| 0.0).unwrap_err().to_string(), expected);
    }

    #[test]
    fn the_cheapest_built_variant_is_best() {
        let best = |key: &[(&str, Value)], cost: fn(u32) -> f64| {
            KERNEL.best(80, key, |variant| cost(variant.int("m").unwrap())).unwrap().name
        };
        assert_eq!(best(&[], f64::from), "narrow");
        assert_eq!(best(&[], |m| -f64::from(m)), "wide");
        assert_eq!(best(&[("m", Value::Int(64))], f64::from), "wide");
        assert_eq!(KERNEL.pick(80, &[("m", Value::Int(64))]).unwrap().name, "wide");
    }
}
