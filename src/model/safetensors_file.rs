//! Reads one safetensors file: a length, a JSON header, and the tensors.
//!
//! The whole header is validated against the file before any tensor is read.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};

use super::lfs_pointer;

/// Bytes of the header's length, which opens the file.
const PREFIX: usize = 8;
/// The format's own bound.
const MAX_HEADER: usize = 100_000_000;

/// A tensor as the header describes it; `range` counts from the start of the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// Reads the header of a whole file, given as its bytes. The entries come in the order of their data.
pub(super) fn read_header(file: &Path, bytes: &[u8]) -> Result<Vec<Entry>> {
    lfs_pointer::refuse(file, bytes)?;
    let (length, rest) = bytes.split_first_chunk::<PREFIX>().ok_or_else(|| {
        Error::checkpoint(file, "header length", format_args!("{PREFIX} bytes"), format_args!("{} bytes", bytes.len()))
    })?;
    let most = rest.len().min(MAX_HEADER);
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|n| *n <= most).map(|n| &rest[..n]).ok_or_else(|| {
        Error::checkpoint(file, "header length", format_args!("at most {most} bytes"), format_args!("{length}"))
    })?;
    let mut tensors = serde_json::Deserializer::from_slice(header)
        .deserialize_map(HeaderVisitor)
        .map_err(|e| Error::checkpoint(file, "header", "a safetensors header", e))?;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    place(file, tensors, PREFIX + header.len(), rest.len() - header.len())
}

/// Checks that tensors follow each other without gap or overlap, fill `data_len` bytes, and are as long as their
/// shapes say.
fn place(file: &Path, tensors: Vec<(String, TensorInfo)>, base: usize, data_len: usize) -> Result<Vec<Entry>> {
    let mut end = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, TensorInfo { dtype, shape, data_offsets: (from, to) }) in tensors {
        let fail = |expected: String, found: String| Err(Error::checkpoint(file, name.as_str(), expected, found));
        if from != end || to < from {
            return fail(format!("data_offsets that start at {end}"), format!("[{from}, {to}]"));
        }
        if to > data_len {
            return fail(format!("data up to byte {to}"), format!("{data_len} bytes: the file is cut short"));
        }
        let bits = shape.iter().try_fold(dtype.bitsize(), |n, d| n.checked_mul(*d));
        if bits != (to - from).checked_mul(8) {
            let expected = match bits {
                Some(bits) => format!("{} bytes for {dtype} {shape:?}", bits.div_ceil(8)),
                None => "a shape that fits into memory".to_owned(),
            };
            return fail(expected, format!("{} bytes for {dtype} {shape:?}", to - from));
        }
        entries.push(Entry { name, dtype, shape, range: base + from..base + to });
        end = to;
    }
    if end != data_len {
        let found = format!("{data_len} bytes");
        return Err(Error::checkpoint(file, "tensor data", format_args!("{end} bytes, as the header says"), found));
    }
    Ok(entries)
}

/// Collects the header's tensors and refuses duplicate names, which a map would hide.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Vec<(String, TensorInfo)>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        let mut names = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info = map.next_value().map_err(|e| A::Error::custom(format_args!("tensor {name:?}: {e}")))?;
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("tensor {name:?} twice")));
            }
            tensors.push((name, info));
        }
        Ok(tensors)
    }
}
