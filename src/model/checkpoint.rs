//! Opens checkpoints: a folder in Hugging Face format, or the built-in model.
//!
//! Opening reads the small files and the headers of the weights. The weights are memory-mapped, not copied, and read
//! only when they are used.

use std::path::{Path, PathBuf};

use crate::device::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Weight, WeightView};

use super::fields::parse_object;
use super::generation_config::GenerationConfig;
use super::lfs_pointer;
use super::quantization::{Quantization, QuantizationReport};
use super::safetensors_file::Entry;
use super::shards::{self, Shard};
use super::spec::ArchSpec;
use super::tensors::{Stored, Tensors, canonical, dtype};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const EMBEDDING: &str = "embed_tokens";
const HEAD: &str = "lm_head";

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    spec: ArchSpec,
    generation: GenerationConfig,
    /// `None` where every weight is dense.
    quantization: Option<Quantization>,
    tensors: Tensors,
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
    /// Weights that it holds: as many as the shape says, unless they are packed. Scales are none.
    pub parameters: u64,
    pub bytes: u64,
    pub file: PathBuf,
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
        let mut tensors = Tensors::new(files.path(""), weights)?;
        let path = files.path(CONFIG);
        let config = parse_object(&path, &files.required(CONFIG)?)?;
        let embedding = tensors.get(&format!("{EMBEDDING}.weight"));
        let stored = embedding.and_then(|stored| dtype(stored.entry.dtype)).or_else(|| tensors.majority());
        let spec = ArchSpec::from_map(&path, &config, stored)?;
        let quantization = Quantization::read(&path, &config, |name| {
            let path = files.path(name);
            files.read(name)?.map(|text| Ok((path.clone(), parse_object(&path, &text)?))).transpose()
        })?;
        if spec.tied_embeddings && tensors.of_module(EMBEDDING).next().is_none() {
            // Tied tensors: the writer stored them under one of their names.
            tensors.rename(HEAD, EMBEDDING);
        }
        let generation_path = files.path(GENERATION_CONFIG);
        let generation = match files.read(GENERATION_CONFIG)? {
            Some(text) => Some(parse_object(&generation_path, &text)?),
            None => None,
        };
        let generation =
            GenerationConfig::read(generation.as_ref().map(|map| (&*generation_path, map)), (&path, &config))?;
        Ok(Self { files, spec, generation, quantization, tensors })
    }

    /// The architecture. Its `tied_embeddings` is what the configuration says: see [`Checkpoint::tied_embeddings`].
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    pub fn generation_config(&self) -> &GenerationConfig {
        &self.generation
    }

    /// How the weights are quantized; `None` where none is.
    pub fn quantization(&self) -> Option<QuantizationReport> {
        self.quantization.as_ref().map(|quantization| quantization.report(&self.tensors))
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
        self.tensors.iter().map(|stored| TensorInfo {
            name: stored.entry.name.clone(),
            stored: stored.entry.dtype.to_string(),
            dtype: dtype(stored.entry.dtype),
            shape: stored.entry.shape.clone(),
            parameters: match &self.quantization {
                Some(quantization) => quantization.parameters(stored),
                None => stored.entry.shape.iter().map(|n| *n as u64).product(),
            },
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
        let Some(stored) = self.tensors.get(name) else {
            let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
            return Err(self.tensors.missing(module, name, format_args!("a tensor of shape {shape:?}")));
        };
        let Entry { name, dtype: stored_dtype, shape: found, .. } = &stored.entry;
        if found != shape {
            return Err(stored.error(format_args!("shape {shape:?}"), format_args!("{found:?}")));
        }
        let Some(dtype) = dtype(*stored_dtype) else {
            return Err(stored.error("dtype BF16, F16 or F32", stored_dtype));
        };
        stored.mark_used();
        Ok(WeightView { name: name.clone(), dtype, shape: found.clone(), data: stored.data.clone() })
    }

    /// The weight `[n, k]` of a linear layer or of the embedding, whose tensors have names that begin with `name`.
    ///
    /// # Errors
    /// A tensor is missing, has another shape or dtype, or a value that cannot be.
    pub fn weight(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        let coded = self.quantization.as_ref().map(|quantization| quantization.weight(&self.tensors, name, shape));
        match coded.transpose()?.flatten() {
            Some(coded) => Ok(Weight::Coded(coded)),
            None => self.tensor(&format!("{name}.weight"), &shape).map(Weight::Dense),
        }
    }

    /// Whether the output projection is the embedding table. As in `transformers`, the configuration decides unless the
    /// weights contain a different output projection; then both are compared.
    pub fn tied_embeddings(&self) -> bool {
        if !self.spec.tied_embeddings {
            return false;
        }
        let head: Vec<_> = self.tensors.of_module(HEAD).collect();
        let is_stored = |part: &str, head: &Stored| {
            self.tensors.get(&format!("{EMBEDDING}.{part}")).is_some_and(|table| {
                table.entry.dtype == head.entry.dtype
                    && table.entry.shape == head.entry.shape
                    && table.data[..] == head.data[..]
            })
        };
        let tied = head.iter().all(|(part, stored)| is_stored(part, stored));
        if tied {
            head.iter().for_each(|(_, stored)| stored.mark_used());
        }
        tied
    }

    /// Fails at the first tensor that was never requested, unless it is known to change nothing.
    ///
    /// # Errors
    /// A tensor would be ignored.
    pub fn finish(&self) -> Result<()> {
        match self.tensors.unused() {
            None => Ok(()),
            Some(stored) => {
                let expected = format!("no such tensor in a {} model with this configuration", self.spec.model_type);
                Err(stored.error(expected, format_args!("{} {:?}", stored.entry.dtype, stored.entry.shape)))
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
        self.tensors.iter().try_for_each(Stored::check_finite)
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
