//! Renders the specifications' problems as Rust.

use std::fmt::Write;

use crate::expand::Kernel;
use crate::spec::{Role, Spec, Value};

/// A module for each kernel, with a `Problem` struct and the table `PROBLEMS`.
pub fn problems(kernels: &[Kernel]) -> String {
    let mut out = String::from("// Generated from codegen/specs by burrstone-codegen.\n");
    let own = |spec: &&Spec| spec.role == Role::Kernel && !spec.problems.is_empty();
    for spec in kernels.iter().map(|kernel| &kernel.spec).filter(own) {
        // Writing to a String cannot fail.
        let _ = module(&mut out, spec);
    }
    out
}

fn module(out: &mut String, spec: &Spec) -> std::fmt::Result {
    writeln!(out, "\n/// {}\npub mod {} {{", spec.summary, spec.name)?;
    writeln!(out, "    #[derive(Clone, Copy, Debug)]\n    pub struct Problem {{")?;
    for (field, value) in &spec.problems[0] {
        let kind = match value {
            Value::Int(_) => "usize",
            Value::Text(_) => "&'static str",
        };
        writeln!(out, "        pub {field}: {kind},")?;
    }
    writeln!(out, "    }}\n\n    pub const PROBLEMS: &[Problem] = &[")?;
    for problem in &spec.problems {
        write!(out, "        Problem {{")?;
        for (field, value) in problem {
            match value {
                Value::Int(size) => write!(out, " {field}: {size},")?,
                Value::Text(text) => write!(out, " {field}: {text:?},")?,
            }
        }
        writeln!(out, " }},")?;
    }
    writeln!(out, "    ];\n}}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    #[test]
    fn a_module_holds_its_problems() {
        let spec = "summary = 'Multiplies.'\n[[problem]]\nlabel = 'a \"b\"'\nn = 7\n";
        let kernel = Kernel::expand(parse("matmul", Role::Kernel, spec).unwrap()).unwrap();
        let text = problems(&[kernel]);
        assert!(text.contains("/// Multiplies.\npub mod matmul {"));
        assert!(text.contains("pub n: usize,"));
        assert!(text.contains(r#"Problem { label: "a \"b\"", n: 7, },"#));
    }
}
