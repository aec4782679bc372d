//! Variants as C++: a template's name, and the struct that it is instantiated with.
//!
//! The same text is compiled for a GPU, one variant a translation unit, and for the simulator, one kernel a unit.

use crate::expand::{Kernel, Variant};
use crate::spec::{Role, Value};

/// The folder of `csrc` that a kernel's template is in.
pub fn room(role: Role) -> &'static str {
    match role {
        Role::Kernel => "kernels",
        Role::Probe => "probes",
    }
}

/// The translation unit of one variant.
pub fn unit(kernel: &Kernel, variant: &Variant) -> String {
    header(kernel) + &instance(kernel, variant)
}

/// The translation unit of all variants of a kernel.
pub fn whole(kernel: &Kernel) -> String {
    kernel.variants.iter().fold(header(kernel), |text, variant| text + &instance(kernel, variant))
}

fn header(kernel: &Kernel) -> String {
    let name = &kernel.spec.name;
    let (specs, room) = match kernel.spec.role {
        Role::Kernel => ("specs", room(Role::Kernel)),
        Role::Probe => ("probes", room(Role::Probe)),
    };
    format!("// Generated from codegen/{specs}/{name}.toml.\n#include \"{room}/{name}.cu\"\n")
}

fn instance(kernel: &Kernel, variant: &Variant) -> String {
    let member = |(axis, value): &(String, Value)| match value {
        Value::Int(number) => format!("    static constexpr int {axis} = {number};\n"),
        Value::Text(text) => format!("    using {axis} = burrstone::{text};\n"),
    };
    let members: String = variant.values.iter().map(member).collect();
    let (kernel, name) = (&kernel.spec.name, &variant.name);
    format!(
        "\nnamespace {name}_ {{\nstruct variant {{\n{members}}};\n}}\nBURRSTONE_KERNEL({kernel}, {name}, {name}_::variant)\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    #[test]
    fn a_variant_is_a_struct_and_a_line() {
        let spec = "summary = 's'\n[fallback]\nthreads = 32\n[[axis]]\nname = 'dtype'\nkey = true\nvalues = ['f16']\n\
                    [[axis]]\nname = 'threads'\ntag = 't'\nvalues = [32, 64]\n";
        let kernel = Kernel::expand(parse("norm", Role::Probe, spec).unwrap()).unwrap();
        let expected = "// Generated from codegen/probes/norm.toml.\n#include \"probes/norm.cu\"\n\n\
                        namespace norm__f16_t32_ {\nstruct variant {\n    using dtype = burrstone::f16;\n    \
                        static constexpr int threads = 32;\n};\n}\n\
                        BURRSTONE_KERNEL(norm, norm__f16_t32, norm__f16_t32_::variant)\n";
        assert_eq!(unit(&kernel, &kernel.variants[0]), expected);
        let both = whole(&kernel);
        assert!(both.starts_with(expected));
        assert_eq!(both.matches("#include").count(), 1);
        assert!(both.ends_with("BURRSTONE_KERNEL(norm, norm__f16_t64, norm__f16_t64_::variant)\n"));
    }
}
