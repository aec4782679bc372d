//! Compiles kernels for this machine's processor, for the simulator.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::expand::Kernel;
use crate::render::cuda;
use crate::sources::Sources;
use crate::{Error, Tree, parallel, write_if_changed};

/// A C++ compiler and its flags for simulated kernels.
#[derive(Debug)]
pub struct Compiler {
    tool: cc::Tool,
    version: String,
}

impl Compiler {
    /// The C++ compiler for `target`: `CXX`, or the system's. `sanitize` is a list for `-fsanitize=`, or empty.
    ///
    /// # Errors
    /// One line: why there is none.
    pub fn find(tree: &Tree, target: &str, host: &str, sanitize: &str) -> Result<Self, String> {
        let mut build = cc::Build::new();
        build.cargo_metadata(false).cargo_warnings(false).cpp(true).std("c++17").target(target).host(host);
        // Warnings are errors, because a kernel with a warning here may not compile for some GPU.
        build.warnings(true).extra_warnings(true).warnings_into_errors(true).debug(!sanitize.is_empty());
        // Line numbers in faults name the file relative to the repository.
        build.opt_level(2).flag(format!("-fmacro-prefix-map={}=csrc", tree.csrc().display()));
        build.flag("-fno-exceptions").flag("-fno-rtti").define("BURRSTONE_SIM", None).include(tree.csrc());
        if !sanitize.is_empty() {
            build.flag(format!("-fsanitize={sanitize}")).flag("-fno-sanitize-recover=all");
            build.flag("-fno-omit-frame-pointer");
        }
        let tool = build.try_get_compiler().map_err(|e| one_line(&e.to_string()))?;
        if tool.is_like_msvc() {
            return Err(format!("expected g++ or clang++, found {}", tool.path().display()));
        }
        let version = Command::new(tool.path()).arg("--version").output();
        let version = version.map_err(|e| format!("{}: {e}", tool.path().display()))?;
        Ok(Self { tool, version: String::from_utf8_lossy(&version.stdout).into_owned() })
    }

    /// Compiles all variants of each kernel, and a table of them, to objects in `out`. Objects compiled from the same
    /// sources are reused.
    ///
    /// # Errors
    /// A unit does not compile, or a file cannot be read or written.
    pub fn objects(&self, tree: &Tree, kernels: &[Kernel], out: &Path) -> Result<Vec<PathBuf>, Error> {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        let mut sources = Sources::new(&tree.csrc());
        let command = format!("{:?}", self.tool.to_command());
        let settings = [command.as_str(), self.version.as_str()];
        let mut units = Vec::new();
        for (name, text) in texts(kernels) {
            let object = out.join(format!("{name}-{}.o", &sources.key(&text, &settings)?[..16]));
            let unit = out.join(format!("{name}.cpp"));
            write_if_changed(&unit, &text)?;
            units.push((unit, object));
        }
        let objects: Vec<_> = units.iter().map(|(_, object)| object.clone()).collect();
        units.retain(|(_, object)| !object.exists());
        parallel::map(units, |(unit, object)| self.compile(&unit, &object)).into_iter().collect::<Result<(), _>>()?;
        Ok(objects)
    }

    /// Archives `objects` to a library in `out` and tells cargo to link it. For build scripts.
    ///
    /// # Errors
    /// The archiver is missing or fails.
    pub fn link(&self, objects: &[PathBuf], out: &Path) -> Result<(), Error> {
        let mut library = cc::Build::new();
        library.cpp(true).out_dir(out).objects(objects);
        library.try_compile("burrstone_sim_kernels").map_err(|e| Error::new(out, one_line(&e.to_string())))
    }

    /// Links `objects` to the shared object `out`, which the simulator can load.
    ///
    /// # Errors
    /// The linker fails, or `out` cannot be written.
    pub fn shared_object(&self, objects: &[PathBuf], out: &Path) -> Result<(), Error> {
        let mut command = self.tool.to_command();
        // Kernels must call the functions of their own object, not those of the same name in the program.
        run(command.args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(out).args(objects), out)
    }

    fn compile(&self, unit: &Path, object: &Path) -> Result<(), Error> {
        let partial = object.with_extension("partial");
        let mut command = self.tool.to_command();
        // All units are linked into one program, so helpers of the same name in two kernels need different namespaces.
        let name = unit.file_stem().unwrap_or_default().to_string_lossy();
        run(command.arg(format!("-Dburrstone=burrstone_{name}")).arg("-c").arg(unit).arg("-o").arg(&partial), unit)?;
        std::fs::rename(&partial, object).map_err(Error::io(object))
    }
}

/// The units to compile, by name: those of each kernel's variants, and the table.
fn texts(kernels: &[Kernel]) -> Vec<(String, String)> {
    let mut units = Vec::new();
    for kernel in kernels {
        let name = |i| if i == 0 { String::new() } else { format!("_{i}") };
        let of_kernel = cuda::units(kernel).enumerate();
        units.extend(of_kernel.map(|(i, text)| (format!("kernel_{}{}", kernel.spec.name, name(i)), text)));
    }
    units.push(("table".to_owned(), cuda::table(kernels)));
    units
}

fn run(command: &mut Command, file: &Path) -> Result<(), Error> {
    let output = command.output().map_err(Error::io(file))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(file, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Removes stale objects: those in `out` that are not among `objects`.
///
/// # Errors
/// A file cannot be removed.
pub fn keep_only(out: &Path, objects: &[PathBuf]) -> Result<(), Error> {
    for entry in std::fs::read_dir(out).map_err(Error::io(out))? {
        let path = entry.map_err(Error::io(out))?.path();
        if path.extension().is_some_and(|e| e == "o") && !objects.contains(&path) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
