//! How the program ends: exit codes, and errors on one line.

use std::error::Error as _;
use std::fmt;
use std::io::{self, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

const FAILURE: u8 = 1;
const BAD_INPUT: u8 = 2;
const INTERRUPTED: u8 = 130;

/// Ends the program as after Ctrl-C: without a message.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Ends the program with the exit code of bad input; [`report`] has printed the message.
#[derive(Debug)]
pub struct Reported;

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad input, as reported")
    }
}

impl std::error::Error for Reported {}

/// Bad input, in terms of the command line.
pub fn bad_input(field: &str, expected: impl fmt::Display, found: impl fmt::Display) -> anyhow::Error {
    burrstone::Error::Request { field: field.to_owned(), expected: expected.to_string(), found: found.to_string() }
        .into()
}

/// Runs a command and returns its exit code. A panic is a defect, and ends like any other failure.
pub fn run(command: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        let place = info.location().map_or_else(String::new, |at| format!(" ({}:{})", at.file(), at.line()));
        say(&format!("defect: {}{place}", message.replace('\n', " ")));
    }));
    match panic::catch_unwind(AssertUnwindSafe(command)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => end(&error),
        Err(_) => ExitCode::from(FAILURE),
    }
}

fn end(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        return end_usage(usage);
    }
    if error.is::<Interrupted>() {
        return ExitCode::from(INTERRUPTED);
    }
    if error.is::<Reported>() {
        return ExitCode::from(BAD_INPUT);
    }
    // The reader of our output has had enough (`| head`).
    if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    report(error);
    let input = error.downcast_ref::<burrstone::Error>().is_some_and(burrstone::Error::is_input);
    ExitCode::from(if input { BAD_INPUT } else { FAILURE })
}

/// Writes an error to standard error, on one line.
pub fn report(error: &anyhow::Error) {
    say(&message(error));
}

/// An error on one line.
pub fn message(error: &anyhow::Error) -> String {
    let text = match error.downcast_ref::<burrstone::Error>() {
        // It says its cause itself.
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn end_usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nobody is left to tell when this fails.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { BAD_INPUT } else { 0 })
        }
        _ => {
            say(&usage_message(error));
            ExitCode::from(BAD_INPUT)
        }
    }
}

/// A usage error in the form of all others: field, expected, found.
fn usage_message(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(several)) => Some(several.join(", ")),
        _ => None,
    };
    let expected = match error.kind() {
        ErrorKind::ValueValidation => error.source().map(ToString::to_string),
        ErrorKind::InvalidValue => match context(ContextKind::ValidValue) {
            Some(values) if !values.is_empty() => Some(format!("expected one of {values}")),
            _ => Some("expected a value".to_owned()),
        },
        _ => None,
    };
    match (context(ContextKind::InvalidArg), expected, context(ContextKind::InvalidValue)) {
        (Some(argument), Some(expected), Some(found)) => format!("{argument}: {expected}, found {found:?}"),
        _ => {
            // What clap says above the usage lines.
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let end = ["\n\nUsage:", "\n\nFor more"].iter().filter_map(|s| text.find(s)).min().unwrap_or(text.len());
            // Tips are paragraphs of their own.
            let paragraphs = text[..end].split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
            paragraphs.collect::<Vec<_>>().join("; ")
        }
    }
}

fn say(line: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "error: {line}");
}
