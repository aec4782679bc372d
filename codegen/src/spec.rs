//! Reads and checks `specs/<kernel>.toml` and `probes/<probe>.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Error;
use crate::sass::{is_operation, is_tensor_operation};

/// One kernel's specification.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The kernel's name: the file's stem.
    #[serde(skip)]
    pub name: String,
    /// The file of the specification.
    #[serde(skip)]
    pub file: PathBuf,
    /// Whether it is a kernel or a probe.
    #[serde(skip)]
    pub role: Role,
    /// What it computes, in one sentence.
    pub summary: String,
    /// The operation that several kernels implement: its name is that of the CPU implementation, the oracle and the
    /// bench, and of the specification whose problems this kernel shares. Default: the kernel's own name.
    pub op: Option<String>,
    /// Shapes to test and to measure. All problems of a kernel have the same fields.
    #[serde(rename = "problem", default)]
    pub problems: Vec<BTreeMap<String, Value>>,
    /// The properties in which variants differ, in the order of their names. Empty while a kernel has no device code.
    #[serde(rename = "axis", default)]
    pub axes: Vec<Axis>,
    /// Conditions for legal variants.
    #[serde(rename = "rule", default)]
    pub rules: Vec<Rule>,
    /// One or more values for each axis that is not a key: these variants are always built, and run where nothing is
    /// tuned.
    #[serde(default)]
    pub fallback: BTreeMap<String, Choice>,
    #[serde(default)]
    pub gate: Gate,
    /// Shared memory of blocks, for the cost model; 0 for variants without an entry.
    #[serde(default)]
    pub shared: Vec<SharedMemory>,
    /// Instructions that machine code must or must not have.
    #[serde(rename = "sass", default)]
    pub facts: Vec<Fact>,
    /// Ideal main loops.
    #[serde(rename = "loop", default)]
    pub loops: Vec<Loop>,
}

/// Kernels are for the engine; probes exercise one primitive of `csrc/common` in the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Kernel,
    Probe,
}

/// A field of a problem, or a value of an axis.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Value {
    Int(u32),
    Text(String),
}

/// A fallback's value or values on an axis.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Choice {
    One(Value),
    Several(Vec<Value>),
}

impl Choice {
    /// The values.
    pub fn values(&self) -> &[Value] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Several(values) => values,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A property in which variants differ.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// The member of the template's `variant`: a type if the values are texts, else a constant.
    pub name: String,
    /// The prefix of the value in a variant's name; numbers need one.
    #[serde(default)]
    pub tag: String,
    /// Determined by the problem, not by tuning.
    #[serde(default)]
    pub key: bool,
    pub values: Vec<Value>,
}

/// A condition for legal variants.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A minijinja expression over the axes and `arch`.
    pub legal: String,
    /// The reason, shown where it does not hold.
    pub why: String,
}

/// The instructions of a warp in one iteration of the main loop, without overhead.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    /// The variants it applies to: a minijinja expression over the axes and `arch`.
    #[serde(rename = "where")]
    pub of: String,
    /// The count of each operation, by nvdisasm's name: minijinja expressions over the axes and `arch`. The tensor core
    /// instructions of the products, and the instructions that load the operands.
    pub ideal: BTreeMap<String, String>,
}

/// The shared memory of a block: the size of the template's struct.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SharedMemory {
    /// The variants it applies to: a minijinja expression over the axes.
    #[serde(rename = "where")]
    pub of: String,
    /// A minijinja expression over the axes.
    pub bytes: String,
}

/// Instructions that variants must or must not have.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// The variants it applies to: a minijinja expression over the axes and `arch`.
    #[serde(rename = "where")]
    pub of: String,
    /// Operations, by nvdisasm's names.
    #[serde(default)]
    pub has: Vec<String>,
    #[serde(default)]
    pub lacks: Vec<String>,
}

/// Limits on a compiled variant's resources.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// Registers per thread.
    pub registers: Option<u32>,
    /// Shared memory per block, in bytes.
    pub shared_bytes: Option<u32>,
    /// Local memory per thread, in bytes: spilled registers, and arrays indexed at run time.
    #[serde(default)]
    pub local_bytes: u32,
}

/// All specifications in a folder, by name. The folder of probes may be missing.
///
/// # Errors
/// A file cannot be read, is not a specification, or is inconsistent.
pub fn read_all(folder: &Path, role: Role) -> Result<Vec<Spec>, Error> {
    let mut specs = Vec::new();
    if role == Role::Probe && !folder.exists() {
        return Ok(specs);
    }
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let Some(name) =
            path.file_stem().and_then(|s| s.to_str()).filter(|_| path.extension() == Some("toml".as_ref()))
        else {
            return Err(Error::new(&path, "expected a file named <kernel>.toml"));
        };
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut spec = parse(name, role, &text).map_err(|reason| Error::new(&path, reason))?;
        spec.file = path;
        specs.push(spec);
    }
    specs.sort_by(|a: &Spec, b: &Spec| a.name.cmp(&b.name));
    Ok(specs)
}

pub(crate) fn parse(name: &str, role: Role, text: &str) -> Result<Spec, String> {
    if !is_identifier(name) {
        return Err(format!("expected a name of lower-case letters, digits and underscores, found {name:?}"));
    }
    let mut spec: Spec = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        format!("line {line}: {}", e.message().replace('\n', " "))
    })?;
    spec.name = name.to_owned();
    spec.role = role;
    check_problems(&spec)?;
    check_axes(&spec)?;
    check_fallback(&spec)?;
    Ok(spec)
}

/// Whether a name is valid in C++ and Rust and has no `__`, which separates the kernel from the values.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !text.contains("__")
        && !text.ends_with('_')
}

fn check_problems(spec: &Spec) -> Result<(), String> {
    let fields = |problem: &BTreeMap<String, Value>| problem.keys().cloned().collect::<Vec<_>>();
    let Some(first) = spec.problems.first() else {
        return if spec.role == Role::Probe || spec.op.is_some() {
            Ok(())
        } else {
            Err("expected at least one [[problem]]".to_owned())
        };
    };
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
    Ok(())
}

fn check_axes(spec: &Spec) -> Result<(), String> {
    if spec.axes.is_empty() {
        let nothing = spec.rules.is_empty() && spec.fallback.is_empty();
        let nothing = nothing && spec.facts.is_empty() && spec.loops.is_empty() && spec.shared.is_empty();
        return if nothing && spec.gate == Gate::default() {
            Ok(())
        } else {
            Err("expected an [[axis]] where there are rules, a fallback or a gate".to_owned())
        };
    }
    let mut names = BTreeSet::new();
    for axis in &spec.axes {
        let name = &axis.name;
        if !is_identifier(name) || name == "arch" {
            return Err(format!("axis {name:?}: expected an identifier other than arch"));
        }
        if !names.insert(name) {
            return Err(format!("axis {name}: expected once, found twice"));
        }
        let first = axis.values.first().ok_or_else(|| format!("axis {name}: expected values, found none"))?;
        for (index, value) in axis.values.iter().enumerate() {
            if std::mem::discriminant(value) != std::mem::discriminant(first) {
                return Err(format!("axis {name}: expected values of one type, found {value}"));
            }
            if axis.values[..index].contains(value) {
                return Err(format!("axis {name}: expected {value} once, found it twice"));
            }
            if matches!(value, Value::Text(text) if !is_identifier(text)) {
                return Err(format!("axis {name}: expected the names of types, found {value:?}"));
            }
        }
        if axis.tag.is_empty() && matches!(first, Value::Int(_)) {
            return Err(format!("axis {name}: expected a tag, for its values are numbers"));
        }
        if !axis.tag.is_empty() && !is_identifier(&axis.tag) {
            return Err(format!("axis {name}: tag: expected lower-case letters, found {:?}", axis.tag));
        }
    }
    if let Some(name) = spec.facts.iter().flat_map(|fact| fact.has.iter().chain(&fact.lacks)).find(|n| !is_operation(n))
    {
        return Err(format!("sass: expected an operation that codegen/src/sass.rs knows, found {name}"));
    }
    for (index, pass) in spec.loops.iter().enumerate() {
        if let Some(name) = pass.ideal.keys().find(|name| !is_operation(name)) {
            return Err(format!("loop {index}: expected an operation that codegen/src/sass.rs knows, found {name}"));
        }
        if !pass.ideal.keys().any(|name| is_tensor_operation(name)) {
            return Err(format!("loop {index}: expected an operation of the tensor cores, found none"));
        }
    }
    let threads = spec.axes.iter().find(|axis| axis.name == "threads").ok_or("expected an axis named threads")?;
    for value in &threads.values {
        if !matches!(value, Value::Int(n) if (32..=1024).contains(n) && n % 32 == 0) {
            return Err(format!("axis threads: expected whole warps of 32 up to 1024, found {value}"));
        }
    }
    Ok(())
}

fn check_fallback(spec: &Spec) -> Result<(), String> {
    for axis in &spec.axes {
        let values = spec.fallback.get(&axis.name).map_or(&[][..], Choice::values);
        if axis.key && spec.fallback.contains_key(&axis.name) {
            return Err(format!("fallback.{}: expected none, for the problem decides this key", axis.name));
        }
        if let Some(value) = values.iter().find(|value| !axis.values.contains(value)) {
            return Err(format!("fallback.{}: expected a value of the axis, found {value}", axis.name));
        }
        if !axis.key && values.is_empty() {
            return Err(format!("fallback.{}: expected a value, found none", axis.name));
        }
    }
    match spec.fallback.keys().find(|name| spec.axes.iter().all(|axis| axis.name != **name)) {
        Some(name) => Err(format!("fallback.{name}: expected the name of an axis")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "summary = 's'\n[[problem]]\nlabel = 'a'\nn = 1\n";
    const AXES: &str = "[[axis]]\nname = 'dtype'\nkey = true\nvalues = ['bf16', 'f16']\n\
                        [[axis]]\nname = 'threads'\ntag = 't'\nvalues = [128, 256]\n\
                        [fallback]\nthreads = 256\n";

    fn parse(text: &str) -> Result<Spec, String> {
        super::parse("matmul", Role::Kernel, text)
    }

    #[test]
    fn a_good_specification_is_read() {
        let spec = parse(&format!("{GOOD}{AXES}[gate]\nregisters = 64\n")).unwrap();
        assert_eq!(spec.name, "matmul");
        assert_eq!(spec.problems[0]["n"], Value::Int(1));
        assert_eq!(spec.axes[1].values, [Value::Int(128), Value::Int(256)]);
        assert_eq!(spec.gate, Gate { registers: Some(64), shared_bytes: None, local_bytes: 0 });
    }

    #[test]
    fn a_kernel_may_lack_axes_and_a_probe_problems() {
        assert_eq!(parse(GOOD).unwrap().axes, []);
        let probe = super::parse("shfl", Role::Probe, &format!("summary = 's'\n{AXES}")).unwrap();
        assert_eq!(probe.problems, []);
    }

    #[test]
    fn mistakes_are_named() {
        let whole = format!("{GOOD}{AXES}");
        let cases = [
            ("summary = 's'\nproblem = []\n".to_owned(), "at least one"),
            (format!("{GOOD}[[problem]]\nlabel = 'b'\n"), "problem 1: expected the fields"),
            (format!("{GOOD}[[problem]]\nlabel = 'b'\nn = 'x'\n"), "problem 1: n: expected one type"),
            (GOOD.replace("label", "labels"), "problem 0: expected a label"),
            (format!("colour = 1\n{GOOD}"), "line 1: unknown field"),
            (GOOD.replace("n = 1", "n = -1"), "did not match"),
            (format!("{GOOD}[gate]\nregisters = 64\n"), "expected an [[axis]]"),
            (whole.replace("dtype", "arch"), "expected an identifier other than arch"),
            (whole.replace("'dtype'", "'d__type'"), "expected an identifier"),
            (whole.replace("'dtype'\nkey = true", "'threads'"), "axis threads: expected once, found twice"),
            (whole.replace("['bf16', 'f16']", "[]"), "axis dtype: expected values"),
            (whole.replace("'f16'", "16"), "axis dtype: expected values of one type, found 16"),
            (whole.replace("'f16'", "'bf16'"), "axis dtype: expected bf16 once"),
            (whole.replace("'f16'", "'bf 16'"), "axis dtype: expected the names of types"),
            (whole.replace("tag = 't'\n", ""), "axis threads: expected a tag"),
            (whole.replace("'t'", "'_'"), "axis threads: tag"),
            (whole.replace("'threads'", "'warps'"), "expected an axis named threads"),
            (whole.replace("128", "100"), "axis threads: expected whole warps of 32 up to 1024, found 100"),
            (whole.replace("threads = 256", "dtype = 'f16'"), "fallback.dtype: expected none"),
            (
                whole.replace("threads = 256", "threads = 64"),
                "fallback.threads: expected a value of the axis, found 64",
            ),
            (
                whole.replace("threads = 256", "threads = [128, 64]"),
                "fallback.threads: expected a value of the axis, found 64",
            ),
            (whole.replace("threads = 256", "threads = []"), "fallback.threads: expected a value, found none"),
            (whole.replace("threads = 256", ""), "fallback.threads: expected a value, found none"),
            (format!("{GOOD}{AXES}vec = 1\n"), "fallback.vec: expected the name of an axis"),
            (format!("{GOOD}{AXES}[gate]\nwarps = 1\n"), "unknown field `warps`"),
            (format!("{GOOD}[[sass]]\nwhere = 'true'\n"), "expected an [[axis]]"),
            (format!("{GOOD}{AXES}[[sass]]\nwhere = 'true'\nhas = ['MMA']\n"), "sass: expected an operation"),
            (format!("{GOOD}[[loop]]\nwhere = 'true'\nideal = {{ HGMMA = '4' }}\n"), "expected an [[axis]]"),
            (
                format!("{GOOD}{AXES}[[loop]]\nwhere = 'true'\nideal = {{ MMA = '4' }}\n"),
                "loop 0: expected an operation",
            ),
            (
                format!("{GOOD}{AXES}[[loop]]\nwhere = 'true'\nideal = {{ LDSM = '4' }}\n"),
                "loop 0: expected an operation of",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{error:?} lacks {expected:?}");
        }
    }
}
