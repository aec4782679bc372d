//! Arguments of attention: scoring options and masks.

use super::Ops;
use crate::error::{Error, Result};

/// Arguments of [`Ops::attention`].
pub struct Attention<'a, O: Ops> {
    /// `[tokens, heads, head_dim]`.
    pub query: &'a O::Buffer,
    /// Keys and values, those of this batch included.
    pub cache: &'a O::Cache,
    pub layer: usize,
    /// `[tokens, heads, head_dim]`.
    pub out: &'a mut O::Buffer,
    pub heads: usize,
    pub scoring: Scoring<'a, O>,
}

/// How scores are computed in a layer. A query attends to the positions that all of these options and its
/// [`AttentionMask`] allow.
pub struct Scoring<'a, O: Ops> {
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// A query at position `p` sees positions `p - window + 1 ..= p`; `None` sees all up to `p`.
    pub window: Option<usize>,
    /// Chunked attention: a query attends only to positions of its own chunk of this many; `None` is one chunk.
    pub chunk: Option<usize>,
    /// ALiBi slopes, [`Ops::floats`] of `[heads]`: `slope · (key position - query position)` is added to a head's
    /// scores. Not with [`AttentionMask::Branch`].
    pub slopes: Option<&'a O::Vector>,
    /// Attention sinks, [`Ops::floats`] of `[heads]`: an extra score for each head that takes part in the softmax but
    /// has no value.
    pub sinks: Option<&'a O::Vector>,
}

impl<O: Ops> Scoring<'_, O> {
    /// Scores are multiplied by `scale`, without other options.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, soft_cap: None, window: None, chunk: None, slopes: None, sinks: None }
    }

    /// # Errors
    /// A window or chunk has no positions, a cap is not a positive number, or slopes are combined with the masks of a
    /// tree.
    pub(crate) fn check(&self, op: &'static str, has_trees: bool) -> Result<()> {
        if self.slopes.is_some() && has_trees {
            return Err(Error::operator(op, "slopes", "none with a tree", "some"));
        }
        for (field, positions) in [("window", self.window), ("chunk", self.chunk)] {
            if positions == Some(0) {
                return Err(Error::operator(op, field, "at least 1", 0));
            }
        }
        match self.soft_cap {
            Some(cap) if !(cap > 0.0 && cap.is_finite()) => {
                Err(Error::operator(op, "soft_cap", "a finite number above 0", cap))
            }
            _ => Ok(()),
        }
    }
}

/// Which positions a token attends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionMask {
    #[default]
    Causal,
    /// In addition to the causal ones, all positions of `begin..end`, which contains its own, regardless of window and
    /// chunk: an image's tokens, for example. All tokens of the range have the same mask, and no prompt chunk ends
    /// inside it.
    Range { begin: u32, end: u32 },
    /// Tree attention. The sequence's tokens in this batch, at most 64, are nodes of a tree, parents before their
    /// children. The token attends to those whose bits are set, the path from a root to itself, and to all earlier
    /// positions of the cache. For window and chunk its position is that of its depth in the tree; its position in the
    /// batch says where it is in the cache. All tokens of the sequence in this batch have such a mask.
    Branch(u64),
}

/// Tokens of a tree, at most.
const TREE: usize = 64;

impl AttentionMask {
    /// Masks of a span's tokens, of which the first is token `start` of the batch and the last is at position
    /// `kv_len - 1`.
    ///
    /// # Errors
    /// Ranges are cut, overlap or lie elsewhere; branches lack their own node or include later ones.
    pub(crate) fn check(op: &'static str, start: usize, kv_len: usize, masks: &[Self]) -> Result<()> {
        let refuse = |at: usize, expected: String| {
            Err(Error::operator(op, "masks", expected, format!("{:?} at token {}", masks[at], start + at)))
        };
        let first = kv_len - masks.len();
        let is_tree = matches!(masks.first(), Some(Self::Branch(_)));
        if is_tree && masks.len() > TREE {
            return refuse(0, format!("at most {TREE} tokens of a tree, not {}", masks.len()));
        }
        for (at, mask) in masks.iter().enumerate() {
            match *mask {
                Self::Branch(nodes) if is_tree => {
                    let above = nodes ^ 1 << at;
                    let parent = above.checked_ilog2().map(|parent| masks[parent as usize]);
                    if nodes >> at != 1 || above != 0 && parent != Some(Self::Branch(above)) {
                        return refuse(at, "a node's own bit as its highest, and its parent's branch".to_owned());
                    }
                }
                Self::Range { begin, end } if !is_tree => {
                    let (begin, end) = (begin as usize, end as usize);
                    if !(begin..end).contains(&(first + at)) || end > kv_len {
                        return refuse(at, format!("a range of {} that ends by {}", first + at, kv_len));
                    }
                    let own = begin.max(first) - first..end - first;
                    if masks[own].iter().any(|other| other != mask) {
                        return refuse(at, "one range for all tokens in it".to_owned());
                    }
                }
                Self::Causal if !is_tree => {}
                _ => return refuse(at, "branches for all tokens of a span, or for none".to_owned()),
            }
        }
        Ok(())
    }
}
