//! Opening what `--input` and `--output` name, by its kind: files, pipes, devices, standard streams.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::cli::exit::bad_input;

/// How long the other end of a named pipe may take to open it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a path leads to, symbolic links followed.
pub enum Kind {
    /// Nothing yet.
    Missing,
    File,
    Folder,
    /// A named pipe, or `/dev/fd/N` of one.
    Pipe,
    /// `/dev/null`, a terminal.
    CharDevice,
    /// A disk or a socket.
    Other,
}

impl Kind {
    pub fn of(path: &Path) -> Result<Self> {
        let kind = match fs::metadata(path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(error) => return Err(bad_input(&name(path), "a file", error)),
        };
        Ok(match kind {
            kind if kind.is_file() => Self::File,
            kind if kind.is_dir() => Self::Folder,
            kind if kind.is_fifo() => Self::Pipe,
            kind if kind.is_char_device() => Self::CharDevice,
            _ => Self::Other,
        })
    }

    /// For messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Missing => "no such file",
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::Pipe => "a pipe",
            Self::CharDevice | Self::Other => "a device",
        }
    }
}

/// The name of a path in messages.
pub fn name(path: &Path) -> String {
    path.display().to_string()
}

/// Whether a path stands for a standard stream.
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// A standard stream as a file: unbuffered, and with the metadata of what it is redirected to.
pub fn standard(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

/// Whether both are one file, by whatever path they were opened.
pub fn same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok(a.is_file() && (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

/// Opens a named pipe, which waits for its other end.
pub fn open_pipe(path: &Path, options: &OpenOptions) -> Result<File> {
    let (sender, receiver) = mpsc::channel();
    let (options, owned) = (options.clone(), path.to_owned());
    // A pipe that nobody opens blocks this thread until the program ends.
    thread::spawn(move || sender.send(options.open(owned)));
    match receiver.recv_timeout(PATIENCE) {
        Ok(file) => file.map_err(|error| bad_input(&name(path), "a pipe that can be opened", error)),
        Err(_) => {
            let found = format!("nobody at its other end for {} s", PATIENCE.as_secs());
            Err(bad_input(&name(path), "a pipe with two ends", found))
        }
    }
}
