//! Generates the Rust structs of `csrc/abi/*.h`, with assertions of every size and offset.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use bindgen::callbacks::{DeriveInfo, ParseCallbacks};
use bindgen::{Builder, Formatter, RustEdition, RustTarget};

use crate::{Error, Tree};

const HEADER: &str = "// Generated from csrc/abi: cargo run -p burrstone-codegen --features bindings -- bindings";

/// The expected text of `src/kernels/abi.rs`: the types of every header except the probes'.
///
/// # Errors
/// libclang is missing, or rejects a header.
pub fn bindings(tree: &Tree) -> Result<String, Error> {
    let folder = tree.csrc().join("abi");
    let mut builder = Builder::default()
        // As with NVRTC: without the system's headers, which libclang may not find.
        .clang_args(["-x", "c", "-std=c11", "-D__CUDACC_RTC__", "-fparse-all-comments"])
        .clang_arg(format!("-I{}", tree.csrc().display()))
        .disable_header_comment()
        .raw_line(HEADER)
        .use_core()
        .formatter(Formatter::Rustfmt)
        .rust_target(RustTarget::stable(85, 0).map_err(|e| Error::new(&folder, e.to_string()))?)
        .rust_edition(RustEdition::Edition2024)
        .rustfmt_configuration_file(Some(tree.root().join("rustfmt.toml")))
        .parse_callbacks(Box::new(PlainData));
    for header in headers(&folder)? {
        builder = builder.header(header.display().to_string());
    }
    // bindgen panics if libclang is missing.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let generated = catch_unwind(AssertUnwindSafe(|| builder.generate()));
    std::panic::set_hook(hook);
    match generated {
        Ok(Ok(bindings)) => Ok(with_plain_comments(&bindings.to_string())),
        Ok(Err(error)) => Err(Error::new(&folder, error.to_string())),
        Err(panic) => {
            let reason = panic.downcast_ref::<String>().map_or("bindgen panicked", String::as_str);
            Err(Error::new(&folder, reason.lines().next().unwrap_or_default()))
        }
    }
}

fn headers(folder: &std::path::Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.extension().is_some_and(|e| e == "h") && path.file_stem().is_some_and(|stem| stem != "probe") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Turns `#[doc]` attributes, which bindgen writes, into doc comments.
fn with_plain_comments(text: &str) -> String {
    let plain = |line: &str| {
        let (indent, attribute) = line.split_at(line.len() - line.trim_start().len());
        let words = attribute.strip_prefix("#[doc = \"")?.strip_suffix("\"]")?;
        let lines: Vec<_> = words.split("\\n").collect();
        let plain = lines.iter().all(|line| !line.contains('\\'));
        plain.then(|| lines.iter().map(|line| format!("{indent}///{line}\n")).collect::<String>())
    };
    text.lines().map(|line| plain(line).unwrap_or_else(|| format!("{line}\n"))).collect()
}

/// Marks argument structs as plain data: they have no implicit padding, and any bytes are valid.
#[derive(Debug)]
struct PlainData;

impl ParseCallbacks for PlainData {
    fn add_derives(&self, _: &DeriveInfo<'_>) -> Vec<String> {
        ["bytemuck::Pod", "bytemuck::Zeroable"].map(str::to_owned).into()
    }
}
