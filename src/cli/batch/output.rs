//! Where answers go. A file that is there already is only continued if all of it is answers to this input.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use burrstone::Error;

use super::files::{self, Kind};
use super::input::Input;
use super::lines::{self, AnswerBody, AnswerLine};
use crate::cli::exit::bad_input;
use crate::cli::output::note;

/// How long the lock of another run is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How every answer begins.
const START: &[u8] = br#"{"id":"batch_req_"#;

/// An output that was looked at and not touched.
pub struct Output<'a> {
    path: &'a Path,
    target: Target,
}

enum Target {
    /// Standard output, a pipe or a device: what was written there before is not known.
    Stream(Option<File>),
    Missing,
    File(Answers),
}

/// A file of answers, locked by this run.
struct Answers {
    file: File,
    done: HashSet<String>,
    /// Bytes of whole lines. What follows is an answer that was cut short.
    whole: u64,
}

/// Takes answers, a line at a time, from many threads.
pub struct Sink {
    path: PathBuf,
    /// `None` after a line failed: nothing may follow half a line.
    file: Mutex<Option<File>>,
}

impl<'a> Output<'a> {
    /// Looks at the output without touching it.
    ///
    /// # Errors
    /// It is the input, is not a file of answers to this input, is written by another run, or cannot be written.
    pub fn inspect(path: &'a Path, input: &Input) -> Result<Self> {
        let name = files::name(path);
        if files::is_standard(path) {
            let file = files::standard(io::stdout())?;
            refuse_input("standard output", &file, input)?;
            return Ok(Self { path, target: Target::Stream(Some(file)) });
        }
        let target = match Kind::of(path)? {
            Kind::Missing => {
                check_parent(path)?;
                Target::Missing
            }
            Kind::Pipe | Kind::CharDevice => Target::Stream(None),
            Kind::File => {
                let unwritable = |found: &dyn std::fmt::Display| bad_input(&name, "a file that can be written", found);
                if fs::metadata(path).is_ok_and(|metadata| metadata.permissions().readonly()) {
                    return Err(unwritable(&"a read-only one"));
                }
                let file = OpenOptions::new().read(true).append(true).open(path).map_err(|error| unwritable(&error))?;
                Target::File(Answers::lock(path, file, input)?)
            }
            other => return Err(bad_input(&name, "a file or a pipe for answers", other.describe())),
        };
        Ok(Self { path, target })
    }

    /// Whether a request has its answer there.
    pub fn has(&self, custom_id: &str) -> bool {
        matches!(&self.target, Target::File(answers) if answers.done.contains(custom_id))
    }

    /// Makes the output ready for more answers: creates it, or cuts an answer that is not whole.
    ///
    /// # Errors
    /// It cannot be written, or another run was faster.
    pub fn open(self, input: &Input) -> Result<Sink> {
        let Self { path, target } = self;
        let file = match target {
            Target::Stream(Some(file)) => file,
            Target::Stream(None) => files::open_pipe(path, OpenOptions::new().write(true))?,
            Target::File(answers) => answers.cut(path)?,
            Target::Missing => {
                let file = OpenOptions::new().read(true).append(true).create(true).open(path);
                let file = file.map_err(|error| bad_input(&files::name(path), "a file that can be created", error))?;
                let answers = Answers::lock(path, file, input)?;
                if !answers.done.is_empty() {
                    let found = "answers of another run, that ended meanwhile: run this one again for the rest";
                    return Err(bad_input(&files::name(path), "a new file", found));
                }
                answers.cut(path)?
            }
        };
        Ok(Sink { path: path.to_owned(), file: Mutex::new(Some(file)) })
    }
}

impl Answers {
    fn lock(path: &Path, file: File, input: &Input) -> Result<Self> {
        let name = files::name(path);
        refuse_input(&name, &file, input)?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A run that was killed keeps its lock until the system has cleared it away.
                Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => thread::sleep(PATIENCE / 20),
                Err(TryLockError::WouldBlock) => {
                    let found = "one that another run has locked";
                    return Err(bad_input(&name, "a file that no other run writes", found));
                }
                // Some network file systems have no locks.
                Err(TryLockError::Error(error)) => {
                    note(format_args!("warning: {name}: cannot be locked ({error}): let no other run write it"));
                    break;
                }
            }
        }
        let (done, whole) = read(&name, &file, input)?;
        Ok(Self { file, done, whole })
    }

    fn cut(self, path: &Path) -> Result<File> {
        let cut = |error| Error::Io { path: path.to_owned(), source: error };
        if self.file.metadata().map_err(cut)?.len() > self.whole {
            self.file.set_len(self.whole).map_err(cut)?;
        }
        Ok(self.file)
    }
}

/// Which requests have their answer in a file, and how many bytes its whole lines are.
fn read(name: &str, file: &File, input: &Input) -> Result<(HashSet<String>, u64)> {
    let mut known: HashSet<&str> = input.requests.iter().map(|request| request.custom_id.as_str()).collect();
    let (mut done, mut whole, mut line) = (HashSet::new(), 0, Vec::new());
    let mut reader = BufReader::new(file);
    for number in 1.. {
        let io = |source| Error::Io { path: name.into(), source };
        let other =
            |found: String| bad_input(&format!("{name}: line {number}"), "an answer to a request of the input", found);
        // A large file of another kind may have no line end: read no more than it takes to see that.
        let start = reader.fill_buf().map_err(io)?;
        if !start.starts_with(START) && !START.starts_with(start) {
            return Err(other("something else, which is left as it is".to_owned()));
        }
        line.clear();
        whole += reader.read_until(b'\n', &mut line).map_err(io)? as u64;
        if line.last() != Some(&b'\n') {
            break;
        }
        let Some(id) = lines::answered(&line) else {
            return Err(other("something else, which is left as it is".to_owned()));
        };
        if !known.remove(id.as_str()) {
            let why = if done.contains(&id) { "a second one to" } else { "one to" };
            return Err(other(format!("{why} {id:?}")));
        }
        done.insert(id);
    }
    let mut unanswered = input.requests.iter().filter(|request| known.contains(request.custom_id.as_str()));
    if !line.is_empty() && !unanswered.any(|request| request.begins_answer(&line)) {
        let expected = "answers to requests of the input, the last perhaps cut short";
        return Err(bad_input(name, expected, "another last line, which is left as it is"));
    }
    Ok((done, whole - line.len() as u64))
}

fn refuse_input(name: &str, output: &File, input: &Input) -> Result<()> {
    match files::same(output, &input.file)? {
        true => Err(bad_input(name, "another file than the input", "the input itself")),
        false => Ok(()),
    }
}

/// Fails where no file can be created, before the model is loaded.
fn check_parent(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let found = match fs::metadata(parent) {
        Ok(metadata) if !metadata.is_dir() => format!("a file at {}", parent.display()),
        Ok(metadata) if metadata.permissions().readonly() => format!("{}, which is read-only", parent.display()),
        Ok(_) => return Ok(()),
        Err(error) => format!("{}: {error}", parent.display()),
    };
    Err(bad_input(&files::name(path), "a file in a folder that can be written", found))
}

impl Sink {
    /// Writes one line. After an error, no other line is written.
    pub fn write(&self, answer: &AnswerLine<AnswerBody>) -> Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = slot.as_mut() else { return Ok(()) };
        let written = file.write_all(&line);
        if written.is_err() {
            *slot = None;
        }
        written.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => source.into(),
            _ => Error::Io { path: self.path.clone(), source }.into(),
        })
    }
}
