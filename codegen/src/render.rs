//! Specifications as Rust source.

use std::fmt::Write;

use crate::spec::{Spec, Value};

/// One module a kernel, with a `Problem` struct and the table `PROBLEMS`.
pub fn problems(specs: &[Spec]) -> String {
    let mut out = String::from("// Generated from codegen/specs by burrstone-codegen.\n");
    for spec in specs {
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
            Value::Size(_) => "usize",
            Value::Text(_) => "&'static str",
        };
        writeln!(out, "        pub {field}: {kind},")?;
    }
    writeln!(out, "    }}\n\n    pub const PROBLEMS: &[Problem] = &[")?;
    for problem in &spec.problems {
        write!(out, "        Problem {{")?;
        for (field, value) in problem {
            match value {
                Value::Size(size) => write!(out, " {field}: {size},")?,
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

    #[test]
    fn a_module_holds_its_problems() {
        let field = |name: &str, value| (name.to_owned(), value);
        let problem = [field("label", Value::Text("a \"b\"".to_owned())), field("n", Value::Size(7))].into();
        let spec = Spec { name: "matmul".to_owned(), summary: "Multiplies.".to_owned(), problems: vec![problem] };
        let text = problems(&[spec]);
        assert!(text.contains("/// Multiplies.\npub mod matmul {"));
        assert!(text.contains("pub n: usize,"));
        assert!(text.contains(r#"Problem { label: "a \"b\"", n: 7, },"#));
    }
}
