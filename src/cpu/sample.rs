//! Chooses the next token of each row of logits.
//!
//! No sort of the vocabulary: a histogram over the leading bits of the weights (which order as the weights do) finds
//! the one bin in which a filter cuts, and only that bin is looked at closely.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::cpu::buffer::{Buffer, Step};
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::{Isa, Kernel, Simd, exp};
use crate::cpu::target_logprobs::{FindRange, log_sum_exp};
use crate::error::{Error, Result};
use crate::ops::{Mask, SampleRow, Sampled};

const OP: &str = "sample";

pub(crate) fn sample(
    isa: Isa,
    pool: &Pool,
    scratch: &mut [Vec<f32>],
    step: &mut Step,
    rows: Range<usize>,
    vocab: usize,
    logits: &Buffer,
) -> Result<()> {
    let samples = &step.batch().samples;
    let rows = samples
        .get(rows.clone())
        .ok_or_else(|| Error::operator(OP, "rows", format!("within 0..{}", samples.len()), format!("{rows:?}")))?;
    logits.check_wide(OP, "logits", rows.len().checked_mul(vocab))?;
    let base = Shareable::new(logits.as_ptr().cast::<f32>().cast_mut());
    let chosen: Mutex<Vec<Option<Result<Sampled>>>> = Mutex::new(rows.iter().map(|_| None).collect());
    pool.run_with(scratch, rows.len(), &|weights, i| {
        // SAFETY: the buffer has row `i`, and nobody writes it.
        let row = unsafe { std::slice::from_raw_parts(base.get().add(i * vocab).cast_const(), vocab) };
        let token = choose(isa, i, row, weights, &rows[i]);
        chosen.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(token);
    });
    let chosen = chosen.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten();
    step.sampled.extend(chosen);
    Ok(())
}

/// `weights` is room that this row may use. An error is this row's alone.
fn choose(isa: Isa, index: usize, logits: &[f32], weights: &mut Vec<f32>, row: &SampleRow) -> Result<Sampled> {
    row.check(logits.len())?;
    let total = log_sum_exp(isa, logits).map_err(|bad| bad.error(OP, index))?;
    weights.clear();
    weights.extend_from_slice(logits);
    adjust(weights, row);
    let max = isa.run(FindRange(weights)).max;
    if max == f32::NEG_INFINITY {
        return Err(Error::operator(OP, "mask", "a token that is left", format!("none in row {index}")));
    }
    let token = if row.temperature == 0.0 {
        weights.iter().position(|&x| x == max).unwrap_or_default()
    } else {
        isa.run(Weigh { row: weights, max, temperature: row.temperature });
        let floor = least_weight(weights, row);
        drop_below(weights, floor);
        if row.typical_p < 1.0 {
            drop_untypical(weights, row.typical_p);
        }
        draw(weights, row.uniform())
    };
    Ok(Sampled { token: token as u32, logprob: total.logprob(logits[token]) })
}

/// Penalties, then biases, then the mask.
fn adjust(logits: &mut [f32], row: &SampleRow) {
    row.visit_penalized(|token, generated| {
        let logit = &mut logits[token as usize];
        let scaled = if *logit > 0.0 { *logit / row.repetition_penalty } else { *logit * row.repetition_penalty };
        let presence = if generated > 0 { row.presence_penalty } else { 0.0 };
        *logit = (scaled - row.frequency_penalty * generated as f32 - presence).min(f32::MAX);
    });
    for &(token, bias) in &row.logit_bias {
        let logit = &mut logits[token as usize];
        *logit = (*logit + bias).min(f32::MAX);
    }
    let mask = row.mask.as_ref().map_or(&[][..], Mask::words);
    for (logits, &allowed) in logits.chunks_mut(32).zip(mask) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            if allowed >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// `x = exp((x − max) / temperature)`: the likeliest token weighs 1.
struct Weigh<'a> {
    row: &'a mut [f32],
    max: f32,
    temperature: f32,
}

impl Kernel for Weigh<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, temperature) = (s.splat(self.max), s.splat(self.temperature));
        let mut pieces = self.row.chunks_exact_mut(S::LANES);
        for piece in &mut pieces {
            // SAFETY: the piece is a vector.
            unsafe {
                let x = s.div(s.sub(s.load(piece.as_ptr()), max), temperature);
                s.store(piece.as_mut_ptr(), exp(s, x));
            }
        }
        let rest = pieces.into_remainder();
        let mut lanes = [0f32; 16];
        lanes[..rest.len()].copy_from_slice(rest);
        // SAFETY: no vector has more than 16 lanes.
        unsafe {
            let x = s.div(s.sub(s.load(lanes.as_ptr()), max), temperature);
            s.store(lanes.as_mut_ptr(), exp(s, x));
        }
        rest.copy_from_slice(&lanes[..rest.len()]);
    }
}

/// A token stays if it weighs more than `weight`, or as much and its id is at most `last`.
#[derive(Clone, Copy)]
struct Floor {
    weight: f32,
    last: usize,
}

impl Floor {
    fn keeps(self, token: usize, weight: f32) -> bool {
        weight > self.weight || (weight == self.weight && token <= self.last)
    }
}

/// Where top-k, top-p and min-p, in this order, cut the weights. Tokens as likely as the k-th stay with it.
fn least_weight(weights: &[f32], row: &SampleRow) -> Floor {
    let mut floor = Floor { weight: f32::MIN_POSITIVE, last: usize::MAX };
    if row.top_k > 0 && row.top_k < weights.len() {
        floor = top_k(weights, row.top_k, floor);
    }
    if row.top_p < 1.0 {
        floor = top_p(weights, row.top_p, floor);
    }
    if row.min_p > floor.weight {
        floor = Floor { weight: row.min_p, last: usize::MAX };
    }
    floor
}

/// Bins of the leading bits of a weight from 0 to 1: 32 to a factor of two. A larger weight never has a smaller bin.
const BINS: usize = bin(1.0) + 1;

const fn bin(weight: f32) -> usize {
    (weight.to_bits() >> 18) as usize
}

/// The tokens of one bin that `floor` keeps, heaviest first, equals by id.
fn sorted(weights: &[f32], wanted: usize, floor: Floor) -> Vec<(f32, usize)> {
    let of_bin = |&(token, &weight): &(usize, &f32)| bin(weight) == wanted && floor.keeps(token, weight);
    let mut tokens: Vec<(f32, usize)> = weights.iter().enumerate().filter(of_bin).map(|(t, &w)| (w, t)).collect();
    tokens.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    tokens
}

/// Raises `floor` to the `k`-th heaviest token.
fn top_k(weights: &[f32], k: usize, floor: Floor) -> Floor {
    let mut counts = vec![0u32; BINS];
    for &weight in weights {
        counts[bin(weight).min(BINS - 1)] += 1;
    }
    let mut left = k;
    for wanted in (0..BINS).rev() {
        let here = counts[wanted] as usize;
        if here < left {
            left -= here;
            continue;
        }
        return match sorted(weights, wanted, floor).get(left - 1) {
            Some(&(weight, _)) => Floor { weight, last: usize::MAX },
            None => floor,
        };
    }
    floor
}

/// Raises `floor` to the token at which the heaviest together reach `p` of all that it keeps.
fn top_p(weights: &[f32], p: f32, floor: Floor) -> Floor {
    let mut masses = vec![0f64; BINS];
    for (token, &weight) in weights.iter().enumerate() {
        if floor.keeps(token, weight) {
            masses[bin(weight).min(BINS - 1)] += f64::from(weight);
        }
    }
    let target = f64::from(p) * masses.iter().sum::<f64>();
    let mut mass = 0.0;
    for wanted in (0..BINS).rev() {
        if mass + masses[wanted] < target {
            mass += masses[wanted];
            continue;
        }
        for (weight, token) in sorted(weights, wanted, floor) {
            mass += f64::from(weight);
            if mass >= target {
                return Floor { weight, last: token };
            }
        }
        return floor;
    }
    floor
}

/// Tokens that the floor does not keep weigh nothing from here on.
fn drop_below(weights: &mut [f32], floor: Floor) {
    for weight in weights.iter_mut() {
        *weight = if *weight < floor.weight { 0.0 } else { *weight };
    }
    if let Some(rest) = weights.get_mut(floor.last.saturating_add(1)..) {
        for weight in rest.iter_mut().filter(|weight| **weight == floor.weight) {
            *weight = 0.0;
        }
    }
}

/// Of the tokens that weigh anything, those nearest to the mean surprise stay: as many as have `p` of the weight, and
/// all that are as near as the last of them.
///
/// A token's surprise is a constant less the logarithm of its weight, so the logarithm's distance from its own mean
/// says as much. `1 / (1 + distance)` lies between 0 and 1 and is binned like a weight.
fn drop_untypical(weights: &mut [f32], p: f32) {
    let of_kept = |weights: &[f32], value: &dyn Fn(f64) -> f64| -> f64 {
        weights.iter().filter(|&&weight| weight > 0.0).map(|&weight| value(f64::from(weight))).sum()
    };
    let total = of_kept(weights, &|weight| weight);
    let mean = of_kept(weights, &|weight| weight * weight.ln()) / total;
    let nearness = |weight: f32| 1.0 / (1.0 + (weight.ln() - mean as f32).abs());
    let near: Vec<f32> = weights.iter().map(|&weight| if weight > 0.0 { nearness(weight) } else { 0.0 }).collect();
    let mut masses = vec![0f64; BINS];
    for (&weight, &near) in weights.iter().zip(&near) {
        masses[bin(near)] += f64::from(weight);
    }
    let target = f64::from(p) * total;
    let (mut mass, mut least) = (0.0, 0.0);
    for wanted in (0..BINS).rev() {
        if mass + masses[wanted] < target {
            mass += masses[wanted];
            continue;
        }
        let all = Floor { weight: 0.0, last: usize::MAX };
        for (of_token, token) in sorted(&near, wanted, all) {
            mass += f64::from(weights[token]);
            if mass >= target {
                least = of_token;
                break;
            }
        }
        break;
    }
    for (weight, near) in weights.iter_mut().zip(near) {
        *weight = if near < least { 0.0 } else { *weight };
    }
}

/// The token at which the running weight, in the order of the ids, passes `u` of the whole.
fn draw(weights: &[f32], u: f64) -> usize {
    const PIECE: usize = 256;
    let pieces: Vec<f64> = weights.chunks(PIECE).map(sum).collect();
    let target = u * pieces.iter().sum::<f64>();
    let mut mass = 0.0;
    for (i, piece) in pieces.iter().enumerate() {
        if mass + piece <= target && i + 1 < pieces.len() {
            mass += piece;
            continue;
        }
        for (token, &weight) in weights.iter().enumerate().skip(i * PIECE) {
            if weight > 0.0 {
                mass += f64::from(weight);
                if mass > target {
                    return token;
                }
            }
        }
    }
    // Rounding may leave the target at the very end: the last token that is kept.
    weights.iter().rposition(|&weight| weight > 0.0).unwrap_or_default()
}

/// Eight sums side by side: one would wait for itself at every addition.
fn sum(weights: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for eight in weights.chunks(8) {
        for (sum, &weight) in sums.iter_mut().zip(eight) {
            *sum += f64::from(weight);
        }
    }
    sums.iter().sum()
}
