//! Finds CUDA compilers: by environment variables, on `PATH`, in the usual folders and in Python's packages. Runs
//! nothing.

use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Environment variables; empty ones count as missing.
pub struct Environment<'a> {
    read: &'a dyn Fn(&str) -> Option<OsString>,
    /// Where toolkits are usually installed.
    usual: &'a Path,
}

impl<'a> Environment<'a> {
    pub fn new(read: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self { read, usual: Path::new("/usr/local") }
    }

    /// An environment without toolkits.
    #[cfg(test)]
    pub fn bare(read: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self { read, usual: Path::new("/nowhere") }
    }

    /// The variables on which compilers, architectures and the cache depend. `PATH` and `HOME` are left out: they
    /// differ between editors and shells, which would make each other's builds stale.
    pub const VARIABLES: [&'static str; 11] = [
        "BURRSTONE_CUDA_COMPILER",
        "BURRSTONE_CUDA_ARCHS",
        "BURRSTONE_CUBIN_CACHE",
        "CUDA_COMPUTE_CAP",
        "CUDA_HOME",
        "CUDA_PATH",
        "NVCC",
        "NVCC_CCBIN",
        "CMAKE",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
    ];

    pub fn text(&self, name: &str) -> Option<String> {
        (self.read)(name).map(|value| value.to_string_lossy().trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        (self.read)(name).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// The folders of `PATH`.
    pub fn search_path(&self) -> Vec<PathBuf> {
        self.path("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
    }
}

/// The NVRTC libraries found, best guess first.
pub fn nvrtc(environment: &Environment, root: &Path) -> Vec<PathBuf> {
    let toolkits = toolkits(environment);
    let of_toolkit = toolkits
        .iter()
        .flat_map(|toolkit| ["lib64", "lib", "targets/x86_64-linux/lib", "bin"].map(|l| toolkit.join(l)));
    let of_python = python_packages(environment, root).into_iter().flat_map(|packages| {
        ["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib", "nvidia/cuda_nvrtc/bin"].map(|l| packages.join(l))
    });
    let found = of_toolkit.chain(of_python).filter_map(|folder| newest(&folder, is_nvrtc)).collect();
    distinct(found)
}

/// The nvcc programs found, best guess first.
pub fn nvcc(environment: &Environment, root: &Path) -> Vec<PathBuf> {
    let own = environment.path("NVCC");
    let of_toolkit = toolkits(environment).into_iter().map(|toolkit| toolkit.join("bin"));
    let of_python = python_packages(environment, root).into_iter().map(|packages| packages.join("nvidia/cu13/bin"));
    let programs = of_toolkit.chain(of_python).map(|folder| folder.join(format!("nvcc{EXE_SUFFIX}")));
    distinct(own.into_iter().chain(programs).filter(|program| program.is_file()).collect())
}

/// CUDA toolkit folders: from variables, from an nvcc on the path, and the usual ones, newest first.
fn toolkits(environment: &Environment) -> Vec<PathBuf> {
    let mut found: Vec<_> = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| environment.path(name)).collect();
    let on_path = environment.search_path().into_iter().map(|folder| folder.join(format!("nvcc{EXE_SUFFIX}")));
    for nvcc in environment.path("NVCC").into_iter().chain(on_path).filter(|nvcc| nvcc.is_file()) {
        let real = nvcc.canonicalize().unwrap_or(nvcc);
        found.extend(real.ancestors().nth(2).map(Path::to_owned));
    }
    found.push(environment.usual.join("cuda"));
    let mut others = entries(environment.usual, |name| name.starts_with("cuda-"));
    others.sort_by_key(|path| std::cmp::Reverse(numbers(path)));
    found.extend(others);
    found.retain(|toolkit| toolkit.is_dir());
    distinct(found)
}

/// Folders of Python packages: of the active environment, of the repository's `.venv`, and of the python3 on the path.
fn python_packages(environment: &Environment, root: &Path) -> Vec<PathBuf> {
    let mut prefixes: Vec<_> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| environment.path(name)).collect();
    prefixes.push(root.join(".venv"));
    for folder in environment.search_path() {
        let python = folder.join(format!("python3{EXE_SUFFIX}"));
        if python.is_file() {
            prefixes.extend(folder.parent().map(Path::to_owned));
            prefixes.extend(python.canonicalize().ok().and_then(|real| Some(real.ancestors().nth(2)?.to_owned())));
        }
    }
    prefixes.extend(environment.path("HOME").map(|home| home.join(".local")));
    let mut found = Vec::new();
    for prefix in distinct(prefixes) {
        for lib in ["lib", "lib64", "local/lib"] {
            let mut versions = entries(&prefix.join(lib), |name| name.starts_with("python3"));
            versions.sort_by_key(|path| std::cmp::Reverse(numbers(path)));
            found.extend(versions.iter().flat_map(|v| [v.join("site-packages"), v.join("dist-packages")]));
        }
        found.push(prefix.join("Lib/site-packages"));
    }
    found.retain(|packages| packages.join("nvidia").is_dir());
    distinct(found)
}

fn is_nvrtc(name: &str) -> bool {
    let unix = name.starts_with("libnvrtc.so");
    let windows = name.starts_with("nvrtc64_") && name.ends_with(".dll");
    (unix || windows) && !name.contains("alt")
}

/// The file in `folder` with the highest version in its name, among those that `wanted` accepts.
fn newest(folder: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    entries(folder, wanted).into_iter().max_by_key(|path| numbers(path))
}

fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        all.filter(|entry| wanted(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The numbers in a path's last part, which order versions: 12.10 is above 12.9.
fn numbers(path: &Path) -> Vec<u32> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Removes paths that lead to the same file as an earlier one.
fn distinct(paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut seen = Vec::new();
    let mut kept = Vec::new();
    for path in paths {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !seen.contains(&real) {
            seen.push(real);
            kept.push(path);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    /// The NVRTC and nvcc files found below `root`, with some variables set to folders in it.
    fn find(root: &Path, variables: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let variables: Vec<_> = variables.iter().map(|(name, inside)| (*name, root.join(inside))).collect();
        let read = |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, path)| path.clone().into());
        let environment = Environment { read: &read, usual: &root.join("usual") };
        let inside = |paths: Vec<PathBuf>| -> Vec<String> {
            paths.iter().filter_map(|path| Some(path.strip_prefix(root).ok()?.to_str()?.to_owned())).collect()
        };
        (inside(nvrtc(&environment, root)), inside(nvcc(&environment, root)))
    }

    #[test]
    fn compilers_are_found_in_the_usual_places() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        for file in [
            "toolkit/bin/nvcc",
            "toolkit/lib64/libnvrtc.so.12",
            "toolkit/lib64/libnvrtc.so.13",
            "toolkit/lib64/libnvrtc.alt.so.13",
            "toolkit/lib64/libnvrtc-builtins.so.13.0",
            "venv/bin/python3",
            "venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "venv/lib/python3.11/site-packages/nvidia/cu13/bin/nvcc",
        ] {
            touch(&root.join(file));
        }
        let toolkit = (vec!["toolkit/lib64/libnvrtc.so.13".to_owned()], vec!["toolkit/bin/nvcc".to_owned()]);
        assert_eq!(find(&root, &[("CUDA_HOME", "toolkit")]), toolkit);
        assert_eq!(find(&root, &[("CUDA_HOME", "toolkit"), ("CUDA_PATH", "toolkit/.")]), toolkit);
        assert_eq!(find(&root, &[("NVCC", "toolkit/bin/nvcc")]), toolkit);
        assert_eq!(find(&root, &[("PATH", "toolkit/bin")]), toolkit);
        let python = find(&root, &[("PATH", "venv/bin")]);
        assert_eq!(python.0, ["venv/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"]);
        assert_eq!(python.1, ["venv/lib/python3.11/site-packages/nvidia/cu13/bin/nvcc"]);
        assert_eq!(find(&root, &[("VIRTUAL_ENV", "venv")]), python);
        assert_eq!(find(&root, &[("CUDA_HOME", "toolkit"), ("VIRTUAL_ENV", "venv")]).0.len(), 2);
        assert_eq!(find(&root, &[("PATH", "nowhere"), ("CUDA_HOME", "nowhere")]), (vec![], vec![]));
        touch(&root.join(".venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"));
        assert_eq!(find(&root, &[]).0, [".venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13"]);
        for version in ["12.9", "12.10"] {
            touch(&root.join(format!("usual/cuda-{version}/bin/nvcc")));
        }
        assert_eq!(find(&root, &[]).1, ["usual/cuda-12.10/bin/nvcc", "usual/cuda-12.9/bin/nvcc"]);
        touch(&root.join("usual/cuda/bin/nvcc"));
        assert_eq!(find(&root, &[]).1[0], "usual/cuda/bin/nvcc");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(numbers("/usr/local/cuda-12.10".as_ref()) > numbers("/usr/local/cuda-12.9".as_ref()));
    }
}
