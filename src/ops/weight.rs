//! Weights as they come from a checkpoint.

use crate::device::Bytes;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// A tensor as a checkpoint stores it: row-major, little-endian, not necessarily aligned.
#[derive(Clone, Debug)]
pub struct WeightView {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Bytes,
}

impl WeightView {
    /// Elements of the shape.
    ///
    /// # Errors
    /// The data do not have the size of shape and dtype.
    pub(crate) fn elements(&self, op: &'static str) -> Result<usize> {
        let elements = self.shape.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(self.dtype.size()));
        match (elements, bytes) {
            (Some(elements), Some(bytes)) if bytes == self.data.len() => Ok(elements),
            _ => {
                let expected = format!("the bytes of {:?} in {}", self.shape, self.dtype);
                Err(Error::operator(op, "data", expected, format!("{} bytes in {}", self.data.len(), self.name)))
            }
        }
    }
}

/// Checks that `blocks` are a gate and an up projection of the same shape.
pub(crate) fn check_gated(blocks: &[WeightView]) -> Result<()> {
    match blocks {
        [gate, up] if gate.shape == up.shape => Ok(()),
        _ => {
            let found: Vec<String> = blocks.iter().map(|block| format!("{:?}", block.shape)).collect();
            Err(Error::operator("gated_matrix", "blocks", "gate and up, of one shape", found.join(" and ")))
        }
    }
}
