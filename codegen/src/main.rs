//! The generator's command line: lists variants, explains exclusions, compiles kernels.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burrstone_codegen::device::{self, Cubin, Progress, Store};
use burrstone_codegen::discover::Environment;
use burrstone_codegen::render::cuda;
use burrstone_codegen::table::aligned;
use burrstone_codegen::toolchain::Toolchain;
use burrstone_codegen::{Arch, Error, Kernel, Tree, host, lists, this_target, write_if_changed};
use clap::{Args, Parser, Subcommand};

/// Burrstone's kernel generator.
///
/// Reads codegen/specs and codegen/probes, and instantiates the templates in csrc.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  burrstone-codegen list rms_norm
  burrstone-codegen pruned
  burrstone-codegen build --archs 80,90a --out /tmp/cubins
  burrstone-codegen report matmul --archs all
  burrstone-codegen check"
)]
struct Cli {
    /// The repository [default: the one in which this program was built].
    #[arg(long, global = true, value_name = "FOLDER")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists variants: name, architectures, and which are fallbacks.
    List(Chosen),
    /// Lists the variants that rules exclude, on which architectures and why.
    Pruned(Chosen),
    /// Prints the translation unit of a variant.
    Unit {
        /// The variant's name, such as rms_norm__bf16_v8_t256.
        variant: String,
    },
    /// Compiles cubins, to inspect or measure them.
    Build(Compile),
    /// Prints each cubin's resources and the instructions of its main loop. Fails if one exceeds its gate, or does not
    /// have the instructions of its specification.
    Report(Compile),
    /// Compiles kernels for the simulator to a shared object. Tests use it instead of their own kernels if
    /// BURRSTONE_SIM_KERNELS names it: a kernel is changed and tested without building anything else.
    Simulator {
        #[command(flatten)]
        chosen: Chosen,
        /// The shared object [default: target/sim/kernels.so].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// A list for the compiler's -fsanitize=, such as address,undefined.
        #[arg(long, value_name = "LIST", default_value = "")]
        sanitize: String,
    },
    /// Updates the lists of kernels in src, tests and benches. Needed after a specification was added or removed.
    Lists,
    /// Generates src/kernels/abi.rs from csrc/abi. Needs the feature `bindings` and libclang (LIBCLANG_PATH).
    Bindings,
    /// Fails unless the specifications are valid and src/kernels/abi.rs matches csrc/abi.
    Check,
}

#[derive(Args)]
struct Chosen {
    /// Kernels, probes or variants [default: all].
    names: Vec<String>,
}

#[derive(Args)]
struct Compile {
    #[command(flatten)]
    chosen: Chosen,
    /// Architectures such as 70,80,90a, or all, or native [default: that of the GPU, else all].
    #[arg(long, value_name = "LIST", env = "BURRSTONE_CUDA_ARCHS")]
    archs: Option<String>,
    /// nvrtc or nvcc [default: the first one found].
    #[arg(long, value_name = "NAME", env = "BURRSTONE_CUDA_COMPILER")]
    compiler: Option<String>,
    /// The folder for the cubins: <OUT>/<architecture>/<variant>.cubin [default: target/cubins].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    let (text, errors) = match run(&Cli::parse()) {
        Ok(text) => (text, Vec::new()),
        Err(errors) => (String::new(), errors),
    };
    // A closed pipe is no error: `list | head`.
    let _ = std::io::stdout().write_all(text.as_bytes());
    errors.iter().for_each(|error| eprintln!("error: {error}"));
    if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The command's output.
fn run(cli: &Cli) -> Result<String, Vec<String>> {
    let tree = cli.root.as_deref().map_or_else(Tree::own, Tree::at);
    match &cli.command {
        Command::List(chosen) => Ok(list(&chosen.from(&tree)?)),
        Command::Pruned(chosen) => Ok(pruned(&chosen.from(&tree)?)),
        Command::Unit { variant } => unit(&tree.kernels().map_err(one)?, variant),
        Command::Build(compile) => compile.run(&tree, place),
        Command::Report(compile) => compile.run(&tree, |cubins, _| Ok(device::report(cubins))),
        Command::Simulator { chosen, out, sanitize } => {
            simulator(&tree, &chosen.from(&tree)?, out.as_deref(), sanitize)
        }
        Command::Lists => write_lists(&tree),
        Command::Bindings => write_if_changed(&tree.bindings(), &bindings(&tree)?).map(|()| String::new()).map_err(one),
        Command::Check => check(&tree),
    }
}

fn list(kernels: &[Kernel]) -> String {
    let rows: Vec<_> = kernels
        .iter()
        .flat_map(|kernel| &kernel.variants)
        .map(|variant| {
            [variant.name.clone(), words(&variant.archs), if variant.fallback { "fallback" } else { "" }.into()]
        })
        .collect();
    aligned(&rows, 3)
}

fn pruned(kernels: &[Kernel]) -> String {
    let pruned = kernels.iter().flat_map(|kernel| &kernel.pruned);
    let rows: Vec<_> = pruned.map(|p| [p.name.clone(), words(&p.archs), p.why.clone()]).collect();
    aligned(&rows, 3)
}

fn unit(kernels: &[Kernel], name: &str) -> Result<String, Vec<String>> {
    let mut variants = kernels.iter().flat_map(Kernel::pairs);
    match variants.find(|(_, variant)| variant.name == name) {
        Some((kernel, variant)) => Ok(cuda::unit(kernel, variant)),
        None => Err(vec![format!("expected one of the variants that `list` prints, found {name:?}")]),
    }
}

fn simulator(tree: &Tree, kernels: &[Kernel], out: Option<&Path>, sanitize: &str) -> Result<String, Vec<String>> {
    let folder = tree.root().join("target/sim");
    let compiler =
        host::Compiler::find(tree, &this_target(), &this_target(), sanitize).map_err(|reason| vec![reason])?;
    let objects = compiler.objects(tree, kernels, &folder).map_err(one)?;
    let out = out.map_or_else(|| folder.join("kernels.so"), Path::to_owned);
    compiler.shared_object(&objects, &out).map_err(one)?;
    Ok(format!("{}\n", out.display()))
}

fn write_lists(tree: &Tree) -> Result<String, Vec<String>> {
    for (file, text) in lists::lists(tree, &tree.kernels().map_err(one)?).map_err(one)? {
        write_if_changed(&file, &text).map_err(one)?;
    }
    Ok(String::new())
}

fn words(archs: &[Arch]) -> String {
    archs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn check(tree: &Tree) -> Result<String, Vec<String>> {
    tree.kernels().map_err(one)?;
    let file = tree.bindings();
    let committed = std::fs::read_to_string(&file).map_err(|e| vec![format!("{}: {e}", file.display())])?;
    let generated = bindings(tree)?;
    if let Some(line) = first_difference(&committed, &generated) {
        let again = "cargo run -p burrstone-codegen --features bindings -- bindings";
        return Err(vec![format!("{}:{line}: not what csrc/abi says; write it anew with `{again}`", file.display())]);
    }
    Ok(String::new())
}

/// The first line, counted from one, in which two texts differ.
fn first_difference(a: &str, b: &str) -> Option<usize> {
    if a == b {
        return None;
    }
    let same = a.split('\n').zip(b.split('\n')).take_while(|(a, b)| a == b).count();
    Some(same + 1)
}

#[cfg(feature = "bindings")]
fn bindings(tree: &Tree) -> Result<String, Vec<String>> {
    burrstone_codegen::bindings::bindings(tree).map_err(one)
}

#[cfg(not(feature = "bindings"))]
fn bindings(_: &Tree) -> Result<String, Vec<String>> {
    Err(vec!["this needs the feature bindings: cargo run -p burrstone-codegen --features bindings -- …".to_owned()])
}

impl Chosen {
    fn from(&self, tree: &Tree) -> Result<Vec<Kernel>, Vec<String>> {
        let mut kernels = tree.kernels().map_err(one)?;
        let is_named = |name: &String| self.names.contains(name);
        let known = |name: &&String| {
            kernels.iter().any(|k| k.spec.name == **name || k.variants.iter().any(|v| v.name == **name))
        };
        if let Some(name) = self.names.iter().find(|name| !known(name)) {
            let known: Vec<_> = kernels.iter().map(|kernel| kernel.spec.name.as_str()).collect();
            return Err(vec![format!(
                "expected a kernel of {}, or a variant of one, found {name:?}",
                known.join(", ")
            )]);
        }
        for kernel in kernels.iter_mut().filter(|kernel| !self.names.is_empty() && !is_named(&kernel.spec.name)) {
            kernel.variants.retain(|variant| is_named(&variant.name));
            kernel.pruned.clear();
        }
        Ok(kernels)
    }
}

impl Compile {
    fn run(
        &self,
        tree: &Tree,
        finish: impl Fn(&[Cubin], &Path) -> Result<String, Vec<String>>,
    ) -> Result<String, Vec<String>> {
        let kernels = self.chosen.from(tree)?;
        let read = |name: &str| match name {
            "BURRSTONE_CUDA_ARCHS" => self.archs.clone().map(Into::into),
            "BURRSTONE_CUDA_COMPILER" => self.compiler.clone().map(Into::into),
            _ => std::env::var_os(name),
        };
        let environment = Environment::new(&read);
        let found = Toolchain::find(&environment, tree.root()).map_err(|reason| vec![reason])?;
        found.notes.iter().for_each(|note| eprintln!("note: {note}"));
        let toolchain = found.toolchain.ok_or_else(|| vec!["nothing can be compiled".to_owned()])?;
        let out = self.out.clone().unwrap_or_else(|| tree.root().join("target/cubins"));
        let shared = environment.path("BURRSTONE_CUBIN_CACHE").unwrap_or_else(|| out.join("cache"));
        let store = Store { own: &out.join("last"), shared: Some(&shared), scratch: &out.join("nvcc") };
        let tell = |p: Progress| eprintln!("[{}/{}] {} {}", p.done, p.total, p.name, p.arch);
        eprintln!("{}", toolchain.name());
        let cubins =
            device::build(&toolchain, tree, kernels.iter().flat_map(Kernel::pairs), store, &tell).map_err(one)?;
        let text = finish(&cubins, &out)?;
        let mut over = device::over_budget(&cubins);
        over.extend(device::unlike_the_facts(&cubins));
        if over.is_empty() {
            return Ok(text);
        }
        // The table helps to find the errors.
        eprint!("{text}");
        Err(over.iter().map(Error::to_string).collect())
    }
}

/// Copies each cubin to `<out>/<architecture>/<name>.cubin`.
fn place(cubins: &[Cubin], out: &Path) -> Result<String, Vec<String>> {
    for cubin in cubins {
        let folder = out.join(cubin.arch.to_string());
        let file = folder.join(format!("{}.cubin", cubin.variant.name));
        let placed = std::fs::create_dir_all(&folder).and_then(|()| std::fs::copy(&cubin.file, &file));
        placed.map_err(|e| vec![format!("{}: {e}", file.display())])?;
    }
    Ok(format!("{} cubins in {}\n", cubins.len(), out.display()))
}

fn one(error: Error) -> Vec<String> {
    vec![error.to_string()]
}
