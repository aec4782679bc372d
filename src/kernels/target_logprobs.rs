//! Log-probabilities of given tokens.

use super::abi::target_logprobs_args;
use super::call::{Call, Check};
use super::sample::check_vocab;
use super::tables::TARGET_LOGPROBS;
use crate::device::{Slice, SliceMut, Stream, Variant};
use crate::dtype::DType;
use crate::error::Result;

const CHECK: Check = Check("target_logprobs");

/// `out[i] = log softmax(logits[i])[targets[i]]`; NaN where a row has no softmax, having NaN or +∞ in it or nothing but
/// −∞. The same bits as [`Sample`](super::Sample) gives a token.
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
    /// Checks the shapes, picks the device's variant and enqueues it.
    ///
    /// # Errors
    /// Shapes or types do not belong together, the build has no variant for the device, or the device failed.
    pub fn launch(self, stream: &Stream) -> Result<()> {
        let variant = TARGET_LOGPROBS.pick(stream.arch(), &[])?;
        self.launch_variant(stream, variant)
    }

    /// The same with a variant of the caller's choice, for tuning and tests.
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
        // SAFETY: the slices are device memory of the sizes that were checked above; that targets are in the
        // vocabulary is the caller's promise.
        unsafe { call.launch(stream, variant, [rows, 1, 1], &args, &shape) }
    }
}
