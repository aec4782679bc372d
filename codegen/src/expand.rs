//! From a specification to its variants: every combination of the axes' values, less what the rules forbid.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{Environment, UndefinedBehavior};

use crate::spec::{Spec, Value};
use crate::{Arch, Error};

/// A kernel with its variants.
#[derive(Debug)]
pub struct Kernel {
    pub spec: Spec,
    /// Fallbacks first, as long as nothing is tuned; else in the order of the specification.
    pub variants: Vec<Variant>,
    /// What the rules took out, with their reasons.
    pub pruned: Vec<Pruned>,
}

/// One point of a kernel's axes that is legal somewhere.
#[derive(Debug)]
pub struct Variant {
    /// `<kernel>__<values>`: symbol, tuning value and label of its bench.
    pub name: String,
    /// A value for each axis, in their order.
    pub values: Vec<(String, Value)>,
    /// Threads of a block.
    pub threads: u32,
    /// Where it is legal.
    pub archs: Vec<Arch>,
    /// Whether it is what runs where nothing was tuned.
    pub fallback: bool,
}

/// A candidate that a rule forbids on some architectures.
#[derive(Debug, PartialEq)]
pub struct Pruned {
    pub name: String,
    pub archs: Vec<Arch>,
    pub why: String,
}

impl Kernel {
    /// Its variants, each with the kernel.
    pub fn pairs(&self) -> impl Iterator<Item = (&Self, &Variant)> {
        self.variants.iter().map(move |variant| (self, variant))
    }

    /// Expands a specification's axes.
    ///
    /// # Errors
    /// A rule is no expression over the axes and `arch`, nothing is legal, or a fallback is not legal wherever its
    /// keys are.
    pub fn expand(spec: Spec) -> Result<Self, Error> {
        let wrong = |reason: String| Error::new(&spec.file, reason);
        let (mut variants, pruned) = candidates(&spec).map_err(wrong)?;
        check_coverage(&spec, &variants).map_err(wrong)?;
        variants.sort_by_key(|variant| !variant.fallback);
        Ok(Self { spec, variants, pruned })
    }
}

fn candidates(spec: &Spec) -> Result<(Vec<Variant>, Vec<Pruned>), String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let known: BTreeSet<_> = spec.axes.iter().map(|axis| axis.name.as_str()).chain(["arch"]).collect();
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let legal = environment.compile_expression(&rule.legal).map_err(|e| format!("rule {index}: {e}"))?;
        if let Some(name) = legal.undeclared_variables(false).iter().find(|name| !known.contains(name.as_str())) {
            return Err(format!("rule {index}: expected the names of axes or arch, found {name}"));
        }
        rules.push((legal, rule.why.as_str()));
    }
    let mut variants = Vec::new();
    let mut pruned = Vec::new();
    for values in combinations(spec) {
        let name = variant_name(spec, &values);
        let mut archs = Vec::new();
        let mut reasons: BTreeMap<&str, Vec<Arch>> = BTreeMap::new();
        for arch in Arch::ALL {
            let scope: BTreeMap<&str, minijinja::Value> = values
                .iter()
                .map(|(axis, value)| (axis.as_str(), operand(value)))
                .chain([("arch", arch.number().into())])
                .collect();
            let mut legal = true;
            for (index, (rule, why)) in rules.iter().enumerate() {
                let holds = rule.eval(&scope).map_err(|e| format!("rule {index}: {name}: {e}"))?;
                let holds = bool::try_from(holds.clone())
                    .map_err(|_| format!("rule {index}: expected true or false, found {holds}"))?;
                if !holds {
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
                fallback: values.iter().all(|(axis, value)| spec.fallback.get(axis).is_none_or(|own| own == value)),
                values,
            });
        }
    }
    Ok((variants, pruned))
}

/// Every combination of values, the last axis changing fastest. None where there are no axes.
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

/// Names are unique, something is legal, and wherever a combination of keys is legal its fallback is.
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
        let fallback = variants.iter().find(|other| other.fallback && keys(other) == wanted);
        let covered = fallback.map_or(&[][..], |fallback| &fallback.archs);
        if let Some(arch) = variant.archs.iter().find(|arch| !covered.contains(arch)) {
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
    fn what_is_pruned_says_where_and_why() {
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
            (SPEC.replace(rule, "arch"), "rule 0: expected true or false, found 70"),
            (SPEC.replace(rule, "vec + dtype"), "rule 0: norm__bf16_v4_t128: "),
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
