//! The CUDA toolkit's compiler, run through `csrc/CMakeLists.txt`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::discover::Environment;
use crate::{Arch, Error, parallel, this_target, write_if_changed};

/// An nvcc, the architectures it compiles for, and the CMake that runs it.
#[derive(Debug)]
pub struct Nvcc {
    program: PathBuf,
    /// `NVCC_CCBIN`: the host compiler, if not nvcc's own choice.
    host_compiler: Option<PathBuf>,
    version: String,
    archs: Vec<Arch>,
}

impl Nvcc {
    /// Reads the version and the architectures of `program`.
    ///
    /// # Errors
    /// One line: it does not run, or there is no CMake that can build cubins.
    pub fn open(program: &Path, environment: &Environment) -> Result<Self, String> {
        let version = said_by(program, "--version")?;
        // "Cuda compilation tools, release 12.9, V12.9.86"
        let version = version.lines().find_map(|line| Some(line.rsplit_once(", V")?.1.trim().to_owned()));
        let version = version.ok_or_else(|| format!("{}: does not tell its version", program.display()))?;
        let codes = said_by(program, "--list-gpu-code")?;
        let known = |arch: &Arch| codes.split_whitespace().any(|code| code == format!("sm_{}", arch.number()));
        let cmake = environment.path("CMAKE").unwrap_or_else(|| "cmake".into());
        let found = said_by(&cmake, "--version").unwrap_or_else(|_| "none".to_owned());
        let found = found.lines().next().unwrap_or_default().trim_start_matches("cmake version ");
        let mut numbers = found.split('.').map_while(|number| number.parse::<u32>().ok());
        if (numbers.next(), numbers.next()) < (Some(3), Some(27)) {
            return Err(format!("nvcc {version} needs cmake 3.27 or newer, found {found}"));
        }
        Ok(Self {
            program: program.to_owned(),
            host_compiler: environment.path("NVCC_CCBIN"),
            version,
            archs: Arch::ALL.into_iter().filter(known).collect(),
        })
    }

    /// The version, such as 13.0.88.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The architectures it can compile for.
    pub fn archs(&self) -> &[Arch] {
        &self.archs
    }

    /// Compiles units, each with its name, text and architecture, in the build folder `scratch`.
    ///
    /// # Errors
    /// A unit does not compile (the compiler has printed why), or a file cannot be read or written.
    pub fn compile(&self, csrc: &Path, scratch: &Path, units: &[(&str, &str, Arch)]) -> Result<Vec<Vec<u8>>, Error> {
        let mut files: BTreeMap<Arch, Vec<(usize, PathBuf)>> = BTreeMap::new();
        let folder = scratch.join("units");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        for (index, (name, text, arch)) in units.iter().enumerate() {
            let file = folder.join(format!("{name}.cu"));
            write_if_changed(&file, text)?;
            files.entry(*arch).or_default().push((index, file));
        }
        let list = scratch.join("units.cmake");
        write_if_changed(&list, &unit_list(&files))?;
        self.run_cmake(csrc, scratch, &list)?;
        let mut cubins = vec![Vec::new(); units.len()];
        for (arch, files) in &files {
            let list = scratch.join(format!("build/cubins_{}.txt", arch.target()));
            let paths = std::fs::read_to_string(&list).map_err(Error::io(&list))?;
            let paths: Vec<_> = paths.lines().map(PathBuf::from).collect();
            if paths.len() != files.len() {
                return Err(Error::new(&list, format!("expected {} cubins, found {}", files.len(), paths.len())));
            }
            for ((index, _), path) in files.iter().zip(&paths) {
                cubins[*index] = std::fs::read(path).map_err(Error::io(path))?;
            }
        }
        Ok(cubins)
    }

    fn run_cmake(&self, csrc: &Path, scratch: &Path, list: &Path) -> Result<(), Error> {
        let mut config = cmake::Config::new(csrc);
        config.out_dir(scratch).profile("Release").always_configure(true).no_build_target(true);
        if std::env::var_os("TARGET").is_none() {
            // Outside a build script cargo does not set these.
            config.target(&this_target()).host(&this_target()).build_arg(format!("-j{}", parallel::cores()));
        }
        config.define("BURRSTONE_UNITS", list).define("CMAKE_CUDA_COMPILER", &self.program);
        if let Some(toolkit) = self.program.ancestors().nth(2) {
            // The nvcc of Python's packages does not find its own libraries when CMake tests it.
            config.define("CMAKE_CUDA_FLAGS", format!("-L{}", toolkit.join("lib").display()));
        }
        if let Some(compiler) = &self.host_compiler {
            config.define("CMAKE_CUDA_HOST_COMPILER", compiler);
        }
        // The cmake crate reports failure only by a panic, after the compiler's own messages.
        let built = catch_unwind(AssertUnwindSafe(|| config.build()));
        built.map(|_| ()).map_err(|_| Error::new(&self.program, "cannot compile a kernel: its messages are above"))
    }
}

fn unit_list(files: &BTreeMap<Arch, Vec<(usize, PathBuf)>>) -> String {
    let archs: Vec<_> = files.keys().map(|arch| arch.target()).collect();
    let mut text = format!("set(BURRSTONE_ARCHS {})\n", archs.join(" "));
    for (arch, files) in files {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "set(BURRSTONE_UNITS_{}", arch.target());
        for (_, file) in files {
            let _ = writeln!(text, "    [[{}]]", file.display());
        }
        text += ")\n";
    }
    text
}

fn said_by(program: &Path, question: &str) -> Result<String, String> {
    let output = Command::new(program).arg(question).output();
    let output = output.map_err(|e| format!("{}: {e}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{} {question}: {}", program.display(), output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
