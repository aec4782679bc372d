//! Weights of linear layers.

use crate::cpu::buffer::{check_dtype, too_large, widen};
use crate::cpu::panels::Panels;
use crate::cpu::pool::Pool;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{self, LinearPart, Weight, WeightView};

/// A block of a linear layer's rows.
pub(crate) struct Block {
    pub(crate) rows: usize,
    /// Row of the matrix where this block begins.
    pub(crate) start: usize,
    /// What products are made with; `None` for a table of embeddings.
    pub(crate) panels: Option<Panels>,
    /// The dense weight as the checkpoint has it, for embeddings; `None` if it is quantized.
    pub(crate) dense: Option<WeightView>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// A linear layer's weight `[n, k]` as blocks of rows.
pub struct Matrix {
    pub(crate) blocks: Vec<Block>,
    n: usize,
    k: usize,
}

impl Matrix {
    /// Packs weights for products, on the pool's threads.
    pub(crate) fn new(pool: &Pool, parts: Vec<LinearPart>) -> Result<Self> {
        const OP: &str = "matrix";
        if parts.is_empty() {
            return Err(Error::operator(OP, "parts", "at least one", "none"));
        }
        let mut k = None;
        let mut start = 0usize;
        let mut blocks = Vec::with_capacity(parts.len());
        for LinearPart { weight, bias } in parts {
            let shape @ [rows, columns] = weight.shape()?;
            if columns == 0 || *k.get_or_insert(columns) != columns {
                let expected = format!("rows of {} elements", k.filter(|&k| k > 0).unwrap_or(1));
                return Err(Error::operator(OP, "shape", expected, format!("{shape:?} in {}", weight.name())));
            }
            let bias = match bias {
                Some(bias) if bias.shape == [rows] => Some(widen(OP, &bias)?),
                Some(bias) => {
                    let found = format!("{:?} in {}", bias.shape, bias.name);
                    return Err(Error::operator(OP, "bias", format!("[{rows}]"), found));
                }
                None => None,
            };
            let coded = match &weight {
                Weight::Coded(weight) => {
                    weight.check()?;
                    Panels::coded(pool, weight)?
                }
                Weight::Dense(_) => None,
            };
            let (panels, dense) = match (coded, weight) {
                (Some(panels), _) => (panels, None),
                (None, Weight::Coded(weight)) => {
                    // f16 rounds least of 16 bits, but its range is small. No code stands for more than 448.
                    let largest = weight.scales.values.iter().fold(0f32, |largest, scale| largest.max(scale.abs()));
                    let dtype = if largest * 448.0 < 65504.0 { DType::F16 } else { DType::F32 };
                    (Panels::dense(pool, &weight.dense(dtype), rows, columns)?, None)
                }
                (None, Weight::Dense(view)) => {
                    check_dtype(OP, view.dtype)?;
                    view.elements(OP)?;
                    (Panels::dense(pool, &view, rows, columns)?, Some(view))
                }
            };
            blocks.push(Block { rows, start, panels: Some(panels), dense, bias });
            start = start.checked_add(rows).ok_or_else(|| too_large("rows", rows))?;
        }
        Ok(Self { blocks, n: start, k: k.unwrap_or_default() })
    }

    /// A matrix for embeddings only: a dense one stays as the checkpoint has it.
    pub(crate) fn table(pool: &Pool, weight: Weight) -> Result<Self> {
        match weight {
            Weight::Dense(view) => {
                let [n, k] = Weight::Dense(view.clone()).shape()?;
                check_dtype("table", view.dtype)?;
                view.elements("table")?;
                let block = Block { rows: n, start: 0, panels: None, dense: Some(view), bias: None };
                Ok(Self { blocks: vec![block], n, k })
            }
            weight => Self::new(pool, vec![LinearPart { weight, bias: None }]),
        }
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// Gate and up projections `[width, k]` of a gated feed-forward layer.
pub struct GatedMatrix(Matrix);

impl GatedMatrix {
    pub(crate) fn new(pool: &Pool, parts: Vec<LinearPart>) -> Result<Self> {
        ops::check_gated(&parts)?;
        Matrix::new(pool, parts).map(Self)
    }

    /// Gates, then what they let through.
    pub(crate) fn stacked(&self) -> &Matrix {
        &self.0
    }

    /// Output features.
    pub fn width(&self) -> usize {
        self.0.n() / 2
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.0.k()
    }
}
