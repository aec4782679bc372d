//! AWQ in the layout of its `gemm` kernels: four bits, eight outputs to a word, zero points.

use safetensors::Dtype;

use crate::error::Result;
use crate::model::fields::Fields;
use crate::ops::{ActivationBits, Code, CodedWeight, Scales, Zeros};

use super::layer::{Layer, zeros};
use super::packing::{transpose, transpose_nibbles};
use super::{Format, Layers, Rule, group_size, refuse, skipped};

/// The field of a word that holds each of its eight outputs.
const POSITIONS: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Awq {
    /// Inputs per group; `None` is all.
    pub group: Option<usize>,
}

pub(super) fn read(fields: &Fields) -> Result<Vec<Rule>> {
    let (bits, group) = if fields.raw("w_bit").is_some() { ("w_bit", "q_group_size") } else { ("bits", "group_size") };
    let found = fields.size(bits, 0..=64)?;
    if found.is_some_and(|bits| bits != 4) {
        return Err(fields.error(bits, "4, the bits of AWQ", found.unwrap_or_default()));
    }
    for key in ["version", "checkpoint_format", "format"] {
        let version = fields.text(key)?.unwrap_or("gemm").to_lowercase();
        if version != "gemm" {
            return Err(fields.error(key, "gemm (other layouts of AWQ are not read)", version));
        }
    }
    refuse(fields, "backend", &["llm-awq"], "another layout than llm-awq's")?;
    let mut rules = skipped(fields, &["modules_to_not_convert"])?;
    rules.push(Rule::new(Layers::Linear, Format::Awq(Awq { group: group_size(fields, group)? })));
    Ok(rules)
}

impl Awq {
    pub fn load(&self, layer: &Layer) -> Result<CodedWeight> {
        let [n, k] = layer.shape;
        if !n.is_multiple_of(8) {
            return Err(layer.bad_shape("qweight", "a multiple of 8 outputs"));
        }
        let columns = self.group.unwrap_or(k).min(k);
        let groups = k.div_ceil(columns);
        let qweight = layer.tensor("qweight", &[Dtype::I32], &[k, n / 8])?;
        let scales = layer.tensor("scales", &[Dtype::F16, Dtype::BF16, Dtype::F32], &[groups, n])?;
        // Newer exporters leave out zero points that are all in the middle.
        let zeros = match layer.find("qzeros") {
            None => Zeros::All(8),
            Some(qzeros) => {
                qzeros.check(&[Dtype::I32], &[&[groups, n / 8]])?;
                let packed = transpose_nibbles(&qzeros.data, groups, n, POSITIONS);
                let row = groups.div_ceil(2);
                let zero = |row: &[u8], group: usize| row[group / 2] >> (group % 2 * 4) & 0xf;
                zeros(packed.chunks(row).flat_map(|row| (0..groups).map(move |group| zero(row, group))).collect())
            }
        };
        Ok(CodedWeight {
            name: qweight.entry.name.clone(),
            shape: layer.shape,
            code: Code::U4,
            codes: transpose_nibbles(&qweight.data, k, n, POSITIONS).into(),
            scales: Scales { rows: 1, columns, values: transpose(&scales.scales()?, groups, n), zeros },
            order: None,
            activations: ActivationBits::Full,
        })
    }
}
