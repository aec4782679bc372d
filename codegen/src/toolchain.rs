//! Chooses the compiler and the architectures.

use std::path::Path;

use crate::discover::{self, Environment};
use crate::nvcc::Nvcc;
use crate::nvidia::{self, Nvrtc};
use crate::render::cuda;
use crate::sources::Sources;
use crate::{Arch, Error, Kernel, Variant, parallel};

/// A compiler, and the architectures to compile for.
pub struct Toolchain {
    compiler: Compiler,
    pub archs: Vec<Arch>,
}

enum Compiler {
    Nvrtc(Nvrtc),
    Nvcc(Nvcc),
}

/// The toolchain found on this machine.
pub struct Found {
    pub toolchain: Option<Toolchain>,
    /// Notes to print during the build.
    pub notes: Vec<String>,
}

/// A variant to compile for an architecture, with its cache key.
#[derive(Debug)]
pub struct Job<'a> {
    pub kernel: &'a Kernel,
    pub variant: &'a Variant,
    pub arch: Arch,
    pub key: String,
    unit: String,
}

/// Receives a job's cubin. Called from several threads.
pub type Done<'a> = dyn Fn(&Job, &[u8]) -> Result<(), Error> + Sync + 'a;

/// The requested architectures.
#[derive(Debug, PartialEq)]
enum Wanted {
    /// A list: it is an error if one is not supported.
    These(Vec<Arch>),
    /// All that the compiler supports.
    All,
    /// That of the present GPU.
    Native,
    /// No request: that of the present GPU, else all.
    Whatever,
}

impl Toolchain {
    /// Finds a compiler by the environment's variables, for a repository at `root`.
    ///
    /// # Errors
    /// One line: a variable is invalid, or requests something that is not available.
    pub fn find(environment: &Environment, root: &Path) -> Result<Found, String> {
        let wanted = wanted(environment)?;
        let mut notes = Vec::new();
        let archs = match &wanted {
            Wanted::These(archs) => archs.clone(),
            Wanted::All => Arch::ALL.to_vec(),
            Wanted::Native | Wanted::Whatever => {
                let gpus = nvidia::gpus();
                let mut archs: Vec<_> =
                    gpus.iter().filter_map(|&(major, minor)| Arch::that_runs_on(major, minor)).collect();
                archs.sort();
                archs.dedup();
                match archs.is_empty() {
                    true if wanted == Wanted::Native => {
                        return Err(format!(
                            "BURRSTONE_CUDA_ARCHS=native: expected a GPU of sm_70 to sm_90, found {gpus:?}"
                        ));
                    }
                    true => Arch::ALL.to_vec(),
                    false => archs,
                }
            }
        };
        let choice = environment.text("BURRSTONE_CUDA_COMPILER");
        let compiler =
            match choice.as_deref() {
                Some("none") => return Ok(Found { toolchain: None, notes }),
                Some("nvrtc") => nvrtc(environment, root, &archs)
                    .map_err(|reason| format!("BURRSTONE_CUDA_COMPILER=nvrtc: {reason}"))?,
                Some("nvcc") => nvcc(environment, root, &archs)
                    .map_err(|reason| format!("BURRSTONE_CUDA_COMPILER=nvcc: {reason}"))?,
                Some(other) => {
                    return Err(format!("BURRSTONE_CUDA_COMPILER: expected nvrtc, nvcc or none, found {other:?}"));
                }
                None => match nvrtc(environment, root, &archs) {
                    Ok(compiler) => compiler,
                    Err(no_nvrtc) => match nvcc(environment, root, &archs) {
                        Ok(compiler) => compiler,
                        Err(no_nvcc) => {
                            notes.push(format!("no CUDA compiler, so no kernels for GPUs: {no_nvrtc}; {no_nvcc}"));
                            return Ok(Found { toolchain: None, notes });
                        }
                    },
                },
            };
        let (able, unable): (Vec<_>, Vec<_>) = archs.into_iter().partition(|arch| compiler.archs().contains(arch));
        if !unable.is_empty() {
            let unable: Vec<_> = unable.iter().map(ToString::to_string).collect();
            let hint = "CUDA 12.9 knows all from Volta to Hopper";
            let line = format!("{} does not compile for {}: {hint}", compiler.name(), unable.join(", "));
            match wanted {
                Wanted::These(_) | Wanted::Native => return Err(line),
                Wanted::All | Wanted::Whatever => notes.push(line),
            }
        }
        Ok(Found { toolchain: Some(Self { compiler, archs: able }), notes })
    }

    /// The compiler's name and version.
    pub fn name(&self) -> String {
        self.compiler.name()
    }

    /// The jobs of `variants`, in their order; includes are relative to `csrc`.
    ///
    /// # Errors
    /// An included file cannot be read.
    pub fn jobs<'a>(
        &self,
        csrc: &Path,
        variants: impl Iterator<Item = (&'a Kernel, &'a Variant)>,
    ) -> Result<Vec<Job<'a>>, Error> {
        let mut sources = Sources::new(csrc);
        let project = match self.compiler {
            Compiler::Nvrtc(_) => String::new(),
            Compiler::Nvcc(_) => {
                let file = csrc.join("CMakeLists.txt");
                std::fs::read_to_string(&file).map_err(Error::io(&file))?
            }
        };
        let mut jobs = Vec::new();
        for (kernel, variant) in variants {
            let unit = cuda::unit(kernel, variant);
            for &arch in self.archs.iter().filter(|arch| variant.archs.contains(arch)) {
                let settings = [&self.compiler.identity(), &self.compiler.flags(arch).join(" "), &project];
                let key = sources.key(&unit, &settings.map(String::as_str))?;
                jobs.push(Job { kernel, variant, arch, key, unit: unit.clone() });
            }
        }
        Ok(jobs)
    }

    /// Compiles each job and calls `done` with each cubin. `scratch` is a folder for intermediate files.
    ///
    /// # Errors
    /// The messages of the compiler, if a unit does not compile.
    pub fn compile(&self, csrc: &Path, scratch: &Path, jobs: &[&Job], done: &Done) -> Result<(), Error> {
        match &self.compiler {
            Compiler::Nvrtc(nvrtc) => {
                let compile = |job: &&Job| {
                    let name = &job.variant.name;
                    let mut flags = self.compiler.flags(job.arch);
                    flags.push(format!("--include-path={}", csrc.display()));
                    let cubin = nvrtc.compile(&format!("{name}.cu"), job.kernel.spec.role, &job.unit, &flags);
                    let wrong = |reason| Error::new(&job.kernel.spec.file, format!("{name} on {}: {reason}", job.arch));
                    done(job, &cubin.map_err(wrong)?)
                };
                parallel::map(jobs.iter().collect(), compile).into_iter().collect()
            }
            Compiler::Nvcc(nvcc) => {
                let units: Vec<_> =
                    jobs.iter().map(|job| (job.variant.name.as_str(), job.unit.as_str(), job.arch)).collect();
                let cubins = nvcc.compile(csrc, scratch, &units)?;
                jobs.iter().zip(&cubins).try_for_each(|(job, cubin)| done(job, cubin))
            }
        }
    }
}

impl Compiler {
    fn name(&self) -> String {
        match self {
            Self::Nvrtc(nvrtc) => format!("NVRTC {}", nvrtc.version()),
            Self::Nvcc(nvcc) => format!("nvcc {}", nvcc.version()),
        }
    }

    /// Distinguishes this compiler from every other, for cache keys.
    fn identity(&self) -> String {
        match self {
            // NVRTC does not report a patch level.
            Self::Nvrtc(nvrtc) => format!("{} of {} bytes", self.name(), nvrtc.library_bytes()),
            Self::Nvcc(_) => self.name(),
        }
    }

    fn archs(&self) -> &[Arch] {
        match self {
            Self::Nvrtc(nvrtc) => nvrtc.archs(),
            Self::Nvcc(nvcc) => nvcc.archs(),
        }
    }

    /// The flags that affect the result. Paths are left out, so that a cache serves every checkout. nvcc gets
    /// the same ones from `csrc/CMakeLists.txt`.
    fn flags(&self, arch: Arch) -> Vec<String> {
        vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()]
    }
}

fn wanted(environment: &Environment) -> Result<Wanted, String> {
    for name in ["BURRSTONE_CUDA_ARCHS", "CUDA_COMPUTE_CAP"] {
        let Some(list) = environment.text(name) else { continue };
        return match list.as_str() {
            "all" => Ok(Wanted::All),
            "native" => Ok(Wanted::Native),
            _ => {
                let each = list.split([',', ';', ' ']).filter(|text| !text.is_empty());
                let mut archs =
                    each.map(str::parse).collect::<Result<Vec<Arch>, _>>().map_err(|e| format!("{name}: {e}"))?;
                archs.sort();
                archs.dedup();
                Ok(Wanted::These(archs))
            }
        };
    }
    Ok(Wanted::Whatever)
}

/// The first library that supports all of `archs`, else the one that supports most.
fn nvrtc(environment: &Environment, root: &Path, archs: &[Arch]) -> Result<Compiler, String> {
    let open = |file: std::path::PathBuf| Nvrtc::open(&file).map(Compiler::Nvrtc);
    ablest(discover::nvrtc(environment, root).into_iter().map(open), archs, "found no libnvrtc")
}

fn nvcc(environment: &Environment, root: &Path, archs: &[Arch]) -> Result<Compiler, String> {
    let open = |program: std::path::PathBuf| Nvcc::open(&program, environment).map(Compiler::Nvcc);
    ablest(discover::nvcc(environment, root).into_iter().map(open), archs, "found no nvcc")
}

fn ablest(
    candidates: impl Iterator<Item = Result<Compiler, String>>,
    archs: &[Arch],
    none: &str,
) -> Result<Compiler, String> {
    let mut best: Option<(usize, Compiler)> = None;
    let mut reason = none.to_owned();
    for candidate in candidates {
        match candidate {
            Ok(compiler) => {
                let able = archs.iter().filter(|arch| compiler.archs().contains(arch)).count();
                if best.as_ref().is_none_or(|(most, _)| able > *most) {
                    best = Some((able, compiler));
                }
                if able == archs.len() {
                    break;
                }
            }
            Err(why) => reason = why,
        }
    }
    best.map(|(_, compiler)| compiler).ok_or(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Found, String> {
        let read = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).into());
        Toolchain::find(&Environment::bare(&read), "/nowhere".as_ref())
    }

    #[test]
    fn requested_architectures_are_read() {
        let asked = |variables: &[(&str, &str)]| {
            let read = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).into());
            wanted(&Environment::new(&read))
        };
        assert_eq!(asked(&[]), Ok(Wanted::Whatever));
        assert_eq!(asked(&[("BURRSTONE_CUDA_ARCHS", " all ")]), Ok(Wanted::All));
        assert_eq!(asked(&[("BURRSTONE_CUDA_ARCHS", "native")]), Ok(Wanted::Native));
        let these = Ok(Wanted::These(vec![Arch::ALL[0], Arch::ALL[5]]));
        assert_eq!(asked(&[("BURRSTONE_CUDA_ARCHS", "90a, 70;90")]), these);
        assert_eq!(asked(&[("CUDA_COMPUTE_CAP", "7.0 9.0")]), these);
        assert_eq!(asked(&[("CUDA_COMPUTE_CAP", "80"), ("BURRSTONE_CUDA_ARCHS", "70,90")]), these);
        let error = asked(&[("BURRSTONE_CUDA_ARCHS", "80,81")]).unwrap_err();
        assert!(error.starts_with("BURRSTONE_CUDA_ARCHS: expected an architecture of 70,"), "{error}");
    }

    #[test]
    fn without_a_compiler_there_is_one_line() {
        let found = find(&[("BURRSTONE_CUDA_ARCHS", "all"), ("PATH", "/nowhere")]).unwrap();
        assert!(found.toolchain.is_none());
        assert_eq!(found.notes, ["no CUDA compiler, so no kernels for GPUs: found no libnvrtc; found no nvcc"]);
        let found = find(&[("BURRSTONE_CUDA_COMPILER", "none")]).unwrap();
        assert!(found.toolchain.is_none() && found.notes.is_empty());
    }

    #[test]
    fn a_requested_compiler_must_be_available() {
        let error = find(&[("BURRSTONE_CUDA_COMPILER", "gcc")]).err().unwrap();
        assert!(error.contains("expected nvrtc, nvcc or none, found \"gcc\""), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let no_library = folder.path().join("lib64/libnvrtc.so.12");
        std::fs::create_dir(folder.path().join("lib64")).unwrap();
        std::fs::write(&no_library, "text").unwrap();
        let home = folder.path().to_str().unwrap();
        let toolkit = [("BURRSTONE_CUDA_COMPILER", "nvrtc"), ("CUDA_HOME", home), ("PATH", "/nowhere")];
        // A toolkit in /usr/local would be found as well.
        if let Err(error) = find(&toolkit) {
            assert!(
                error.starts_with("BURRSTONE_CUDA_COMPILER=nvrtc: ") && error.contains("libnvrtc.so.12"),
                "{error}"
            );
        }
    }
}
