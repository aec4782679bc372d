//! Expands a specification to its variants: every combination of the axes' values that the rules allow.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{Environment, Expression, UndefinedBehavior};

use crate::sass::Mix;
use crate::spec::{Fact, Spec, Value};
use crate::{Arch, Error};

/// A kernel with its variants.
#[derive(Debug)]
pub struct Kernel {
    pub spec: Spec,
    /// Fallbacks first, because nothing is tuned yet; otherwise in the order of the specification.
    pub variants: Vec<Variant>,
    /// What the rules exclude, with reasons.
    pub pruned: Vec<Pruned>,
}

/// A combination of a kernel's axis values that is legal on some architecture.
#[derive(Debug)]
pub struct Variant {
    /// `<kernel>__<values>`: symbol, tuning value and bench label.
    pub name: String,
    /// The value of each axis, in the axes' order.
    pub values: Vec<(String, Value)>,
    /// Threads per block.
    pub threads: u32,
    /// The architectures on which it is legal.
    pub archs: Vec<Arch>,
    /// Shared memory per block in bytes, from the specification.
    pub shared_bytes: u32,
    /// Whether it is always built, and runs where nothing is tuned.
    pub fallback: bool,
}

/// A combination that a rule excludes on some architectures.
#[derive(Debug, PartialEq)]
pub struct Pruned {
    pub name: String,
    pub archs: Vec<Arch>,
    pub why: String,
}

impl Kernel {
    /// Each variant together with its kernel.
    pub fn pairs(&self) -> impl Iterator<Item = (&Self, &Variant)> {
        self.variants.iter().map(move |variant| (self, variant))
    }

    /// The specification's facts about a variant's machine code for an architecture.
    pub fn facts(&self, variant: &Variant, arch: Arch) -> Vec<&Fact> {
        let environment = environment();
        let formulas = Formulas::new(&self.spec, &environment);
        // `expand` has checked that the formulas are valid.
        formulas.and_then(|formulas| formulas.facts(variant, arch)).unwrap_or_default()
    }

    /// The ideal instructions of one iteration of a variant's main loop for an architecture, if the specification gives
    /// them.
    pub fn ideal(&self, variant: &Variant, arch: Arch) -> Option<Mix> {
        let environment = environment();
        let formulas = Formulas::new(&self.spec, &environment);
        // As in `facts`.
        formulas.and_then(|formulas| formulas.ideal(variant, arch)).unwrap_or_default()
    }

    /// Expands a specification's axes.
    ///
    /// # Errors
    /// A rule, a condition, a count of instructions or a size is not an expression over the axes and `arch`; a variant
    /// has two loops or two sizes; no variant is legal; or a combination of keys has no legal fallback.
    pub fn expand(spec: Spec) -> Result<Self, Error> {
        let wrong = |reason: String| Error::new(&spec.file, reason);
        let (mut variants, pruned) = candidates(&spec).map_err(wrong)?;
        check_coverage(&spec, &variants).map_err(wrong)?;
        let environment = environment();
        let formulas = Formulas::new(&spec, &environment).map_err(wrong)?;
        for variant in &mut variants {
            for &arch in &variant.archs {
                formulas.facts(variant, arch).map_err(wrong)?;
                formulas.ideal(variant, arch).map_err(wrong)?;
            }
            variant.shared_bytes = formulas.shared_bytes(variant).map_err(wrong)?;
        }
        variants.sort_by_key(|variant| !variant.fallback);
        Ok(Self { spec, variants, pruned })
    }
}

fn candidates(spec: &Spec) -> Result<(Vec<Variant>, Vec<Pruned>), String> {
    let environment = environment();
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let legal = Formula::new(spec, &environment, &rule.legal).map_err(|e| format!("rule {index}: {e}"))?;
        rules.push((legal, rule.why.as_str()));
    }
    let mut variants = Vec::new();
    let mut pruned = Vec::new();
    for values in combinations(spec) {
        let name = variant_name(spec, &values);
        let mut archs = Vec::new();
        let mut reasons: BTreeMap<&str, Vec<Arch>> = BTreeMap::new();
        for arch in Arch::ALL {
            let mut legal = true;
            for (index, (rule, why)) in rules.iter().enumerate() {
                if !rule.holds(&values, arch).map_err(|e| format!("rule {index}: {name}: {e}"))? {
                    legal = false;
                    reasons.entry(why).or_default().push(arch);
                }
            }
            if legal {
                archs.push(arch);
            }
        }
        pruned.extend(reasons.into_iter().map(|(why, archs)| Pruned {
            name: name.clone(),
            archs,
            why: why.to_owned(),
        }));
        if !archs.is_empty() {
            let threads = values.iter().find_map(|(axis, value)| match value {
                Value::Int(threads) if axis == "threads" => Some(*threads),
                _ => None,
            });
            variants.push(Variant {
                name,
                threads: threads.ok_or("expected an axis named threads")?,
                archs,
                shared_bytes: 0,
                fallback: values
                    .iter()
                    .all(|(axis, value)| spec.fallback.get(axis).is_none_or(|own| own.values().contains(value))),
                values,
            });
        }
    }
    Ok((variants, pruned))
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
}

/// An expression over a specification's axes and `arch`.
struct Formula<'a>(Expression<'a, 'a>);

impl<'a> Formula<'a> {
    fn new(spec: &Spec, environment: &'a Environment<'a>, text: &'a str) -> Result<Self, String> {
        let expression = environment.compile_expression(text).map_err(|e| e.to_string())?;
        let known = |name: &String| name == "arch" || spec.axes.iter().any(|axis| axis.name == *name);
        match expression.undeclared_variables(false).iter().find(|name| !known(name)) {
            Some(name) => Err(format!("expected the names of axes or arch, found {name}")),
            None => Ok(Self(expression)),
        }
    }

    fn eval(&self, values: &[(String, Value)], arch: Arch) -> Result<minijinja::Value, String> {
        let scope: BTreeMap<&str, minijinja::Value> = values
            .iter()
            .map(|(axis, value)| (axis.as_str(), operand(value)))
            .chain([("arch", arch.number().into())])
            .collect();
        self.0.eval(&scope).map_err(|e| e.to_string())
    }

    fn holds(&self, values: &[(String, Value)], arch: Arch) -> Result<bool, String> {
        let holds = self.eval(values, arch)?;
        bool::try_from(holds.clone()).map_err(|_| format!("expected true or false, found {holds}"))
    }

    fn number(&self, values: &[(String, Value)], arch: Arch, least: u32) -> Result<u32, String> {
        let number = self.eval(values, arch)?;
        let whole = u32::try_from(number.clone()).ok().filter(|number| *number >= least);
        whole.ok_or_else(|| format!("expected a whole number from {least} on, found {number}"))
    }
}

/// A specification's statements about compiled variants. Its formulas are compiled once for all variants, of which
/// `matmul` has more than a hundred.
struct Formulas<'s, 'e> {
    facts: Vec<(Formula<'e>, &'s Fact)>,
    /// Conditions, and counts of instructions.
    loops: Vec<(Formula<'e>, Vec<(&'s str, Formula<'e>)>)>,
    /// Conditions, and bytes.
    shared: Vec<(Formula<'e>, Formula<'e>)>,
}

impl<'s: 'e, 'e> Formulas<'s, 'e> {
    fn new(spec: &'s Spec, environment: &'e Environment<'e>) -> Result<Self, String> {
        let formula = |text: &'s str| Formula::new(spec, environment, text);
        let mut formulas = Self { facts: Vec::new(), loops: Vec::new(), shared: Vec::new() };
        for (index, fact) in spec.facts.iter().enumerate() {
            let of = formula(&fact.of).map_err(|e| format!("sass {index}: {e}"))?;
            formulas.facts.push((of, fact));
        }
        for (index, pass) in spec.loops.iter().enumerate() {
            let of = formula(&pass.of).map_err(|e| format!("loop {index}: {e}"))?;
            let mut counts = Vec::new();
            for (name, text) in &pass.ideal {
                counts.push((name.as_str(), formula(text).map_err(|e| format!("loop {index}: {name}: {e}"))?));
            }
            formulas.loops.push((of, counts));
        }
        for (index, shared) in spec.shared.iter().enumerate() {
            let both = formula(&shared.of).and_then(|of| Ok((of, formula(&shared.bytes)?)));
            formulas.shared.push(both.map_err(|e| format!("shared {index}: {e}"))?);
        }
        Ok(formulas)
    }

    /// The facts that apply to a variant's machine code for an architecture.
    fn facts(&self, variant: &Variant, arch: Arch) -> Result<Vec<&'s Fact>, String> {
        let mut found = Vec::new();
        for (index, (of, fact)) in self.facts.iter().enumerate() {
            if of.holds(&variant.values, arch).map_err(|e| format!("sass {index}: {}: {e}", variant.name))? {
                found.push(*fact);
            }
        }
        Ok(found)
    }

    /// The ideal loop of a variant for an architecture, if the specification has one.
    fn ideal(&self, variant: &Variant, arch: Arch) -> Result<Option<Mix>, String> {
        let mut found = None;
        for (index, (of, counts)) in self.loops.iter().enumerate() {
            let wrong = |e| format!("loop {index}: {}: {e}", variant.name);
            if !of.holds(&variant.values, arch).map_err(wrong)? {
                continue;
            }
            let mut mix = Vec::new();
            for (name, count) in counts {
                let count = count.number(&variant.values, arch, 1).map_err(|e| wrong(format!("{name}: {e}")))?;
                mix.push((*name, count));
            }
            if found.replace(Mix::of_operations(mix.into_iter())).is_some() {
                return Err(wrong("expected one loop for it, found two".to_owned()));
            }
        }
        Ok(found)
    }

    /// Shared memory of a variant's block, the same on every architecture; 0 if the specification has no entry for it.
    fn shared_bytes(&self, variant: &Variant) -> Result<u32, String> {
        let mut found = None;
        for &arch in &variant.archs {
            let mut bytes = None;
            for (index, (of, size)) in self.shared.iter().enumerate() {
                let wrong = |e| format!("shared {index}: {}: {e}", variant.name);
                if of.holds(&variant.values, arch).map_err(wrong)?
                    && bytes.replace(size.number(&variant.values, arch, 0).map_err(wrong)?).is_some()
                {
                    return Err(wrong("expected one size for it, found two".to_owned()));
                }
            }
            let bytes = bytes.unwrap_or(0);
            if *found.get_or_insert(bytes) != bytes {
                return Err(format!("shared: {}: expected one size on all architectures", variant.name));
            }
        }
        Ok(found.unwrap_or(0))
    }
}

/// Every combination of values; the last axis changes fastest. Empty without axes.
fn combinations(spec: &Spec) -> Vec<Vec<(String, Value)>> {
    if spec.axes.is_empty() {
        return Vec::new();
    }
    spec.axes.iter().fold(vec![Vec::new()], |heads, axis| {
        let longer = |head: &Vec<_>| {
            let head = head.clone();
            axis.values.iter().map(move |value| [&head[..], &[(axis.name.clone(), value.clone())]].concat())
        };
        heads.iter().flat_map(longer).collect()
    })
}

fn variant_name(spec: &Spec, values: &[(String, Value)]) -> String {
    let parts: Vec<_> = spec.axes.iter().zip(values).map(|(axis, (_, value))| format!("{}{value}", axis.tag)).collect();
    format!("{}__{}", spec.name, parts.join("_"))
}

fn operand(value: &Value) -> minijinja::Value {
    match value {
        Value::Int(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
    }
}

/// Checks that names are unique, that a variant is legal, and that each legal combination of keys has a legal fallback.
fn check_coverage(spec: &Spec, variants: &[Variant]) -> Result<(), String> {
    if !spec.axes.is_empty() && variants.is_empty() {
        return Err("the rules leave no variant on any architecture".to_owned());
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = variants.iter().find(|variant| !names.insert(&variant.name)) {
        return Err(format!("two variants are named {}: give an axis another tag", twice.name));
    }
    let keys = |variant: &Variant| -> Vec<String> {
        let of_problem = |(axis, _): &(_, &(String, Value))| (axis as &crate::spec::Axis).key;
        let pairs = spec.axes.iter().zip(&variant.values).filter(of_problem);
        pairs.map(|(axis, (_, value))| format!("{} = {value}", axis.name)).collect()
    };
    for variant in variants {
        let wanted = keys(variant);
        let fallbacks: Vec<_> = variants.iter().filter(|other| other.fallback && keys(other) == wanted).collect();
        let covered = |arch: &Arch| fallbacks.iter().any(|fallback| fallback.archs.contains(arch));
        if let Some(arch) = variant.archs.iter().find(|arch| !covered(arch)) {
            let wanted = if wanted.is_empty() { "any problem".to_owned() } else { wanted.join(", ") };
            return Err(format!("fallback: not legal for {wanted} on {arch}, where {} is", variant.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Role, parse};

    const SPEC: &str = "summary = 's'\n\
        [[axis]]\nname = 'dtype'\nkey = true\nvalues = ['bf16', 'f16']\n\
        [[axis]]\nname = 'vec'\ntag = 'v'\nvalues = [4, 8]\n\
        [[axis]]\nname = 'threads'\ntag = 't'\nvalues = [128, 256]\n\
        [fallback]\nvec = 8\nthreads = 256\n\
        [[rule]]\nlegal = \"dtype != 'bf16' or arch >= 80\"\nwhy = 'no bf16'\n\
        [[rule]]\nlegal = \"vec * threads != 512\"\nwhy = 'too few'\n";

    fn expand(text: &str) -> Result<Kernel, String> {
        Kernel::expand(parse("norm", Role::Probe, text).unwrap()).map_err(|e| e.reason)
    }

    #[test]
    fn legal_combinations_become_variants_with_fallbacks_first() {
        let kernel = expand(SPEC).unwrap();
        let names: Vec<_> = kernel.variants.iter().map(|variant| variant.name.as_str()).collect();
        let expected = ["bf16_v8_t256", "f16_v8_t256", "bf16_v4_t256", "bf16_v8_t128", "f16_v4_t256", "f16_v8_t128"];
        assert_eq!(names, expected.map(|values| format!("norm__{values}")));
        let variant = &kernel.variants[0];
        assert_eq!((variant.threads, variant.fallback), (256, true));
        assert_eq!(variant.archs, Arch::ALL[2..]);
        assert_eq!(kernel.variants[1].archs, Arch::ALL);
    }

    #[test]
    fn fallbacks_may_be_several() {
        let several = SPEC.replace("threads = 256\n[[rule]]", "threads = [128, 256]\n[[rule]]");
        let kernel = expand(&several).unwrap();
        let fallbacks = kernel.variants.iter().filter(|variant| variant.fallback).map(|variant| variant.name.as_str());
        let expected = ["bf16_v8_t128", "bf16_v8_t256", "f16_v8_t128", "f16_v8_t256"];
        assert_eq!(fallbacks.collect::<Vec<_>>(), expected.map(|values| format!("norm__{values}")));
        let apart = several.replace("vec * threads != 512", "threads == (128 if arch < 80 else 256)");
        assert!(expand(&apart).is_ok());
    }

    #[test]
    fn pruned_variants_have_architectures_and_a_reason() {
        let kernel = expand(SPEC).unwrap();
        let of = |name: &str| -> Vec<_> {
            kernel.pruned.iter().filter(|p| p.name == name).map(|p| (p.why.as_str(), p.archs.len())).collect()
        };
        assert_eq!(of("norm__bf16_v4_t128"), [("no bf16", 2), ("too few", 6)]);
        assert_eq!(of("norm__f16_v4_t128"), [("too few", 6)]);
        assert_eq!(of("norm__bf16_v8_t256"), [("no bf16", 2)]);
        assert_eq!(of("norm__f16_v8_t256"), []);
    }

    #[test]
    fn facts_apply_where_their_condition_holds() {
        let text = format!("{SPEC}[[sass]]\nwhere = 'arch >= 80 and vec == 8'\nhas = ['LDSM']\n");
        let kernel = expand(&text).unwrap();
        let count = |name: &str, arch: usize| {
            let variant = kernel.variants.iter().find(|variant| variant.name == name).unwrap();
            kernel.facts(variant, Arch::ALL[arch]).len()
        };
        assert_eq!((count("norm__f16_v8_t256", 2), count("norm__f16_v8_t256", 0)), (1, 0));
        assert_eq!(count("norm__f16_v4_t256", 2), 0);
    }

    #[test]
    fn ideal_loops_are_computed_from_the_axes() {
        let pass = "[[loop]]\nwhere = 'arch >= 80'\n[loop.ideal]\n'HMMA.16816' = 'vec * threads // 32'\nLDSM = 'vec'\n";
        let kernel = expand(&format!("{SPEC}{pass}")).unwrap();
        let variant = kernel.variants.iter().find(|variant| variant.name == "norm__f16_v8_t256").unwrap();
        let ideal = kernel.ideal(variant, Arch::ALL[2]).map(|mix| mix.to_string());
        assert_eq!(ideal.as_deref(), Some("64 HMMA.16816, 8 LDSM, 0 others"));
        assert_eq!(kernel.ideal(variant, Arch::ALL[0]), None);
        for (text, expected) in [
            (format!("{pass}{pass}"), "expected one loop for it, found two"),
            (pass.replace("'vec'", "'vec - vec'"), "LDSM: expected a whole number from 1 on, found 0"),
            (pass.replace("'vec'", "'width'"), "found width"),
            (pass.replace("arch >= 80", "arch +"), "loop 0"),
            (pass.replace("arch >= 80", "arch"), "expected true or false"),
        ] {
            let error = expand(&format!("{SPEC}{text}")).unwrap_err();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn shared_memory_is_computed_from_the_axes() {
        let one = "[[shared]]\nwhere = 'vec == 8'\nbytes = 'threads * 4'\n";
        let kernel = expand(&format!("{SPEC}{one}")).unwrap();
        let bytes = |name: &str| kernel.variants.iter().find(|variant| variant.name == name).unwrap().shared_bytes;
        assert_eq!((bytes("norm__f16_v8_t128"), bytes("norm__f16_v4_t256")), (512, 0));
        for (text, expected) in [
            (format!("{one}{one}"), "shared 1: norm__bf16_v8_t128: expected one size for it, found two"),
            (one.replace("threads * 4", "0 - threads"), "expected a whole number from 0 on, found -128"),
            (one.replace("threads * 4", "arch"), "norm__bf16_v8_t128: expected one size on all architectures"),
            (one.replace("threads * 4", "width"), "shared 0: expected the names of axes or arch, found width"),
        ] {
            let error = expand(&format!("{SPEC}{text}")).unwrap_err();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn a_kernel_without_axes_has_no_variants() {
        let kernel = expand("summary = 's'\n").unwrap();
        assert_eq!((kernel.variants.len(), kernel.pruned.len()), (0, 0));
    }

    #[test]
    fn mistakes_are_named() {
        let rule = "arch >= 80";
        let cases = [
            (SPEC.replace(rule, "arch >="), "rule 0: syntax error"),
            (SPEC.replace(rule, "arc >= 80"), "rule 0: expected the names of axes or arch, found arc"),
            (SPEC.replace(rule, "arch"), "rule 0: norm__bf16_v4_t128: expected true or false, found 70"),
            (SPEC.replace(rule, "vec + dtype"), "rule 0: norm__bf16_v4_t128: "),
            (format!("{SPEC}[[sass]]\nwhere = 'vec'\n"), "sass 0: norm__bf16_v4_t256: expected true or false, found 4"),
            (format!("{SPEC}[[sass]]\nwhere = 'wide'\n"), "sass 0: expected the names of axes"),
            (SPEC.replace("dtype != 'bf16' or arch >= 80", "false"), "the rules leave no variant"),
            (SPEC.replace("vec * threads != 512", "vec != 8"), "fallback: not legal for dtype = bf16 on sm_80"),
            (SPEC.replace("vec * threads != 512", "vec != 8 or arch < 90"), "on sm_90a, where norm__bf16_v4_t128 is"),
        ];
        for (text, expected) in cases {
            let error = expand(&text).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{error:?} lacks {expected:?}");
        }
    }
}
