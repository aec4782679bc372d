//! What to continue: an argument, a file, token ids, standard input, or a default.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use burrstone::{Error, Prompt};
use clap::Args;

use super::exit::bad_input;
use super::output;
use super::values::TokenIds;

/// The built-in model's default prompt.
const DEFAULT: &str = "In the beginning";

/// How long to wait for a silent pipe before using [`DEFAULT`].
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct PromptArgs {
    /// Text to continue [default: standard input, if piped, without its last line end; otherwise, with the built-in
    /// model, "In the beginning"]
    prompt: Option<String>,

    /// Read the prompt from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,

    /// Token ids instead of text; the only kind of prompt for a checkpoint without a tokenizer
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    token_ids: Option<TokenIds>,
}

impl PromptArgs {
    /// The prompt; `builtin` where the built-in model is asked.
    pub fn resolve(self, builtin: bool, quiet: bool) -> Result<Prompt> {
        let text = match (self.prompt, self.prompt_file, self.token_ids) {
            (Some(text), ..) => text,
            (_, Some(file), _) => read_file(&file)?,
            (.., Some(TokenIds(ids))) => return Ok(Prompt::Tokens(ids)),
            (None, None, None) => match piped(builtin)? {
                Some(text) => text,
                None if builtin => {
                    if !quiet {
                        output::note(format_args!("no prompt given: continuing {DEFAULT:?}"));
                    }
                    DEFAULT.to_owned()
                }
                None => {
                    let expected = "a PROMPT, --prompt-file, --token-ids or text on standard input";
                    return Err(bad_input("prompt", expected, "none"));
                }
            },
        };
        if text.is_empty() {
            return Err(bad_input("prompt", "a text", "an empty one"));
        }
        Ok(Prompt::Text(text))
    }
}

/// Reads a file, or standard input for `-`.
pub fn read_file(file: &Path) -> Result<String> {
    let bytes = if file == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        bytes
    } else {
        std::fs::read(file).map_err(|source| Error::Io { path: file.to_owned(), source })?
    };
    text(file, bytes)
}

fn text(file: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let found = format!("other bytes at {}", e.utf8_error().valid_up_to());
        bad_input(&file.display().to_string(), "UTF-8 text", found)
    })
}

/// Text on standard input if it is a pipe or file with content. With `impatient`, a silent pipe counts as empty,
/// because programs that start others often leave one open.
fn piped(impatient: bool) -> Result<Option<String>> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut first = vec![0; 4096];
        let started = io::stdin().lock().read(&mut first).map(|n| {
            first.truncate(n);
            first
        });
        // The other side may have gone on without.
        let _ = sender.send(started);
    });
    let first = if impatient { receiver.recv_timeout(PATIENCE).ok() } else { receiver.recv().ok() };
    let Some(first) = first else { return Ok(None) };
    let mut bytes = match first {
        Ok(bytes) => bytes,
        // Standard input is closed, or a folder.
        Err(_) => return Ok(None),
    };
    if !bytes.is_empty() {
        io::stdin().lock().read_to_end(&mut bytes)?;
    }
    let text = text(Path::new("standard input"), bytes)?;
    // `echo` and here-documents end in one that nobody means.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Some(text.to_owned()).filter(|text| !text.trim().is_empty()))
}
