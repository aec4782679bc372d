//! Softmax attention over the paged cache: one kernel for prefill and decode.
//!
//! A task is one sequence, one key head and a tile of its tokens; the query heads of the group times those tokens are
//! the rows. Keys and values are walked in tiles at absolute positions, with the online softmax of Milakov and
//! Gimelshein (2018); every [`SPLIT`] positions the state starts afresh and is merged in order into the total. Where
//! tasks are few, each takes one such split, and the last to end merges them: the same sums in the same order. Tiles
//! that a row does not see change nothing in it, to the bit, so chunks and neighbours do not either.

mod online;
mod part;
mod scores;
mod sight;
mod tile;

use std::ops::Range;
use std::sync::atomic::AtomicUsize;

use crate::cpu::buffer::{Pages, Step};
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::Isa;
use crate::cpu::{Cpu, MAX_HEAD_DIM};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Attention, Scoring, Span};
use online::Sizes;
use part::{Call, Part, Plane, Share, Tokens};
use sight::Sights;

const OP: &str = "attention";

/// Positions of a tile: a multiple of every register tile's width and of every vector's lanes.
const TILE: usize = 48;
/// Positions after which the softmax starts afresh.
const SPLIT: usize = 8 * TILE;
/// Rows that a task aims at: enough to pay for converting keys and values, few enough for the first-level cache.
const ROWS: usize = 48;
/// Tasks for each thread, below which a sequence is shared out.
const TASKS: usize = 4;

/// Room that lasts from call to call: one for each thread, and one for the states of splits that are shared out.
pub(crate) struct Scratch {
    rooms: Vec<Pages>,
    states: Pages,
}

impl Scratch {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let rooms = (0..threads).map(|_| Pages::new(0)).collect::<Result<_>>()?;
        Ok(Self { rooms, states: Pages::new(0)? })
    }
}

pub(crate) fn attention(
    isa: Isa,
    pool: &Pool,
    scratch: &mut Scratch,
    step: &Step,
    args: Attention<'_, Cpu>,
) -> Result<()> {
    let Attention { query, cache, layer, out, heads, scoring } = args;
    let Scoring { scale, soft_cap, window, chunk, slopes, sinks } = scoring;
    let (batch, shape) = (step.batch(), cache.shape());
    let (kv_heads, head_dim) = (shape.kv_heads, shape.head_dim);
    cache.check_layer(OP, layer)?;
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
        return Err(Error::operator(OP, "heads", format!("a multiple of {kv_heads}"), heads));
    }
    if head_dim == 0 || head_dim > MAX_HEAD_DIM {
        return Err(Error::operator(OP, "head_dim", format!("1 to {MAX_HEAD_DIM}"), head_dim));
    }
    scoring.check(OP, batch.has_trees())?;
    for (field, factors) in [("slopes", slopes), ("sinks", sinks)] {
        if let Some(found) = factors.map(|factors| factors.0.len()).filter(|&found| found != heads) {
            return Err(Error::operator(OP, field, format!("{heads} elements"), found));
        }
    }
    let sights = Sights { window, chunk, masks: &batch.masks };
    let elements = batch.tokens.len().checked_mul(heads).and_then(|n| n.checked_mul(head_dim));
    query.check(OP, "query", elements)?;
    out.check(OP, "out", elements)?;
    for span in &batch.spans {
        let first = sights.bounds(span, 0..span.len).start / shape.page_size;
        let last = span.kv_len.div_ceil(shape.page_size);
        let pages = span.pages.checked_add(last).and_then(|end| step.page_table().get(span.pages + first..end));
        let Some(pages) = pages else {
            let expected = format!("{last} entries from {} for {} positions", span.pages, span.kv_len);
            return Err(Error::operator(OP, "page_table", expected, format!("{} in all", step.page_table().len())));
        };
        if let Some(page) = pages.iter().find(|&&page| page as usize >= shape.pages) {
            return Err(Error::operator(OP, "page_table", format!("pages below {}", shape.pages), page));
        }
    }

    let group = heads / kv_heads;
    let tokens = (ROWS / group).max(1);
    let [keys, values] = [0, 1].map(|which| {
        let (data, scales) = cache.at(layer, which);
        Plane { data, scales }
    });
    let call = Call {
        query: query.as_ptr(),
        query_dtype: query.dtype(),
        keys,
        values,
        cache_dtype: shape.dtype,
        out: out.as_mut_ptr(),
        out_dtype: out.dtype(),
        page_table: step.page_table(),
        page_size: shape.page_size,
        kv_heads,
        group,
        head_dim,
        sights,
        scale,
        soft_cap,
        slopes: slopes.map(|slopes| slopes.0.as_slice()),
        sinks: sinks.map(|sinks| sinks.0.as_slice()),
    };
    let (room, _) = isa.run(Sizes { rows: group * tokens, head_dim });
    for pages in &mut scratch.rooms {
        pages.reserve(room * 4)?;
    }
    let shares = shares(&call, isa, &batch.spans, tokens, pool.threads());
    let last = shares.last();
    let (tasks, places) = last.map_or((0, 0), |last| (last.tasks.end, last.states.end));
    scratch.states.reserve(places * 4)?;
    let states = Shareable::new(scratch.states.as_mut_ptr().cast::<f32>());
    let paired = isa.has_pairs() && query.dtype() == DType::BF16 && shape.dtype == DType::BF16;
    pool.run_with(&mut scratch.rooms, tasks, &|pages, task| {
        // The last tiles of a prompt see most: they go first, so that the threads end together.
        let task = tasks - 1 - task;
        let Shared { tokens, tasks, states: own, left } = &shares[shares.partition_point(|s| s.tasks.end <= task)];
        let (split, kv_head) = ((task - tasks.start) / kv_heads, (task - tasks.start) % kv_heads);
        let share = if left.is_empty() {
            Share::All
        } else {
            let first = own.start + own.len() / kv_heads * kv_head;
            let states = states.get().wrapping_add(first);
            Share::One { own: tokens.splits(&sights).start + split, states, left: &left[kv_head] }
        };
        let part = Part { call: &call, tokens: *tokens, kv_head, share, room: pages.as_mut_ptr().cast() };
        if paired { isa.run_pairs(part) } else { isa.run(part) }
    });
    Ok(())
}

/// Some tokens of a sequence, and how they are shared out.
struct Shared {
    tokens: Tokens,
    /// Key heads of one split after another; without `left`, one task for each key head.
    tasks: Range<usize>,
    /// f32 places for the states of all splits of one key head after another.
    states: Range<usize>,
    /// For each key head how many splits are not done yet; empty where one task takes them all.
    left: Vec<AtomicUsize>,
}

/// All tokens of the batch in tiles of `tokens`, shared out so that no task is much of the whole.
fn shares(call: &Call<'_>, isa: Isa, spans: &[Span], tokens: usize, threads: usize) -> Vec<Shared> {
    let tile = |&span: &Span| {
        (0..span.len).step_by(tokens).map(move |first| Tokens { span, first, tokens: tokens.min(span.len - first) })
    };
    let tiles = spans.iter().flat_map(tile);
    let all: usize = tiles.clone().map(|tile| tile.splits(&call.sights).len() * call.kv_heads).sum();
    let (mut tasks, mut states) = (0, 0);
    let share = |tokens: Tokens| {
        let splits = tokens.splits(&call.sights).len();
        let alone = splits == 1 || splits * threads * TASKS <= all;
        let (parts, places) = if alone {
            (1, 0)
        } else {
            let sizes = Sizes { rows: call.group * tokens.tokens, head_dim: call.head_dim };
            (splits, splits * isa.run(sizes).1)
        };
        let (first_task, first_state) = (tasks, states);
        tasks += parts * call.kv_heads;
        states += places * call.kv_heads;
        let left = (0..if alone { 0 } else { call.kv_heads }).map(|_| AtomicUsize::new(splits)).collect();
        Shared { tokens, tasks: first_task..tasks, states: first_state..states, left }
    };
    tiles.map(share).collect()
}
