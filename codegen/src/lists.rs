//! The lists of kernels in hand-written files: Rust needs a `mod` line for every module, and the benches need a call.
//!
//! A list is between two marked lines. It is generated in place, so that the files stay plain Rust for rustfmt and
//! editors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::expand::Kernel;
use crate::spec::Role;
use crate::{Error, Tree};

/// The marks around a list of modules.
const MODULES: [&str; 2] = ["// Kernels, by `burrstone-codegen lists`:", "// End of kernels."];
/// The marks around a list of benches.
const BENCHES: [&str; 2] = ["// Benches, by `burrstone-codegen lists`:", "// End of benches."];

/// A file with a list of kernels.
struct List {
    file: &'static str,
    marks: [&'static str; 2],
    names: Names,
    /// The lines for each name; `NAME` is replaced.
    lines: &'static str,
}

/// The names in a list.
enum Names {
    /// All specifications.
    All,
    /// Those with device code.
    OnDevices,
    /// Operations, which several kernels may implement.
    Ops,
}

const LISTS: [List; 6] = [
    List { file: "src/cpu/mod.rs", marks: MODULES, names: Names::Ops, lines: "mod NAME;\n" },
    List { file: "src/kernels/mod.rs", marks: MODULES, names: Names::OnDevices, lines: "mod NAME;\n" },
    List {
        file: "tests/kernels.rs",
        marks: MODULES,
        names: Names::All,
        lines: "#[path = \"kernels/NAME.rs\"]\nmod NAME;\n",
    },
    List { file: "tests/reference/mod.rs", marks: MODULES, names: Names::Ops, lines: "pub mod NAME;\n" },
    List {
        file: "benches/kernels.rs",
        marks: MODULES,
        names: Names::Ops,
        lines: "#[path = \"kernels/NAME.rs\"]\nmod NAME;\n",
    },
    List { file: "benches/kernels.rs", marks: BENCHES, names: Names::Ops, lines: "        (\"NAME\", NAME::bench),\n" },
];

impl Names {
    fn of(&self, kernels: &[Kernel]) -> BTreeSet<String> {
        let specs = kernels.iter().map(|kernel| &kernel.spec).filter(|spec| spec.role == Role::Kernel);
        match self {
            Self::All => specs.map(|spec| spec.name.clone()).collect(),
            Self::OnDevices => specs.filter(|spec| !spec.axes.is_empty()).map(|spec| spec.name.clone()).collect(),
            Self::Ops => specs.map(|spec| spec.op.clone().unwrap_or_else(|| spec.name.clone())).collect(),
        }
    }
}

/// The files with lists, and their expected texts.
///
/// # Errors
/// A file cannot be read, or has no list.
pub fn lists(tree: &Tree, kernels: &[Kernel]) -> Result<BTreeMap<PathBuf, String>, Error> {
    let mut texts = BTreeMap::new();
    for List { file, marks: [begin, end], names, lines } in &LISTS {
        let file = tree.root().join(file);
        let text = match texts.remove(&file) {
            Some(text) => text,
            None => std::fs::read_to_string(&file).map_err(Error::io(&file))?,
        };
        let lines: String = names.of(kernels).iter().map(|name| lines.replace("NAME", name)).collect();
        let text = replaced(&text, [begin, end], &lines)
            .ok_or_else(|| Error::new(&file, format!("expected a line {begin:?} and, after it, a line {end:?}")))?;
        texts.insert(file, text);
    }
    Ok(texts)
}

/// Replaces the lines between the two marks.
fn replaced(text: &str, [begin, end]: [&str; 2], lines: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    let indent = before.rsplit('\n').next()?;
    Some(format!("{before}{begin}\n{lines}{indent}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_between_the_marks_change() {
        let [begin, end] = MODULES;
        let text = format!("mod a;\n\n    {begin}\nmod old;\nmod older;\n    {end}\n\nmod z;\n");
        let expected = format!("mod a;\n\n    {begin}\nmod new;\n    {end}\n\nmod z;\n");
        assert_eq!(replaced(&text, MODULES, "mod new;\n").unwrap(), expected);
        assert_eq!(replaced("mod a;\n", MODULES, "mod new;\n"), None);
        assert_eq!(replaced(begin, MODULES, "mod new;\n"), None);
    }

    #[test]
    fn the_repositorys_lists_are_up_to_date() {
        let tree = Tree::at(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
        for (file, text) in lists(&tree, &tree.kernels().unwrap()).unwrap() {
            let found = std::fs::read_to_string(&file).unwrap();
            assert_eq!(found, text, "{}: run `cargo run -p burrstone-codegen -- lists`", file.display());
        }
    }
}
