//! Opens checkpoints: a folder in Hugging Face format, or the built-in model.
//!
//! Opening reads the small files and the headers of the weights. The weights are memory-mapped, not copied, and read
//! only when they are used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::Dtype;

use crate::device::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::WeightView;

use super::fields::parse_object;
use super::finite;
use super::generation_config::GenerationConfig;
use super::lfs_pointer;
use super::safetensors_file::Entry;
use super::shards::{self, Shard};
use super::spec::ArchSpec;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    spec: ArchSpec,
    generation: GenerationConfig,
    /// By [`canonical`] name.
    tensors: BTreeMap<String, Stored>,
}

/// The source of a checkpoint's files.
#[derive(Debug)]
enum Files {
    Folder(PathBuf),
    #[cfg(feature = "builtin-model")]
    Builtin,
}

/// A tensor's metadata.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// As the file spells it.
    pub name: String,
    /// As safetensors spells it, `"BF16"` say.
    pub stored: String,
    /// The dtype, if kernels support it.
    pub dtype: Option<DType>,
    pub shape: Vec<usize>,
    pub bytes: u64,
    pub file: PathBuf,
}

#[derive(Debug)]
struct Stored {
    file: Arc<Path>,
    entry: Entry,
    data: Bytes,
    asked: AtomicBool,
}

impl Checkpoint {
    /// Opens a folder that holds `config.json` and safetensors weights, in one file or in shards with their index.
    ///
    /// # Errors
    /// A file is missing, malformed or contradicts another; see [`ArchSpec::from_config`] for `config.json`.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such folder");
            return Err(Error::io(folder, source));
        }
        let files = Files::Folder(folder.to_owned());
        // A missing configuration is the more useful error, so it comes before those about weights.
        files.required(CONFIG)?;
        Self::assemble(files, shards::map(folder)?)
    }

    /// The built-in model.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; not with the files this crate is published with.
    #[cfg(feature = "builtin-model")]
    pub fn builtin() -> Result<Self> {
        let name = "model.safetensors";
        let weights = Shard::new(Files::Builtin.path(name), Files::Builtin.required(name)?)?;
        Self::assemble(Files::Builtin, vec![weights])
    }

    fn assemble(files: Files, weights: Vec<Shard>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for Shard { path, bytes, entries } in weights {
            let file: Arc<Path> = path.into();
            for entry in entries {
                let name = canonical(&entry.name).to_owned();
                // The header's ranges lie within the file.
                let data = bytes.slice(entry.range.clone()).unwrap_or_else(|| Bytes::from_static(&[]));
                let stored = Stored { file: file.clone(), entry, data, asked: AtomicBool::new(false) };
                if let Some(first) = tensors.insert(name.clone(), stored) {
                    let found = format!("another in {}", first.file.display());
                    return Err(Error::checkpoint(&file, name, "one tensor of this name", found));
                }
            }
        }

        let path = files.path(CONFIG);
        let config = parse_object(&path, &files.required(CONFIG)?)?;
        let named = tensors.get(EMBEDDING).and_then(|stored: &Stored| dtype(stored.entry.dtype));
        let spec = ArchSpec::from_map(&path, &config, named.or_else(|| majority(&tensors)))?;
        if spec.tied_embeddings && !tensors.contains_key(EMBEDDING) {
            // Tied tensors: the writer stored them under one of their names.
            if let Some(table) = tensors.remove(HEAD) {
                tensors.insert(EMBEDDING.to_owned(), table);
            }
        }
        let generation_path = files.path(GENERATION_CONFIG);
        let generation = match files.read(GENERATION_CONFIG)? {
            Some(text) => Some(parse_object(&generation_path, &text)?),
            None => None,
        };
        let generation =
            GenerationConfig::read(generation.as_ref().map(|map| (&*generation_path, map)), (&path, &config))?;
        Ok(Self { files, spec, generation, tensors })
    }

    /// The architecture. Its `tied_embeddings` is what the configuration says: see [`Checkpoint::tied_embeddings`].
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Path of a file of the checkpoint, for messages; it need not exist. The built-in model's files have their paths
    /// in the source tree.
    pub fn path(&self, name: &str) -> PathBuf {
        self.files.path(name)
    }

    /// The bytes of a small optional file, such as `tokenizer.json` or `chat_template.jinja`.
    ///
    /// # Errors
    /// The file exists but cannot be read.
    pub fn file(&self, name: &str) -> Result<Option<Bytes>> {
        self.files.read(name)
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        self.tensors.values().map(|stored| TensorInfo {
            name: stored.entry.name.clone(),
            stored: stored.entry.dtype.to_string(),
            dtype: dtype(stored.entry.dtype),
            shape: stored.entry.shape.clone(),
            bytes: stored.data.len() as u64,
            file: stored.file.to_path_buf(),
        })
    }

    /// The mapped tensor `name`, which must have this shape. A leading `model.` may be missing, here or in the file:
    /// checkpoints of the bare decoder lack it.
    ///
    /// # Errors
    /// There is no such tensor, or its shape or dtype differs.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<WeightView> {
        let Some(stored) = self.tensors.get(canonical(name)) else {
            let file = self.tensors.values().next().map_or_else(|| self.files.path(""), |any| any.file.to_path_buf());
            let expected = format!("a tensor of shape {shape:?}");
            return Err(Error::checkpoint(&file, name, expected, "no such tensor"));
        };
        let Entry { name, dtype: stored_dtype, shape: found, .. } = &stored.entry;
        if found != shape {
            let (expected, found) = (format!("shape {shape:?}"), format!("{found:?}"));
            return Err(Error::checkpoint(&stored.file, name.as_str(), expected, found));
        }
        let Some(dtype) = dtype(*stored_dtype) else {
            return Err(Error::checkpoint(&stored.file, name.as_str(), "dtype BF16, F16 or F32", stored_dtype));
        };
        stored.asked.store(true, Ordering::Relaxed);
        Ok(WeightView { name: name.clone(), dtype, shape: found.clone(), data: stored.data.clone() })
    }

    /// Whether the output projection is the embedding table. As in `transformers`, the configuration decides unless the
    /// weights contain a different output projection; then both are compared.
    pub fn tied_embeddings(&self) -> bool {
        if !self.spec.tied_embeddings {
            return false;
        }
        match (self.tensors.get(EMBEDDING), self.tensors.get(HEAD)) {
            (Some(table), Some(head)) => {
                let same = table.entry.dtype == head.entry.dtype
                    && table.entry.shape == head.entry.shape
                    && table.data[..] == head.data[..];
                head.asked.store(same, Ordering::Relaxed);
                same
            }
            _ => true,
        }
    }

    /// Fails at the first tensor that was never requested by [`Checkpoint::tensor`], unless it is known to be unused.
    ///
    /// # Errors
    /// A tensor would be ignored.
    pub fn finish(&self) -> Result<()> {
        let unused = |(name, stored): &(&String, &Stored)| {
            // Old Llama checkpoints store the rotary frequencies, which follow from the configuration.
            !stored.asked.load(Ordering::Relaxed) && !name.ends_with("rotary_emb.inv_freq")
        };
        match self.tensors.iter().find(unused) {
            None => Ok(()),
            Some((_, Stored { file, entry, .. })) => {
                let expected = format!("no such tensor in a {} model with this configuration", self.spec.model_type);
                let found = format!("{} {:?}", entry.dtype, entry.shape);
                Err(Error::checkpoint(file, entry.name.as_str(), expected, found))
            }
        }
    }

    /// Checks that this checkpoint has the given architecture and the same tensors by name, stored dtype and shape.
    ///
    /// # Errors
    /// The first difference.
    pub(crate) fn check_like(&self, spec: &ArchSpec, tensors: &[TensorInfo]) -> Result<()> {
        let config = self.files.path(CONFIG);
        if self.spec != *spec {
            let (expected, found) = (format!("{spec:?}"), format!("{:?}", self.spec));
            return Err(Error::checkpoint(&config, "architecture", expected, found));
        }
        let own: Vec<TensorInfo> = self.tensors().collect();
        let find = |among: &[TensorInfo], name: &str| {
            let found = among.iter().find(|tensor| canonical(&tensor.name) == canonical(name));
            found.map_or_else(|| "no such tensor".to_owned(), |tensor| format!("{} {:?}", tensor.stored, tensor.shape))
        };
        for TensorInfo { name, .. } in tensors.iter().chain(&own) {
            let (expected, found) = (find(tensors, name), find(&own, name));
            if expected != found {
                let file = own.iter().find(|tensor| tensor.name == *name).map_or(&config, |tensor| &tensor.file);
                return Err(Error::checkpoint(file, name.as_str(), expected, found));
            }
        }
        Ok(())
    }

    /// Reads every weight and fails at the first that is infinite or not a number.
    ///
    /// # Errors
    /// Such a weight exists; the error names tensor and index.
    pub fn check_finite(&self) -> Result<()> {
        for Stored { file, entry, data, .. } in self.tensors.values() {
            let Some(dtype) = dtype(entry.dtype) else { continue };
            if let Some((index, value)) = finite::first_not_finite(dtype, data) {
                let mut index = index;
                let mut place = vec![0; entry.shape.len()];
                for (at, size) in place.iter_mut().zip(&entry.shape).rev() {
                    (*at, index) = (index % size, index / size);
                }
                return Err(Error::checkpoint(file, format!("{}{place:?}", entry.name), "a finite number", value));
            }
        }
        Ok(())
    }
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            #[cfg(feature = "builtin-model")]
            Self::Builtin => Path::new("src/builtin").join(name),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                match std::fs::read(&path) {
                    Ok(bytes) => {
                        lfs_pointer::refuse(&path, &bytes)?;
                        Ok(Some(bytes.into()))
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(Error::io(&path, e)),
                }
            }
            #[cfg(feature = "builtin-model")]
            Self::Builtin => {
                Ok(BUILTIN.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Bytes::from_static(bytes)))
            }
        }
    }

    fn required(&self, name: &str) -> Result<Bytes> {
        self.read(name)?.ok_or_else(|| Error::checkpoint(&self.path(name), "(whole file)", "a file", "no such file"))
    }
}

#[cfg(feature = "builtin-model")]
const BUILTIN: &[(&str, &[u8])] = &[
    (CONFIG, include_bytes!("../builtin/config.json")),
    (GENERATION_CONFIG, include_bytes!("../builtin/generation_config.json")),
    ("tokenizer.json", include_bytes!("../builtin/tokenizer.json")),
    ("model.safetensors", include_bytes!("../builtin/model.safetensors")),
];

fn canonical(name: &str) -> &str {
    name.strip_prefix("model.").unwrap_or(name)
}

fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        _ => None,
    }
}

/// The dtype of most bytes.
fn majority(tensors: &BTreeMap<String, Stored>) -> Option<DType> {
    let bytes =
        |wanted| tensors.values().filter(|s| dtype(s.entry.dtype) == Some(wanted)).map(|s| s.data.len()).sum::<usize>();
    [DType::F32, DType::BF16, DType::F16]
        .into_iter()
        .max_by_key(|dtype| bytes(*dtype))
        .filter(|dtype| bytes(*dtype) > 0)
}
