//! Compiles kernels for GPUs, with a cache, and checks the cubins against their specifications.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cache::Cache;
use crate::cubin::Resources;
use crate::occupancy::{Occupancy, most_shared_bytes, predict};
use crate::sass::{Mix, Sass};
use crate::toolchain::{Job, Toolchain};
use crate::{Arch, Error, Kernel, Role, Tree, Variant, table};

/// A variant's cubin for one architecture.
#[derive(Debug)]
pub struct Cubin<'a> {
    pub kernel: &'a Kernel,
    pub variant: &'a Variant,
    pub arch: Arch,
    pub file: PathBuf,
    pub used: Resources,
    pub occupancy: Occupancy,
    /// The instructions of the whole kernel, and of its main loop.
    pub instructions: Mix,
    pub main_loop: Mix,
}

/// The folders for cubins.
#[derive(Clone, Copy, Debug)]
pub struct Store<'a> {
    /// This build's own. After the build it contains exactly its cubins.
    pub own: &'a Path,
    /// A cache that builds share; nothing is removed from it.
    pub shared: Option<&'a Path>,
    /// For intermediate files.
    pub scratch: &'a Path,
}

/// Progress of a build: `done` of `total` cubins exist, the last one is `name`.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub done: usize,
    pub total: usize,
    pub name: &'a str,
    pub arch: Arch,
}

/// Compiles each of `variants` for every architecture of the toolchain on which it is legal, unless the store has the
/// cubin. Calls `progress` after each compilation.
///
/// # Errors
/// A unit does not compile, a cubin cannot be parsed, or a file cannot be read or written.
pub fn build<'a>(
    toolchain: &Toolchain,
    tree: &Tree,
    variants: impl Iterator<Item = (&'a Kernel, &'a Variant)>,
    store: Store,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Cubin<'a>>, Error> {
    let jobs = toolchain.jobs(&tree.csrc(), variants)?;
    let own = Cache::open(store.own)?;
    let shared = store.shared.map(Cache::open).transpose()?;
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();
    for job in &jobs {
        if let Some((file, bytes)) = own.get(&job.key) {
            files.insert(&job.key, (file.to_owned(), read(job, &bytes)?));
        } else if let Some((_, bytes)) = shared.as_ref().and_then(|shared| shared.get(&job.key)) {
            files.insert(&job.key, (own.put(&job.key, &bytes)?, read(job, &bytes)?));
        } else {
            missing.push(job);
        }
    }
    let done = AtomicUsize::new(0);
    let compiled = Mutex::new(Vec::new());
    toolchain.compile(&tree.csrc(), store.scratch, &missing, &|job, bytes| {
        let read = read(job, bytes)?;
        let file = own.put(&job.key, bytes)?;
        if let Some(shared) = &shared {
            shared.put(&job.key, bytes)?;
        }
        let mut compiled = compiled.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        compiled.push((job.key.clone(), file, read));
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress { done, total: missing.len(), name: &job.variant.name, arch: job.arch });
        Ok(())
    })?;
    let compiled = compiled.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    files.extend(compiled.iter().map(|(key, file, read)| (key, (file.clone(), read.clone()))));
    own.keep_only(files.values().map(|(file, _)| file.as_path()))?;
    let cubins = jobs.iter().filter_map(|job| {
        let (file, (used, [instructions, main_loop])) = files.get(&job.key)?.clone();
        let occupancy = predict(job.arch, job.variant.threads, &used);
        let (kernel, variant, arch) = (job.kernel, job.variant, job.arch);
        Some(Cubin { kernel, variant, arch, file, used, occupancy, instructions, main_loop })
    });
    Ok(cubins.collect())
}

/// The resource usage of a cubin, and the instructions of all of it and of its main loop.
fn read(job: &Job, cubin: &[u8]) -> Result<(Resources, [Mix; 2]), Error> {
    let name = &job.variant.name;
    let read = Resources::read(name, cubin).and_then(|used| {
        let sass = Sass::read(name, job.arch, cubin)?;
        Ok((used, [sass.mix(), sass.main_loop()]))
    });
    read.map_err(|reason| Error::new(&job.kernel.spec.file, format!("{name} on {}: {reason}", job.arch)))
}

/// Errors for cubins whose machine code violates a fact of their specification.
pub fn unlike_the_facts(cubins: &[Cubin]) -> Vec<Error> {
    let mut errors = Vec::new();
    for Cubin { kernel, variant, arch, instructions, .. } in cubins {
        for fact in kernel.facts(variant, *arch) {
            let missing = fact.has.iter().filter(|name| instructions.count(name) == 0).map(|name| ("some", name));
            let extra = fact.lacks.iter().filter(|name| instructions.count(name) > 0).map(|name| ("no", name));
            errors.extend(missing.chain(extra).map(|(expected, name)| {
                let reason = format!("{} on {arch}: expected {expected} {name}, found {instructions}", variant.name);
                Error::new(&kernel.spec.file, reason)
            }));
        }
    }
    errors
}

/// Errors for cubins that use more than their gate or the architecture allows, or another amount of shared memory than
/// the specification gives to the cost model.
pub fn over_budget(cubins: &[Cubin]) -> Vec<Error> {
    let mut errors = Vec::new();
    for Cubin { kernel, variant, arch, used, .. } in cubins {
        let gate = &kernel.spec.gate;
        let most_shared = most_shared_bytes(*arch);
        for (what, budget, found) in [
            ("gate.registers", gate.registers.unwrap_or(u32::MAX), used.registers),
            ("gate.shared_bytes", gate.shared_bytes.unwrap_or(u32::MAX), used.shared_bytes),
            ("gate.local_bytes", gate.local_bytes, used.local_bytes),
            ("shared bytes of a block", most_shared, used.shared_bytes),
        ] {
            if found > budget {
                let reason = format!("{} on {arch}: {what}: expected at most {budget}, found {found}", variant.name);
                errors.push(Error::new(&kernel.spec.file, reason));
            }
        }
        let (expected, found) = (variant.shared_bytes, used.shared_bytes);
        if kernel.spec.role == Role::Kernel && found != expected {
            let reason = format!("{} on {arch}: shared: expected {found} bytes, found {expected}", variant.name);
            errors.push(Error::new(&kernel.spec.file, reason));
        }
    }
    errors
}

/// A table of each cubin's resources, its blocks per SM, its occupancy, and the instructions of its main loop, if it
/// has one with tensor instructions. If the specification has an ideal loop, the table also shows that, and the share
/// of other instructions.
pub fn report(cubins: &[Cubin]) -> String {
    let head = [
        "variant",
        "arch",
        "registers",
        "shared",
        "local",
        "constant",
        "code",
        "blocks",
        "occupancy",
        "main loop",
        "ideal",
        "else",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(cubins.iter().map(|Cubin { kernel, variant, arch, used, occupancy, main_loop, .. }| {
        let has_loop = *main_loop != Mix::default();
        let ideal = kernel.ideal(variant, *arch).filter(|_| has_loop).map(|ideal| ideal.ideal_of(main_loop));
        let (ideal, beyond) =
            ideal.map_or_else(Default::default, |(ideal, beyond)| (ideal.to_string(), format!("{beyond}%")));
        [
            variant.name.clone(),
            arch.to_string(),
            used.registers.to_string(),
            used.shared_bytes.to_string(),
            used.local_bytes.to_string(),
            used.constant_bytes.to_string(),
            used.code_bytes.to_string(),
            occupancy.blocks.to_string(),
            format!("{}%", occupancy.filled),
            if has_loop { main_loop.to_string() } else { String::new() },
            ideal,
            beyond,
        ]
    }));
    table::aligned(&rows, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    fn kernel() -> Kernel {
        let spec = "summary = 's'\n[fallback]\nthreads = 64\n[[axis]]\nname = 'threads'\ntag = 't'\nvalues = [64]\n\
                    [gate]\nregisters = 40\nshared_bytes = 70000\n\
                    [[sass]]\nwhere = 'arch >= 80'\nhas = ['LDSM']\n\
                    [[loop]]\nwhere = 'true'\nideal = { HGMMA = '4' }\n";
        Kernel::expand(parse("norm", Role::Probe, spec).unwrap()).unwrap()
    }

    fn cubin(kernel: &Kernel, arch: usize, registers: u32, shared_bytes: u32, local_bytes: u32) -> Cubin<'_> {
        let used = Resources { registers, shared_bytes, local_bytes, constant_bytes: 360, code_bytes: 512 };
        let (arch, variant) = (Arch::ALL[arch], &kernel.variants[0]);
        let occupancy = predict(arch, 64, &used);
        let (instructions, main_loop) = (Mix::default(), Mix::default());
        Cubin { kernel, variant, arch, file: "a.cubin".into(), used, occupancy, instructions, main_loop }
    }

    #[test]
    fn an_exceeded_gate_is_named() {
        let kernel = kernel();
        let errors = |cubin| over_budget(&[cubin]).into_iter().map(|e| e.reason).collect::<Vec<_>>();
        assert_eq!(errors(cubin(&kernel, 2, 40, 70000, 0)), Vec::<String>::new());
        let registers = "norm__t64 on sm_80: gate.registers: expected at most 40, found 41";
        assert_eq!(errors(cubin(&kernel, 2, 41, 0, 0)), [registers]);
        let spilled = "norm__t64 on sm_90a: gate.local_bytes: expected at most 0, found 8";
        assert_eq!(errors(cubin(&kernel, 5, 40, 0, 8)), [spilled]);
        let shared = "norm__t64 on sm_75: shared bytes of a block: expected at most 65536, found 65540";
        assert_eq!(errors(cubin(&kernel, 1, 40, 65540, 0)), [shared]);
        let both = "norm__t64 on sm_75: gate.shared_bytes: expected at most 70000, found 70001";
        assert_eq!(errors(cubin(&kernel, 1, 40, 70001, 0))[0], both);
    }

    #[test]
    fn a_specification_with_wrong_shared_memory_is_named() {
        let mut kernel = kernel();
        kernel.spec.role = Role::Kernel;
        kernel.variants[0].shared_bytes = 512;
        assert_eq!(over_budget(&[cubin(&kernel, 2, 40, 512, 0)]).len(), 0);
        let errors = over_budget(&[cubin(&kernel, 2, 40, 1024, 0)]);
        assert_eq!(errors[0].reason, "norm__t64 on sm_80: shared: expected 1024 bytes, found 512");
    }

    #[test]
    fn a_missing_instruction_is_named() {
        let kernel = kernel();
        let errors = unlike_the_facts(&[cubin(&kernel, 0, 40, 0, 0), cubin(&kernel, 2, 40, 0, 0)]);
        let reasons: Vec<_> = errors.iter().map(|e| e.reason.as_str()).collect();
        assert_eq!(reasons, ["norm__t64 on sm_80: expected some LDSM, found 0 others"]);
    }

    #[test]
    fn a_report_is_a_table() {
        let kernel = kernel();
        let looped =
            Cubin { main_loop: Mix::of_operations([("HGMMA", 8)].into_iter()), ..cubin(&kernel, 5, 32, 1024, 16) };
        let text = report(&[cubin(&kernel, 2, 40, 128, 0), looped]);
        let expected = "\
variant    arch    registers  shared  local  constant  code  blocks  occupancy          main loop              ideal  else
norm__t64  sm_80          40     128      0       360   512      24        75%
norm__t64  sm_90a         32    1024     16       360   512      32       100%  8 HGMMA, 0 others  8 HGMMA, 0 others    0%
";
        assert_eq!(text, expected);
    }
}
