//! Chooses the next token of each row of logits.

use super::abi::{sample_args, sample_bias, sample_result, sample_row, sample_seen};
use super::attention::aligned;
use super::call::{Call, Check};
use super::tables::SAMPLE;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Mask, SampleRow, Sampled};

const CHECK: Check = Check("sample");

/// The largest vocabulary: sums of that many weights fit the kernel's integers.
const MAX_VOCAB: usize = 1 << 20;

/// Chooses one token per row of logits, without sorting and without the host.
#[derive(Debug)]
pub struct Sample<'a> {
    /// f32 `[rows, vocab]`; penalties, biases and masks are applied in place.
    pub logits: SliceMut<'a>,
    /// u32 `[rows, 16]` and the lists they refer to, from [`SampleWords`]. The kernel also stores original logits in
    /// the lists. Rows are aligned to 8 bytes.
    pub rows: Slice<'a>,
    pub lists: SliceMut<'a>,
    /// u8 `[rows, 16]`, read by [`Sample::results`]. Aligned to 16 bytes.
    pub results: SliceMut<'a>,
    /// At most 2²⁰.
    pub vocab: usize,
}

impl Sample<'_> {
    /// Bytes of a row's result.
    pub const RESULT_BYTES: usize = size_of::<sample_result>();

    /// Checks shapes, picks a variant for the device and enqueues it.
    ///
    /// # Errors
    /// Shapes or dtypes do not match; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = SAMPLE.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let words = size_of::<sample_row>() / 4;
        CHECK.dtype("rows", self.rows.dtype(), &[DType::U32])?;
        if !self.rows.len().is_multiple_of(words) {
            return Err(Error::operator(CHECK.0, "rows", format!("a multiple of {words} elements"), self.rows.len()));
        }
        aligned(CHECK, "rows", self.rows, align_of::<sample_row>())?;
        let rows = self.rows.len() / words;
        CHECK.slice("logits", self.logits.as_slice(), DType::F32, &[rows, self.vocab])?;
        CHECK.dtype("lists", self.lists.dtype(), &[DType::U32])?;
        CHECK.slice("results", self.results.as_slice(), DType::U8, &[rows, Self::RESULT_BYTES])?;
        aligned(CHECK, "results", self.results.as_slice(), Self::RESULT_BYTES)?;
        let args = sample_args {
            logits: self.logits.address(),
            rows: self.rows.address(),
            lists: self.lists.address(),
            results: self.results.address(),
            rows_len: CHECK.rows("rows", rows)?,
            vocab: check_vocab(CHECK, self.vocab)?,
        };
        if rows == 0 {
            return Ok(());
        }
        let call = Call { kernel: &SAMPLE, key: &[] };
        let shape = format_args!("{rows} rows of {}", self.vocab);
        // SAFETY: the slices are device memory of the sizes checked above; the contents of rows and lists are the
        // caller's responsibility.
        unsafe { call.launch(stream, variant, [rows, 1, 1], &args, &shape) }
    }

    /// Decodes the kernel's `results`, row by row.
    ///
    /// # Errors
    /// A row of logits has no softmax or no allowed token; the bytes are not results.
    pub fn results(bytes: &[u8]) -> Result<Vec<Sampled>> {
        let rows = bytes.chunks_exact(Self::RESULT_BYTES).enumerate();
        rows.map(|(row, bytes)| sampled(row, &bytemuck::pod_read_unaligned(bytes))).collect()
    }
}

/// Sampling parameters in the kernel's format.
#[derive(Clone, Debug, Default)]
pub struct SampleWords {
    pub rows: Vec<u32>,
    /// At least one word, so that the upload is not empty.
    pub lists: Vec<u32>,
}

impl SampleWords {
    /// # Errors
    /// A row is invalid for a vocabulary of `vocab` tokens.
    pub fn new(rows: &[SampleRow], vocab: usize) -> Result<Self> {
        let mut words = Self { rows: Vec::new(), lists: vec![0] };
        for row in rows {
            row.check(vocab)?;
            row.check_mask(vocab)?;
            let row = row_words(row, &mut words.lists, 0);
            words.rows.extend_from_slice(bytemuck::cast_slice(&[row]));
        }
        Ok(words)
    }
}

/// Appends a row's lists to `words`; offsets count from word `start`.
pub(super) fn row_words(row: &SampleRow, words: &mut Vec<u32>, start: usize) -> sample_row {
    let mut append = |list: &[u32]| {
        let at = words.len() - start;
        words.extend_from_slice(list);
        at as u32
    };
    let seen = row.penalized().into_iter().map(|(token, generated)| sample_seen { token, generated, logit: 0.0 });
    let seen: Vec<sample_seen> = seen.collect();
    let biases = biases(row);
    // A mask that allows every token takes no words.
    let mask = row.mask.as_ref().map(Mask::words).filter(|words| !words.is_empty());
    sample_row {
        uniform: row.uniform(),
        temperature: row.temperature,
        top_k: u32::try_from(row.top_k).unwrap_or(0),
        top_p: row.top_p,
        min_p: row.min_p,
        typical_p: row.typical_p,
        repetition_penalty: row.repetition_penalty,
        presence_penalty: row.presence_penalty,
        frequency_penalty: row.frequency_penalty,
        seen: append(bytemuck::cast_slice(&seen)),
        seen_len: seen.len() as u32,
        biases: append(bytemuck::cast_slice(&biases)),
        biases_len: biases.len() as u32,
        mask: mask.map_or(u32::MAX, append),
        padding: 0,
    }
}

/// Each biased token once, sorted by id.
fn biases(row: &SampleRow) -> Vec<sample_bias> {
    let mut all = row.logit_bias.clone();
    all.sort_by_key(|(token, _)| *token);
    let same = all.chunk_by(|a, b| a.0 == b.0);
    let one = |same: &[(u32, f32)]| {
        let bias = same.iter().fold(0.0, |sum, (_, bias)| sum + bias);
        sample_bias { token: same[0].0, bias, logit: 0.0 }
    };
    same.map(one).collect()
}

pub(super) fn sampled(row: usize, result: &sample_result) -> Result<Sampled> {
    let &sample_result { token, logprob, status, .. } = result;
    match status {
        0 => Ok(Sampled { token, logprob }),
        1 => {
            let found = format!("{logprob} in row {row}, column {token}");
            Err(Error::operator(CHECK.0, "logits", "finite numbers", found))
        }
        _ => Err(Error::operator(CHECK.0, "mask", "a token that is left", format!("none in row {row}"))),
    }
}

/// The vocabulary's size, as kernels that reduce over it take it.
pub(super) fn check_vocab(check: Check, vocab: usize) -> Result<u32> {
    if vocab == 0 || vocab > MAX_VOCAB {
        return Err(Error::operator(check.0, "vocab", format!("1 to {MAX_VOCAB}"), vocab));
    }
    check.size("vocab", vocab)
}
