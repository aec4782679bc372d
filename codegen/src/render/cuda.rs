//! Variants as C++: a template's name, and the struct that instantiates it.
//!
//! The same text is compiled for a GPU, one variant per translation unit, and for the simulator, several per unit.

use crate::expand::{Kernel, Variant};
use crate::spec::{Role, Value};

/// The folder in `csrc` of a kernel's template.
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

/// Variants in a translation unit for the simulator: enough that parsing the headers costs little, and few enough that
/// a kernel's units keep all cores busy.
const TOGETHER: usize = 16;

/// Translation units of all variants of a kernel.
pub fn units(kernel: &Kernel) -> impl Iterator<Item = String> {
    kernel
        .variants
        .chunks(TOGETHER)
        .map(|variants| variants.iter().fold(header(kernel), |text, variant| text + &instance(kernel, variant)))
}

/// The translation unit with the table of all variants, from which the simulator gets them.
pub fn table(kernels: &[Kernel]) -> String {
    let names =
        kernels.iter().flat_map(|kernel| &kernel.variants).map(|variant| format!(" \\\n    kernel({})", variant.name));
    let names: String = names.collect();
    format!("#define BURRSTONE_SIM_KERNELS(kernel){names}\n#include \"sim/kernels.h\"\n")
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
        let [both] = &units(&kernel).collect::<Vec<_>>()[..] else { panic!("one unit") };
        assert!(both.starts_with(expected));
        assert_eq!(both.matches("#include").count(), 1);
        assert!(both.ends_with("BURRSTONE_KERNEL(norm, norm__f16_t64, norm__f16_t64_::variant)\n"));
        let table = "#define BURRSTONE_SIM_KERNELS(kernel) \\\n    kernel(norm__f16_t32) \\\n    kernel(norm__f16_t64)\n\
                     #include \"sim/kernels.h\"\n";
        assert_eq!(super::table(&[kernel]), table);
    }

    #[test]
    fn many_variants_are_several_units() {
        let values: Vec<String> = (1..=40).map(|i| (32 * i).to_string()).collect();
        let spec = format!(
            "summary = 's'\n[fallback]\nn = 32\nthreads = 32\n[[axis]]\nname = 'n'\ntag = 'n'\nvalues = [{}]\n[[axis]]\nname = 'threads'\ntag = 't'\n\
             values = [32]\n",
            values.join(", ")
        );
        let kernel = Kernel::expand(parse("norm", Role::Probe, &spec).unwrap()).unwrap();
        let units: Vec<String> = units(&kernel).collect();
        let of = |unit: &String| unit.matches("BURRSTONE_KERNEL").count();
        assert_eq!(units.iter().map(of).collect::<Vec<_>>(), [16, 16, 8]);
        assert!(units.iter().all(|unit| unit.matches("#include").count() == 1));
    }
}
