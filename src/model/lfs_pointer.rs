//! Git LFS pointers: the small text files that stand in place of large ones after a clone without Git LFS.

use std::path::Path;

use crate::error::{Error, Result};

/// How every pointer begins.
const START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Fails if `bytes`, the content of `file`, are a pointer.
pub(super) fn refuse(file: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(START) {
        return Ok(());
    }
    let found = "a Git LFS pointer to it; run `git lfs pull` where the model was cloned";
    Err(Error::checkpoint(file, "(whole file)", "the file itself", found))
}
