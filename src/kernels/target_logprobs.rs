//! Log-probabilities of given tokens.

use super::abi::target_logprobs_args;
use super::call::{Call, Check};
use super::sample::check_vocab;
use super::tables::TARGET_LOGPROBS;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("target_logprobs");

/// `out[i] = log softmax(logits[i])[targets[i]]`; NaN if a row contains NaN or +∞ or only −∞. The same bits as
/// [`Sample`](super::Sample)'s log-probabilities.
#[derive(Debug)]
pub struct TargetLogprobs<'a> {
    /// f32 `[rows, vocab]`.
    pub logits: Slice<'a>,
    /// u32 `[rows]`, each below `vocab`.
    pub targets: Slice<'a>,
    /// f32 `[rows]`.
    pub out: SliceMut<'a>,
    /// At most 2²⁰.
    pub vocab: usize,
}

impl TargetLogprobs<'_> {
    /// Checks shapes, picks a variant for the device and enqueues it.
    ///
    /// # Errors
    /// Shapes or dtypes do not match; this build has no variant for the device; the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = TARGET_LOGPROBS.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// Launches a given variant, for tuning and tests.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    pub fn launch_variant(self, stream: &Stream, variant: &'static Variant) -> Result<()> {
        let rows = self.targets.len();
        CHECK.dtype("targets", self.targets.dtype(), &[DType::U32])?;
        CHECK.slice("logits", self.logits, DType::F32, &[rows, self.vocab])?;
        CHECK.slice("out", self.out.as_slice(), DType::F32, &[rows])?;
        let args = target_logprobs_args {
            logits: self.logits.address(),
            targets: self.targets.address(),
            out: self.out.address(),
            rows: CHECK.rows("targets", rows)?,
            vocab: check_vocab(CHECK, self.vocab)?,
        };
        if rows == 0 {
            return Ok(());
        }
        let call = Call { kernel: &TARGET_LOGPROBS, key: &[] };
        let shape = format_args!("{rows} rows of {}", self.vocab);
        // SAFETY: the slices are device memory of the sizes checked above; that targets are below `vocab` is the
        // caller's responsibility.
        unsafe { call.launch(stream, variant, [rows, 1, 1], &args, &shape) }
    }
}
