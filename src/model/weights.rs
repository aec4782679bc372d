//! Loads a checkpoint's tensors, by name, as the decoder's layers.

use std::cell::Cell;

use crate::error::Result;
use crate::ops::{LinearPart, Ops, Weight};

use super::checkpoint::Checkpoint;
use super::precision::WeightPrecision;
use super::spec::ArchSpec;

pub(super) struct Weights<O: Ops> {
    pub embedding: O::Matrix,
    pub layers: Vec<Layer<O>>,
    pub final_norm: O::Vector,
    /// `None` where the embedding table serves as the output projection.
    pub head: Option<O::Matrix>,
    /// Bytes of weights that every token reads: all but a table of embeddings.
    pub read_bytes: u64,
}

pub(super) struct Layer<O: Ops> {
    pub attention_norm: O::Vector,
    /// Query, key and value projections, stacked.
    pub qkv: O::Matrix,
    pub qk_norm: Option<(O::Vector, O::Vector)>,
    pub output: O::Matrix,
    pub mlp_norm: O::Vector,
    pub gate_up: O::GatedMatrix,
    pub down: O::Matrix,
}

impl<O: Ops> Weights<O> {
    /// Looks up every tensor, checks its shape and uploads it.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or would be unused.
    pub fn load(ops: &O, spec: &ArchSpec, checkpoint: &Checkpoint, precision: WeightPrecision) -> Result<Self> {
        let source = Source { ops, checkpoint, precision, read_bytes: Cell::new(0) };
        let (hidden, inner) = (spec.hidden_size, spec.intermediate_size);
        let (query, key_value) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let mut layers = Vec::new();
        for index in 0..spec.layers {
            let at = |name: &str| format!("model.layers.{index}.{name}");
            layers.push(Layer {
                attention_norm: source.vector(&at("input_layernorm.weight"), hidden)?,
                qkv: source.linear(
                    &[
                        (&at("self_attn.q_proj"), query),
                        (&at("self_attn.k_proj"), key_value),
                        (&at("self_attn.v_proj"), key_value),
                    ],
                    hidden,
                    spec.qkv_bias,
                )?,
                qk_norm: if spec.qk_norm {
                    Some((
                        source.vector(&at("self_attn.q_norm.weight"), spec.head_dim)?,
                        source.vector(&at("self_attn.k_norm.weight"), spec.head_dim)?,
                    ))
                } else {
                    None
                },
                output: source.linear(&[(&at("self_attn.o_proj"), hidden)], query, spec.output_bias)?,
                mlp_norm: source.vector(&at("post_attention_layernorm.weight"), hidden)?,
                gate_up: {
                    let blocks = [(&*at("mlp.gate_proj"), inner), (&*at("mlp.up_proj"), inner)];
                    ops.gated_matrix(source.parts(&blocks, hidden, spec.mlp_bias)?)?
                },
                down: source.linear(&[(&at("mlp.down_proj"), hidden)], inner, spec.mlp_bias)?,
            });
        }
        let shape = [spec.vocab_size, hidden];
        let table = checkpoint.weight("model.embed_tokens", shape)?;
        let (embedding, head) = if checkpoint.tied_embeddings() {
            match precision.head(table.clone())? {
                Weight::Dense(view) => (source.whole(Weight::Dense(view))?, None),
                // Rows are looked up as the checkpoint has them.
                coded => (ops.table(table)?, Some(source.whole(coded)?)),
            }
        } else {
            let head = precision.head(checkpoint.weight("lm_head", shape)?)?;
            (ops.table(table)?, Some(source.whole(head)?))
        };
        let (final_norm, read_bytes) = (source.vector("model.norm.weight", hidden)?, source.read_bytes.get());
        let weights = Self { embedding, layers, final_norm, head, read_bytes };
        checkpoint.finish()?;
        Ok(weights)
    }
}

struct Source<'a, O: Ops> {
    ops: &'a O,
    checkpoint: &'a Checkpoint,
    precision: WeightPrecision,
    read_bytes: Cell<u64>,
}

impl<O: Ops> Source<'_, O> {
    fn vector(&self, name: &str, len: usize) -> Result<O::Vector> {
        self.ops.vector(self.checkpoint.tensor(name, &[len])?)
    }

    /// `blocks`: name without `.weight`, rows.
    fn linear(&self, blocks: &[(&str, usize)], inputs: usize, bias: bool) -> Result<O::Matrix> {
        self.ops.matrix(self.parts(blocks, inputs, bias)?)
    }

    fn whole(&self, weight: Weight) -> Result<O::Matrix> {
        self.count(&weight);
        self.ops.matrix(vec![LinearPart { weight, bias: None }])
    }

    fn count(&self, weight: &Weight) {
        self.read_bytes.set(self.read_bytes.get() + weight.bytes());
    }

    fn parts(&self, blocks: &[(&str, usize)], inputs: usize, bias: bool) -> Result<Vec<LinearPart>> {
        let part = |&(name, rows): &(&str, usize)| {
            let weight = self.precision.layer(self.checkpoint.weight(name, [rows, inputs])?)?;
            self.count(&weight);
            let bias = if bias { Some(self.checkpoint.tensor(&format!("{name}.bias"), &[rows])?) } else { None };
            Ok(LinearPart { weight, bias })
        };
        blocks.iter().map(part).collect()
    }
}
