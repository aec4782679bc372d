//! Reads the requests of a batch, from a file or a pipe, once.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::files::{self, Kind};
use super::lines::RequestLine;
use crate::cli::exit::bad_input;

/// A byte order mark in UTF-8, which some editors write first.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub struct Input {
    /// To tell whether the output is the same file.
    pub file: File,
    pub requests: Vec<RequestLine>,
    /// What is wrong with the lines that are not requests. They do not keep the others from being answered.
    pub errors: Vec<anyhow::Error>,
}

impl Input {
    /// Reads a file, a pipe, or standard input for `-`. Lines without anything but white space are skipped.
    pub fn read(path: &Path) -> Result<Self> {
        let (name, file) = open(path)?;
        let mut reader = BufReader::new(&file);
        let (mut requests, mut errors, mut lines) = (Vec::new(), Vec::new(), HashMap::new());
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if reader.read_until(b'\n', &mut line).with_context(|| name.clone())? == 0 {
                break;
            }
            let text = if number == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line) } else { &line };
            if text.trim_ascii().is_empty() {
                continue;
            }
            let field = format!("{name}: line {number}");
            match RequestLine::parse(text) {
                Ok(request) => match lines.get(&request.custom_id) {
                    Some(first) => {
                        let found = format!("{:?}, as in line {first}", request.custom_id);
                        errors.push(bad_input(&field, "a custom_id of its own", found));
                    }
                    None => {
                        lines.insert(request.custom_id.clone(), number);
                        requests.push(request);
                    }
                },
                Err((expected, found)) => errors.push(bad_input(&field, expected, found)),
            }
        }
        drop(reader);
        Ok(Self { file, requests, errors })
    }
}

fn open(path: &Path) -> Result<(String, File)> {
    if files::is_standard(path) {
        return Ok(("standard input".to_owned(), files::standard(io::stdin())?));
    }
    let name = files::name(path);
    let file = match Kind::of(path)? {
        Kind::File => File::open(path).map_err(|error| bad_input(&name, "a file that can be read", error))?,
        Kind::Pipe => files::open_pipe(path, OpenOptions::new().read(true))?,
        other => return Err(bad_input(&name, "a file or a pipe of requests", other.describe())),
    };
    Ok((name, file))
}
