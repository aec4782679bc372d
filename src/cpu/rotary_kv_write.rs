//! Norms and rotates queries and keys, and writes keys and values to their slots.

use crate::cpu::buffer::{Step, convert};
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::rms_norm::sum_of_squares;
use crate::cpu::simd::{Element, F32, Isa, Kernel, Simd, with_cache_element, with_element};
use crate::cpu::{Cpu, MAX_HEAD_DIM};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::RotaryKvWrite;

const OP: &str = "rotary_kv_write";

/// The code of an i8 entry's largest magnitude.
const LARGEST_CODE: f32 = 127.0;
/// Elements that a task takes: some microseconds.
const TASK: usize = 16 << 10;

pub(crate) fn rotary_kv_write(isa: Isa, pool: &Pool, step: &Step, args: RotaryKvWrite<'_, Cpu>) -> Result<()> {
    let RotaryKvWrite { qkv, query, cache, layer, heads, kv_heads, head_dim, rotary_dim, rope, qk_norm } = args;
    let (batch, shape) = (step.batch(), cache.shape());
    let tokens = batch.tokens.len();
    if (kv_heads, head_dim) != (shape.kv_heads, shape.head_dim) {
        let expected = format!("{} key heads of {}", shape.kv_heads, shape.head_dim);
        return Err(Error::operator(OP, "cache", expected, format!("{kv_heads} of {head_dim}")));
    }
    if head_dim == 0 || head_dim > MAX_HEAD_DIM {
        return Err(Error::operator(OP, "head_dim", format!("1 to {MAX_HEAD_DIM}"), head_dim));
    }
    if rotary_dim % 2 != 0 || rotary_dim > head_dim {
        return Err(Error::operator(OP, "rotary_dim", format!("an even number up to {head_dim}"), rotary_dim));
    }
    cache.check_layer(OP, layer)?;
    let width = kv_heads
        .checked_mul(2)
        .and_then(|n| n.checked_add(heads))
        .and_then(|n| n.checked_mul(head_dim))
        .ok_or_else(|| Error::operator(OP, "heads", "a size that fits memory", heads))?;
    qkv.check_wide(OP, "qkv", tokens.checked_mul(width))?;
    query.check(OP, "query", tokens.checked_mul(heads * head_dim))?;
    let table = rope.factors.floats(OP, "rope", rope.rows.checked_mul(rotary_dim))?;
    batch.check_rope(rope.rows, rotary_dim)?;
    let slots = shape.pages * shape.page_size;
    if let Some(slot) = batch.slots.iter().find(|&&slot| slot as usize >= slots) {
        return Err(Error::operator(OP, "slots", format!("below {slots}"), slot));
    }
    let norm = match &qk_norm {
        None => None,
        Some(norm) => {
            for (field, gain) in [("qk_norm.query", norm.query), ("qk_norm.key", norm.key)] {
                if gain.0.len() != head_dim {
                    return Err(Error::operator(OP, field, format!("{head_dim} elements"), gain.0.len()));
                }
            }
            Some((norm.query.0.as_slice(), norm.key.0.as_slice(), norm.eps))
        }
    };
    let [keys, values] = [0, 1].map(|which| {
        let (data, scales) = cache.at_mut(layer, which);
        Plane { data: Shareable::new(data), scales: Shareable::new(scales) }
    });
    let call = Call {
        qkv: Shareable::new(qkv.as_ptr().cast::<f32>().cast_mut()),
        query: Shareable::new(query.as_mut_ptr()),
        query_dtype: query.dtype(),
        keys,
        values,
        cache_dtype: shape.dtype,
        page_size: shape.page_size,
        slots: &batch.slots,
        rope_rows: &batch.rope_rows,
        rope: [table, &batch.rope],
        heads,
        kv_heads,
        head_dim,
        half: rotary_dim / 2,
        norm,
    };
    let per_task = (TASK / width.max(1)).max(1);
    pool.run(tokens.div_ceil(per_task), &|_, task| {
        isa.run(Tokens { call: &call, from: task * per_task, to: tokens.min((task + 1) * per_task) });
    });
    Ok(())
}

/// `qkv` and `query` have a row for each token, `rope` two of `half` for each of `rope_rows`, the table's first; `keys` and
/// `values` are one layer's, and every slot
/// lies inside them and belongs to one token.
struct Call<'a> {
    qkv: Shareable<f32>,
    query: Shareable<u8>,
    query_dtype: DType,
    keys: Plane,
    values: Plane,
    cache_dtype: DType,
    page_size: usize,
    slots: &'a [u32],
    rope_rows: &'a [u32],
    rope: [&'a [f32]; 2],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    half: usize,
    norm: Option<(&'a [f32], &'a [f32], f32)>,
}

/// Keys or values of one layer.
struct Plane {
    data: Shareable<u8>,
    /// Of i8; else null.
    scales: Shareable<f32>,
}

struct Tokens<'a> {
    call: &'a Call<'a>,
    from: usize,
    to: usize,
}

impl Kernel for Tokens<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for token in self.from..self.to {
            with_element!(self.call.query_dtype, Q => self.call.queries::<S, Q>(s, token));
            with_cache_element!(self.call.cache_dtype, C => self.call.keys_and_values::<S, C>(s, token));
        }
    }
}

impl Call<'_> {
    #[inline(always)]
    fn queries<S: Simd, Q: Element>(&self, s: S, token: usize) {
        let width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        let norm = self.norm.map(|(query, _, eps)| (query, eps));
        for head in 0..self.heads {
            // SAFETY: both rows of this token have this head, and this task alone has the token.
            unsafe {
                let from = self.qkv.get().add(token * width + head * self.head_dim);
                let to = self.query.get().add((token * self.heads + head) * self.head_dim * Q::SIZE);
                let mut head = [0f32; MAX_HEAD_DIM];
                self.turn(s, token, from, norm, &mut head);
                convert::<S, F32, Q>(s, head.as_ptr().cast(), to, self.head_dim);
            }
        }
    }

    #[inline(always)]
    fn keys_and_values<S: Simd, C: Element>(&self, s: S, token: usize) {
        let width = (self.heads + 2 * self.kv_heads) * self.head_dim;
        let norm = self.norm.map(|(_, key, eps)| (key, eps));
        let slot = self.slots[token] as usize;
        let (page, place) = (slot / self.page_size, slot % self.page_size);
        for head in 0..self.kv_heads {
            let entry = (page * self.kv_heads + head) * self.page_size + place;
            let mut turned = [0f32; MAX_HEAD_DIM];
            // SAFETY: this token's row of `qkv` has this head after the queries; the slot lies inside the planes, and
            // this task alone has it.
            unsafe {
                let key = self.qkv.get().add(token * width + (self.heads + head) * self.head_dim);
                let value = key.add(self.kv_heads * self.head_dim);
                self.turn(s, token, key, norm, &mut turned);
                self.write::<S, C>(s, turned.as_ptr(), &self.keys, entry);
                self.write::<S, C>(s, value, &self.values, entry);
            }
        }
    }

    /// One head to its entry of the cache.
    ///
    /// # Safety
    /// `head_dim` elements are readable at `from`; the plane has the entry, and no other task does.
    #[inline(always)]
    unsafe fn write<S: Simd, C: Element>(&self, s: S, from: *const f32, plane: &Plane, entry: usize) {
        let n = self.head_dim;
        // SAFETY: as the caller promises; `n ≤ MAX_HEAD_DIM`.
        unsafe {
            let to = plane.data.get().add(entry * n * C::SIZE);
            if plane.scales.get().is_null() {
                convert::<S, F32, C>(s, from.cast(), to, n);
                return;
            }
            let mut scaled = [0f32; MAX_HEAD_DIM];
            std::ptr::copy_nonoverlapping(from, scaled.as_mut_ptr(), n);
            let largest = scaled[..n].iter().fold(0f32, |largest, x| largest.max(x.abs()));
            // Where all are next to nothing, or one is infinite, every code is 0.
            let factor = if largest > 1e-30 { LARGEST_CODE / largest } else { 0.0 };
            scaled[..n].iter_mut().for_each(|x| *x *= factor);
            *plane.scales.get().add(entry) = largest / LARGEST_CODE;
            convert::<S, F32, C>(s, scaled.as_ptr().cast(), to, n);
        }
    }

    /// One head: norm where asked, rotation of the leading part.
    ///
    /// # Safety
    /// `head_dim` elements are readable at `from`.
    #[inline(always)]
    unsafe fn turn<S: Simd>(
        &self,
        s: S,
        token: usize,
        from: *const f32,
        norm: Option<(&[f32], f32)>,
        head: &mut [f32; MAX_HEAD_DIM],
    ) {
        let (n, half) = (self.head_dim, self.half);
        // SAFETY: `n ≤ MAX_HEAD_DIM` elements are readable.
        unsafe { std::ptr::copy_nonoverlapping(from, head.as_mut_ptr(), n) };
        if let Some((gain, eps)) = norm {
            // SAFETY: `head` has `n` elements.
            let squares = unsafe { sum_of_squares(s, head.as_ptr(), n) };
            let scale = 1.0 / (squares / n as f32 + eps).sqrt();
            for (x, gain) in head[..n].iter_mut().zip(gain) {
                *x = (*x * scale) * gain;
            }
        }
        let ([table, others], row) = (self.rope, self.rope_rows[token] as usize * 2 * half);
        let factors = if row < table.len() { &table[row..] } else { &others[row - table.len()..] };
        let (cos, sin) = factors[..2 * half].split_at(half);
        let (low, high) = head[..2 * half].split_at_mut(half);
        for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}
