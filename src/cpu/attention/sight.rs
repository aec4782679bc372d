//! Which positions a token sees.

use std::ops::Range;

use crate::ops::{AttentionMask, Span};

/// What a call says about it: window, chunk, masks of all tokens of the batch (or none).
#[derive(Clone, Copy)]
pub(super) struct Sights<'a> {
    pub window: Option<usize>,
    pub chunk: Option<usize>,
    pub masks: &'a [AttentionMask],
}

/// What one token sees: `seen`, of a tree's nodes these alone.
pub(super) struct Sight {
    pub seen: Range<usize>,
    /// A bit each, from the first position of the batch on; 0 for no tree.
    pub nodes: u64,
}

impl Sights<'_> {
    /// The first position of the window and the chunk of a token at `place`.
    fn first_seen(&self, place: usize) -> usize {
        let in_window = self.window.map_or(0, |window| (place + 1).saturating_sub(window));
        in_window.max(self.chunk.map_or(0, |chunk| place / chunk * chunk))
    }

    fn mask(&self, span: &Span, token: usize) -> AttentionMask {
        self.masks.get(span.start + token).copied().unwrap_or_default()
    }

    /// Of token `token` of a span.
    pub fn of(&self, span: &Span, token: usize) -> Sight {
        let first = span.kv_len - span.len;
        let own = first + token;
        match self.mask(span, token) {
            AttentionMask::Causal => Sight { seen: self.first_seen(own)..own + 1, nodes: 0 },
            AttentionMask::Range { begin, end } => {
                Sight { seen: self.first_seen(own).min(begin as usize)..end as usize, nodes: 0 }
            }
            AttentionMask::Branch(branch) => {
                // A node stands behind those above it: a window may be shorter than its branch.
                let from = self.first_seen(first + branch.count_ones() as usize - 1);
                let nodes = (first..from).fold(branch, |nodes, _| nodes & nodes.wrapping_sub(1));
                Sight { seen: from..own + 1, nodes }
            }
        }
    }

    /// The least and the greatest positions, the latter not included, that tokens `first..end` of a span see: those of
    /// the first and of the last, for neither falls from a token to the next.
    pub fn bounds(&self, span: &Span, tokens: Range<usize>) -> Range<usize> {
        let from = match self.mask(span, tokens.start) {
            // Any node of the tree may be a root.
            AttentionMask::Branch(_) => self.first_seen(span.kv_len - span.len),
            _ => self.of(span, tokens.start).seen.start,
        };
        from..self.of(span, tokens.end - 1).seen.end
    }
}
