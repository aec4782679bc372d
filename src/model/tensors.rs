//! The tensors of a checkpoint's files: each is used, known to be unneeded, or named in an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::Dtype;

use crate::device::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};

use super::finite;
use super::safetensors_file::Entry;
use super::shards::Shard;

/// All tensors.
#[derive(Debug)]
pub(super) struct Tensors {
    /// By [`canonical`] name.
    by_name: BTreeMap<String, Stored>,
    /// Of the checkpoint, for messages where no file is to blame.
    folder: PathBuf,
}

/// A mapped tensor.
#[derive(Debug)]
pub(super) struct Stored {
    pub file: Arc<Path>,
    pub entry: Entry,
    pub data: Bytes,
    used: AtomicBool,
}

impl Tensors {
    /// # Errors
    /// Two tensors have the same name.
    pub fn new(folder: PathBuf, shards: Vec<Shard>) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        for Shard { path, bytes, entries } in shards {
            let file: Arc<Path> = path.into();
            for entry in entries {
                let name = canonical(&entry.name).to_owned();
                // The header's ranges lie within the file.
                let data = bytes.slice(entry.range.clone()).unwrap_or_else(|| Bytes::from_static(&[]));
                let stored = Stored { file: file.clone(), entry, data, used: AtomicBool::new(false) };
                if let Some(first) = by_name.insert(name.clone(), stored) {
                    let found = format!("another in {}", first.file.display());
                    return Err(Error::checkpoint(&file, name, "one tensor of this name", found));
                }
            }
        }
        Ok(Self { by_name, folder })
    }

    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(canonical(name))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.by_name.values()
    }

    /// The tensors of a module and the rest of their names: `weight`, `weight_scale` and so on.
    pub fn of_module<'a>(&'a self, module: &str) -> impl Iterator<Item = (&'a str, &'a Stored)> {
        let prefix = format!("{}.", canonical(module));
        let len = prefix.len();
        let of_prefix = self.by_name.range(prefix.clone()..).take_while(move |(name, _)| name.starts_with(&prefix));
        of_prefix.map(move |(name, stored)| (&name[len..], stored))
    }

    /// An error about a tensor that is not there.
    pub fn missing(&self, module: &str, name: &str, expected: impl ToString) -> Error {
        let sibling = self.of_module(module).map(|(_, stored)| stored).next();
        let file = sibling.or_else(|| self.iter().next()).map_or(&*self.folder, |stored| &stored.file);
        Error::checkpoint(file, name, expected, "no such tensor")
    }

    /// Gives a module's tensors to another, which has none.
    pub fn rename(&mut self, module: &str, to: &str) {
        let parts: Vec<String> = self.of_module(module).map(|(part, _)| part.to_owned()).collect();
        for part in parts {
            if let Some(stored) = self.by_name.remove(&format!("{}.{part}", canonical(module))) {
                self.by_name.insert(format!("{}.{part}", canonical(to)), stored);
            }
        }
    }

    /// Whether the module's weight is stored as numbers that need no scales.
    pub fn is_dense(&self, module: &str) -> bool {
        self.get(&format!("{module}.weight")).is_some_and(|stored| dtype(stored.entry.dtype).is_some())
    }

    /// The dtype of most bytes, among those of dense tensors.
    pub fn majority(&self) -> Option<DType> {
        let bytes = |wanted| -> usize {
            self.iter().filter(|s| dtype(s.entry.dtype) == Some(wanted)).map(|s| s.data.len()).sum()
        };
        [DType::F32, DType::BF16, DType::F16]
            .into_iter()
            .max_by_key(|dtype| bytes(*dtype))
            .filter(|dtype| bytes(*dtype) > 0)
    }

    /// The first tensor that is neither used nor known to change nothing.
    pub fn unused(&self) -> Option<&Stored> {
        let unused = |(name, stored): &(&String, &Stored)| {
            !stored.used.load(Ordering::Relaxed) && !is_harmless(name, &stored.data)
        };
        self.by_name.iter().find(unused).map(|(_, stored)| stored)
    }
}

impl Stored {
    pub fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    pub fn error(&self, expected: impl ToString, found: impl ToString) -> Error {
        Error::checkpoint(&self.file, self.entry.name.as_str(), expected, found)
    }

    /// An error about the element of that index.
    pub fn error_at(&self, index: usize, expected: impl ToString, found: impl ToString) -> Error {
        let mut index = index;
        let mut place = vec![0; self.entry.shape.len()];
        for (at, size) in place.iter_mut().zip(&self.entry.shape).rev() {
            (*at, index) = (index % size, index / size);
        }
        Error::checkpoint(&self.file, format!("{}{place:?}", self.entry.name), expected, found)
    }

    /// # Errors
    /// The first element that is infinite or not a number.
    pub fn check_finite(&self) -> Result<()> {
        let dtype = match self.entry.dtype {
            Dtype::F8_E4M3 => Some(DType::E4M3),
            Dtype::F8_E5M2 => Some(DType::E5M2),
            other => dtype(other),
        };
        match dtype.and_then(|dtype| finite::first_not_finite(dtype, &self.data)) {
            Some((index, value)) => Err(self.error_at(index, "a finite number", value)),
            None => Ok(()),
        }
    }
}

/// Tensors that change nothing, or that no kernel uses.
fn is_harmless(name: &str, data: &[u8]) -> bool {
    // Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
    name.ends_with("rotary_emb.inv_freq")
        || is_kv_scale(name)
        // Early GPTQ exporters give every layer a bias.
        || name.ends_with(".bias") && data.iter().all(|&byte| byte == 0)
}

/// Scales of an 8-bit KV cache, or of queries and attention weights. The cache's entries are not scaled by them.
pub(super) fn is_kv_scale(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        ".k_scale",
        ".v_scale",
        ".kv_scale",
        ".q_scale",
        ".prob_output_scale",
        ".k_proj.output_scale",
        ".v_proj.output_scale",
    ];
    NAMES.iter().any(|ending| name.ends_with(ending))
}

pub(super) fn canonical(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name)
}

/// The dtypes of dense tensors.
pub(super) fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}
