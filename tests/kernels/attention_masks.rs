//! Masks for attention's tests, and the positions they leave visible.

use burrstone::ops::AttentionMask;
use proptest::prelude::*;

use crate::support::bits;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Masks {
    None,
    /// The last `len` of every `every` positions are an image.
    Images {
        every: usize,
        len: usize,
    },
    /// The queries are nodes of a random tree, drawn from `seed`.
    Tree {
        seed: u64,
    },
}

pub fn any_masks() -> impl Strategy<Value = Masks> {
    let images = (4usize..90, 2usize..30).prop_map(|(every, len)| Masks::Images { every: every + len, len });
    prop_oneof![3 => Just(Masks::None), 2 => images, 2 => any::<u64>().prop_map(|seed| Masks::Tree { seed })]
}

impl Masks {
    /// The mask of the token at `position` of a sequence with `past` tokens before this batch and `total` after it. An
    /// image that extends past `total` does not count yet.
    pub fn of(self, position: usize, past: usize, total: usize) -> AttentionMask {
        match self {
            Self::Images { every, len } => {
                let end = (position / every + 1) * every;
                let is_image = position >= end - len && end <= total;
                if is_image {
                    AttentionMask::Range { begin: (end - len) as u32, end: end as u32 }
                } else {
                    AttentionMask::Causal
                }
            }
            Self::Tree { seed } if position >= past => {
                let mut branch = 0;
                // A node's parent is any node before it, or none.
                let mut node = position - past + 1;
                while node > 0 {
                    branch |= 1 << (node - 1);
                    node = bits(seed, node as u64) as usize % node;
                }
                AttentionMask::Branch(branch)
            }
            _ => AttentionMask::Causal,
        }
    }

    /// A chunk border near `at` that does not split an image.
    pub fn border(self, at: usize) -> usize {
        match self {
            Self::Images { every, len } if at % every > every - len => at / every * every + every - len,
            _ => at,
        }
    }
}

/// The positions that the token at `position` sees, by window, chunk and mask. `past` tokens were there before the
/// batch.
pub fn seen(
    position: usize,
    mask: AttentionMask,
    past: usize,
    window: Option<usize>,
    chunk: Option<usize>,
) -> Vec<usize> {
    // The depth in the sequence of the token at position `p`, if it is an ancestor of this token.
    let place = |p: usize| match mask {
        AttentionMask::Branch(nodes) if p >= past => {
            let is_above = nodes >> (p - past) & 1 == 1;
            is_above.then(|| past + (nodes & (u64::MAX >> (63 - (p - past)))).count_ones() as usize - 1)
        }
        _ => (p <= position).then_some(p),
    };
    let own = place(position).unwrap();
    let is_near = |p: usize| window.is_none_or(|w| p + w > own) && chunk.is_none_or(|chunk| p / chunk == own / chunk);
    let range = match mask {
        AttentionMask::Range { begin, end } => begin as usize..end as usize,
        _ => 0..0,
    };
    (0..range.end.max(position + 1)).filter(|&p| range.contains(&p) || place(p).is_some_and(is_near)).collect()
}
