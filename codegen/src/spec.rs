//! Reading and checking `specs/<kernel>.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// One kernel's specification.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The kernel's name: the file's stem.
    #[serde(skip)]
    pub name: String,
    /// What it computes, in one sentence.
    pub summary: String,
    /// Shapes to test and to measure; all problems of a kernel have the same fields.
    #[serde(rename = "problem")]
    pub problems: Vec<BTreeMap<String, Value>>,
}

/// A field of a problem.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Value {
    Size(usize),
    Text(String),
}

/// All specifications of a folder, by name.
///
/// # Errors
/// A file cannot be read, is not a specification, or contradicts itself.
pub fn read_all(folder: &Path) -> Result<Vec<Spec>, Error> {
    let at = |file: &Path| {
        let file = file.to_owned();
        move |e: std::io::Error| Error { file, reason: e.to_string() }
    };
    let mut specs = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(at(folder))? {
        let path = entry.map_err(at(folder))?.path();
        let Some(name) =
            path.file_stem().and_then(|s| s.to_str()).filter(|_| path.extension() == Some("toml".as_ref()))
        else {
            return Err(Error { file: path, reason: "expected a file named <kernel>.toml".to_owned() });
        };
        let text = std::fs::read_to_string(&path).map_err(at(&path))?;
        specs.push(parse(name, &text).map_err(|reason| Error { file: path.clone(), reason })?);
    }
    specs.sort_by(|a: &Spec, b: &Spec| a.name.cmp(&b.name));
    Ok(specs)
}

fn parse(name: &str, text: &str) -> Result<Spec, String> {
    let mut spec: Spec = toml::from_str(text).map_err(|e| e.to_string())?;
    spec.name = name.to_owned();
    let fields = |problem: &BTreeMap<String, Value>| problem.keys().cloned().collect::<Vec<_>>();
    let first = spec.problems.first().ok_or("expected at least one [[problem]]")?;
    for (index, problem) in spec.problems.iter().enumerate() {
        if fields(problem) != fields(first) {
            return Err(format!(
                "problem {index}: expected the fields {:?}, found {:?}",
                fields(first),
                fields(problem)
            ));
        }
        for (field, value) in problem {
            if std::mem::discriminant(value) != std::mem::discriminant(&first[field]) {
                return Err(format!("problem {index}: {field}: expected one type in all problems"));
            }
        }
        if !matches!(problem.get("label"), Some(Value::Text(_))) {
            return Err(format!("problem {index}: expected a label"));
        }
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "summary = 's'\n[[problem]]\nlabel = 'a'\nn = 1\n";

    #[test]
    fn a_good_one_is_read() {
        let spec = parse("matmul", GOOD).unwrap();
        assert_eq!(spec.name, "matmul");
        assert_eq!(spec.problems[0]["n"], Value::Size(1));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("summary = 's'\nproblem = []\n".to_owned(), "at least one"),
            (format!("{GOOD}[[problem]]\nlabel = 'b'\n"), "problem 1: expected the fields"),
            (format!("{GOOD}[[problem]]\nlabel = 'b'\nn = 'x'\n"), "problem 1: n: expected one type"),
            (GOOD.replace("label", "labels"), "problem 0: expected a label"),
            (format!("colour = 1\n{GOOD}"), "unknown field"),
            (GOOD.replace("n = 1", "n = -1"), "did not match"),
        ];
        for (text, expected) in cases {
            let error = parse("matmul", &text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
