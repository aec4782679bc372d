//! Runs the program, and provides checkpoints for it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use burrstone::text::Tokenizer;
use serde_json::Value;

use crate::checkpoint::case;

/// The result of a run.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Standard output; the run must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// The JSON object on standard output; the run must have succeeded.
    #[track_caller]
    pub fn json(self) -> Value {
        let out = self.ok();
        assert_eq!(out.lines().count(), 1, "{out}");
        serde_json::from_str(&out).unwrap()
    }

    /// The error message. Asserts this exit code, one line on standard error, and an empty standard output.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.out, "");
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        self.err.strip_prefix("error: ").unwrap().trim_end()
    }
}

/// The program, without network and without the user's hub settings.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burrstone"));
    command.args(args).env("HF_HUB_OFFLINE", "1").env("RUST_BACKTRACE", "1");
    if let Some(kernels) = burrstone_sim_kernels::FILE {
        command.env("BURRSTONE_SIM_KERNELS", kernels);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(args: &[&str]) -> Ran {
    with_input(args, "")
}

/// Runs with `input` on standard input.
pub fn with_input(args: &[&str], input: &str) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // The program may close its input without reading it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Formats ids as `1,2,3`.
pub fn comma(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

const BUILTIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/builtin");

pub fn tokenizer() -> Tokenizer {
    let file = Path::new(BUILTIN).join("tokenizer.json");
    Tokenizer::from_bytes(&file, &std::fs::read(&file).unwrap()).unwrap()
}

/// A checkpoint in a temporary folder.
pub struct Checkpoint(pub tempfile::TempDir);

impl Checkpoint {
    /// The built-in model.
    pub fn builtin() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::copy(Path::new(BUILTIN).join(file), folder.path().join(file)).unwrap();
        }
        Self(folder)
    }

    /// A tiny random model without a tokenizer.
    pub fn golden(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        case(name).write(folder.path());
        Self(folder)
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Edits a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(self.file(name), value.to_string()).unwrap();
    }
}
