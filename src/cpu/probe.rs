//! What the machine can do: the floors that figures are held against.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::cpu::buffer::Pages;
use crate::cpu::pool::{Pool, Shareable};
use crate::cpu::simd::{Kernel, PairKernel, Pairs, Simd};
use crate::error::Result;

/// How long each figure is measured.
const TIME: Duration = Duration::from_millis(300);
/// Bytes that are read for the bandwidth: far more than caches hold.
const BYTES: usize = 512 << 20;

/// Rates of this machine, all threads of a [`Cpu`] together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Reading memory, 10⁹ bytes/s.
    pub read_gb_s: f64,
    /// f32 multiply-adds from registers, two operations each, 10⁹/s.
    pub f32_gflop_s: f64,
    /// bf16 products with f32 sums, likewise; the f32 rate where there is no such instruction.
    pub bf16_gflop_s: f64,
}

/// Measures all rates, in about a second.
///
/// # Errors
/// No memory to read from.
pub fn probe(cpu: &Cpu) -> Result<Probe> {
    let mut pages = Pages::new(BYTES)?;
    let base = Shareable::new(pages.as_mut_ptr());
    let tasks = BYTES / CHUNK;
    cpu.pool.run(tasks, &|_, task| {
        // SAFETY: each task has its own chunk of the pages. Ones: untouched pages would all be one and the same zeros.
        unsafe { base.get().add(task * CHUNK).write_bytes(1, CHUNK) };
    });
    // SAFETY: the pages are all written, and live to the end of this function.
    let bytes = unsafe { std::slice::from_raw_parts(pages.as_ptr(), BYTES) };
    let read_gb_s = read_gb_s_of(cpu, bytes);
    let f32_gflop_s = flop_rate(&cpu.pool, |steps| cpu.isa.run(Singles(steps)));
    let bf16_gflop_s = if cpu.isa.has_pairs() {
        flop_rate(&cpu.pool, |steps| cpu.isa.run_pairs(Products(steps)))
    } else {
        f32_gflop_s
    };
    Ok(Probe { read_gb_s, f32_gflop_s, bf16_gflop_s })
}

/// Bytes that a thread claims at a time.
const CHUNK: usize = 256 << 10;

/// The rate at which all threads read `bytes`, 10⁹ bytes/s: the whole of it, again and again for a while, as one, four
/// and eight streams a thread. The best of the three medians: a shared machine's memory changes its pace within
/// seconds, and what runs beside the probe sees the usual pace, not the best moment. Fewer bytes than a chunk have no
/// rate, 0.
fn read_gb_s_of(cpu: &Cpu, bytes: &[u8]) -> f64 {
    let tasks = bytes.len() / CHUNK;
    let mut rates: [Vec<f64>; 3] = Default::default();
    let start = Instant::now();
    while tasks > 0 && (rates[2].is_empty() || start.elapsed() < TIME) {
        for (rates, streams) in rates.iter_mut().zip([1, 4, 8]) {
            let seen = AtomicU64::new(0);
            let pass = Instant::now();
            cpu.pool.run(tasks, &|_, task| {
                let chunk = &bytes[task * CHUNK..][..CHUNK];
                seen.fetch_xor(cpu.isa.run(Read { chunk, streams }).to_bits().into(), Ordering::Relaxed);
            });
            black_box(seen.into_inner());
            rates.push((tasks * CHUNK) as f64 / pass.elapsed().as_secs_f64() / 1e9);
        }
    }
    rates.into_iter().map(median).fold(0.0, f64::max)
}

/// The middle one; 0 of none.
fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_unstable_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}

/// Reads a chunk as so many streams side by side.
struct Read<'a> {
    chunk: &'a [u8],
    streams: usize,
}

impl Kernel for Read<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        match self.streams {
            1 => self.go::<S, 1>(s),
            4 => self.go::<S, 4>(s),
            _ => self.go::<S, 8>(s),
        }
    }
}

impl Read<'_> {
    #[inline(always)]
    fn go<S: Simd, const STREAMS: usize>(&self, s: S) -> f32 {
        const LINE: usize = 64;
        let mut sums = [s.zero(); 4];
        // Each stream runs through its own part of the chunk.
        let part = self.chunk.len() / STREAMS / LINE * LINE;
        for at in (0..part).step_by(LINE) {
            for stream in 0..STREAMS {
                for j in 0..LINE / (4 * S::LANES) {
                    // SAFETY: a line at `at` of the stream's part.
                    let v = unsafe { s.load(self.chunk.as_ptr().add(stream * part + at + j * 4 * S::LANES).cast()) };
                    let sum = &mut sums[(stream + j) % 4];
                    *sum = s.max(*sum, v);
                }
            }
        }
        s.reduce_max(s.max(s.max(sums[0], sums[1]), s.max(sums[2], sums[3])))
    }
}

/// The best rate of `work`, which takes a number of steps and returns its operations, on all threads.
fn flop_rate(pool: &Pool, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    const STEPS: usize = 100_000;
    let mut best = 0f64;
    let start = Instant::now();
    while best == 0.0 || start.elapsed() < TIME {
        let pass = Instant::now();
        let flops = Mutex::new(0.0);
        pool.run(pool.threads(), &|_, _| {
            let done = work(black_box(STEPS));
            *flops.lock().unwrap_or_else(PoisonError::into_inner) += done;
        });
        let flops = flops.into_inner().unwrap_or_else(PoisonError::into_inner);
        best = best.max(flops / pass.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// Sums that do not wait for each other: more than any machine needs to keep its units busy.
const SUMS: usize = 12;

/// So many steps of f32 multiply-adds.
struct Singles(usize);

impl Kernel for Singles {
    type Out = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(1.0)));
        let mut sums = [s.zero(); SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.fma(a, *sum, b);
            }
        }
        keep(s, &sums);
        (2 * self.0 * SUMS * S::LANES) as f64
    }
}

/// So many steps of bf16 pair products.
struct Products(usize);

impl PairKernel for Products {
    type Out = f64;

    #[inline(always)]
    fn run<S: Pairs>(self, s: S) -> f64 {
        // Pairs of the number 1.
        let (a, b) = (s.splat(black_box(f32::from_bits(0x3f80_3f80))), s.splat(black_box(f32::from_bits(0x3f80_3f80))));
        let mut sums = [s.zero(); SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.dot_pairs(*sum, a, b);
            }
        }
        keep(s, &sums);
        (4 * self.0 * SUMS * S::LANES) as f64
    }
}

/// Uses the sums, so that the loop that made them stays.
#[inline(always)]
fn keep<S: Simd>(s: S, sums: &[S::V; SUMS]) {
    let mut total = s.zero();
    for &sum in sums {
        total = s.add(total, sum);
    }
    black_box(s.sum(total));
}
