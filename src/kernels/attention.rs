//! What the two kernels of attention over the paged cache share.

use super::check::{own, small};
use crate::device::{Kernel, Slice, SliceMut, Stream, Value, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// One layer of the paged KV cache, to read.
#[derive(Clone, Copy, Debug)]
pub struct KvCache<'a> {
    /// `[pages, kv_heads, page_size, head_dim]`: the dtype of the queries, e4m3, e5m2 or i8.
    pub keys: Slice<'a>,
    /// The same.
    pub values: Slice<'a>,
    pub scales: KvScales<'a>,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Tokens of a page: a power of two up to 128.
    pub page_size: usize,
}

/// What the cache's numbers are multiplied by.
#[derive(Clone, Copy, Debug)]
pub enum KvScales<'a> {
    /// By one factor each: of an fp8 cache; 1 where the cache is not quantized.
    Whole { key: f32, value: f32 },
    /// By a factor for each token and head, f32 `[pages, kv_heads, page_size]`: of an i8 cache.
    Token { keys: Slice<'a>, values: Slice<'a> },
}

impl KvScales<'_> {
    /// The cache holds the numbers themselves.
    pub const ONE: Self = Self::Whole { key: 1.0, value: 1.0 };
}

/// How queries meet keys.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A query at position `p` sees positions `p - window + 1 ..= p`; `None` sees all up to `p`.
    pub window: Option<usize>,
}

/// The longest head.
const MAX_HEAD_DIM: usize = 256;
const MAX_PAGE_SIZE: usize = 128;

/// What both kernels are given, checked: fields of their argument structs.
pub(super) struct Checked {
    pub query: u64,
    pub out: u64,
    pub keys: u64,
    pub values: u64,
    pub key_scales: u64,
    pub value_scales: u64,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub page_bits: u32,
    pub window: u32,
    pub scale: f32,
    pub soft_cap: f32,
    pub key_scale: f32,
    pub value_scale: f32,
    /// What decides the kernel's keys.
    dtype: DType,
    cache: DType,
}

impl Checked {
    /// # Errors
    /// The shapes or types do not belong together; names kernel and field.
    pub fn new(
        op: &'static str,
        query: Slice<'_>,
        out: &SliceMut<'_>,
        cache: &KvCache<'_>,
        heads: usize,
        scoring: Scoring,
    ) -> Result<Self> {
        let refuse = |field, expected: String, found: String| Err(Error::operator(op, field, expected, found));
        let &KvCache { keys, values, scales, kv_heads, head_dim, page_size } = cache;
        if !matches!(query.dtype(), DType::BF16 | DType::F16) {
            return refuse("query", "bf16 or f16".to_owned(), query.dtype().to_string());
        }
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return refuse("heads", format!("a multiple of {kv_heads}"), heads.to_string());
        }
        if head_dim == 0 || head_dim > MAX_HEAD_DIM {
            return refuse("head_dim", format!("1 to {MAX_HEAD_DIM}"), head_dim.to_string());
        }
        if !page_size.is_power_of_two() || page_size > MAX_PAGE_SIZE {
            return refuse("page_size", format!("a power of two up to {MAX_PAGE_SIZE}"), page_size.to_string());
        }
        let row = heads * head_dim;
        if query.len() % row != 0 {
            return refuse("query", format!("rows of {row}"), format!("{} elements", query.len()));
        }
        if (out.dtype(), out.len()) != (query.dtype(), query.len()) {
            let expected = format!("{} elements of {}", query.len(), query.dtype());
            return refuse("out", expected, format!("{} of {}", out.len(), out.dtype()));
        }
        let quantized = matches!(keys.dtype(), DType::E4M3 | DType::E5M2 | DType::I8);
        if !quantized && keys.dtype() != query.dtype() {
            return refuse("keys", format!("{}, e4m3, e5m2 or i8", query.dtype()), keys.dtype().to_string());
        }
        let page = kv_heads * page_size * head_dim;
        if keys.len() % page != 0 {
            return refuse("keys", format!("pages of {page}"), format!("{} elements", keys.len()));
        }
        if (values.dtype(), values.len()) != (keys.dtype(), keys.len()) {
            let expected = format!("{} elements of {}", keys.len(), keys.dtype());
            return refuse("values", expected, format!("{} of {}", values.len(), values.dtype()));
        }
        let tokens = keys.len() / head_dim;
        let (key_scales, value_scales, key_scale, value_scale) = match scales {
            KvScales::Whole { key, value } if keys.dtype() != DType::I8 => (0, 0, key, value),
            KvScales::Token { keys: of_keys, values: of_values } if keys.dtype() == DType::I8 => {
                for (field, scales) in [("key_scales", of_keys), ("value_scales", of_values)] {
                    if (scales.dtype(), scales.len()) != (DType::F32, tokens) {
                        let found = format!("{} of {}", scales.len(), scales.dtype());
                        return refuse(field, format!("{tokens} elements of f32"), found);
                    }
                }
                (of_keys.address(), of_values.address(), 1.0, 1.0)
            }
            KvScales::Whole { .. } => {
                return refuse("scales", "one for each token".to_owned(), "one for all".to_owned());
            }
            KvScales::Token { .. } => {
                let found = format!("one for each token of {}", keys.dtype());
                return refuse("scales", "one for all".to_owned(), found);
            }
        };
        if !scoring.scale.is_finite() {
            return refuse("scale", "a finite number".to_owned(), scoring.scale.to_string());
        }
        if let Some(cap) = scoring.soft_cap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
            return refuse("soft_cap", "a finite number above 0".to_owned(), cap.to_string());
        }
        if scoring.window == Some(0) {
            return refuse("window", "at least 1".to_owned(), "0".to_owned());
        }
        Ok(Self {
            query: query.address(),
            out: out.address(),
            keys: keys.address(),
            values: values.address(),
            key_scales,
            value_scales,
            heads: small(op, "heads", heads)?,
            kv_heads: small(op, "kv_heads", kv_heads)?,
            head_dim: small(op, "head_dim", head_dim)?,
            page_bits: page_size.trailing_zeros(),
            // A window beyond every position hides nothing.
            window: scoring.window.map_or(0, |window| u32::try_from(window).unwrap_or(0)),
            scale: scoring.scale,
            soft_cap: scoring.soft_cap.unwrap_or(0.0),
            key_scale,
            value_scale,
            dtype: query.dtype(),
            cache: keys.dtype(),
        })
    }

    fn key(&self) -> [(&'static str, Value); 3] {
        let laid_out_for = if self.head_dim <= 128 { 128 } else { 256 };
        [
            ("dtype", Value::Text(self.dtype.name())),
            ("cache", Value::Text(self.cache.name())),
            ("head_dim", Value::Int(laid_out_for)),
        ]
    }

    /// The device's variant.
    pub fn pick(&self, kernel: &'static Kernel, stream: &Stream) -> Result<&'static Variant> {
        kernel.pick(stream.arch(), &self.key())
    }

    /// # Errors
    /// The variant is of other types or for shorter heads.
    pub fn check(&self, kernel: &'static Kernel, variant: &'static Variant) -> Result<()> {
        let [dtype, cache, _] = self.key();
        let long_enough = variant.int("head_dim").is_some_and(|most| self.head_dim <= most);
        own(kernel, variant)?;
        if long_enough && [dtype, cache].iter().all(|(axis, value)| variant.value(axis) == Some(*value)) {
            return Ok(());
        }
        let expected = format!("one for {} queries, {} keys, heads of {}", self.dtype, self.cache, self.head_dim);
        Err(Error::operator(kernel.name, "variant", expected, variant.name))
    }
}
