//! Shuffles, votes, matches and reductions, compared with the PTX manual's pseudo-code.

use crate::probe::{Probe, Random, bytes, variants};

/// `shfl.sync`: the source lane of `lane`, from operands `b` and `c`.
fn shfl_source(mode: &str, lane: i32, b: u32, c: u32) -> i32 {
    let (bval, cval, segmask) = ((b & 31) as i32, (c & 31) as i32, (c >> 8 & 31) as i32);
    let max_lane = (lane & segmask) | (cval & !segmask);
    let min_lane = lane & segmask;
    let (j, p) = match mode {
        "up" => (lane - bval, lane - bval >= max_lane),
        "down" => (lane + bval, lane + bval <= max_lane),
        "xor" => (lane ^ bval, (lane ^ bval) <= max_lane),
        _ => {
            let j = min_lane | (bval & !segmask);
            (j, j <= max_lane)
        }
    };
    if p { j } else { lane }
}

fn expected(op: &str, a: &[u32], b: &[u32], width: u32) -> Vec<u32> {
    let lanes = |t: usize| t / 32 * 32..t / 32 * 32 + 32;
    let set = |t: usize, f: &dyn Fn(usize) -> bool| {
        lanes(t).enumerate().filter(|(_, i)| f(*i)).fold(0, |mask, (lane, _)| mask | 1 << lane)
    };
    (0..a.len())
        .map(|t| {
            let shfl = |mode: &str, clamp: u32| {
                let c = (32 - width) << 8 | clamp;
                a[t / 32 * 32 + shfl_source(mode, (t % 32) as i32, b[t], c) as usize]
            };
            match op {
                "shfl" => shfl("idx", 31),
                "shfl_xor" => shfl("xor", 31),
                "shfl_up" => shfl("up", 0),
                "shfl_down" => shfl("down", 31),
                "ballot" => set(t, &|i| b[i] % 2 == 1),
                "any" => u32::from(lanes(t).any(|i| b[i] % 32 == 5)),
                "all" => u32::from(lanes(t).all(|i| b[i] % 32 < 31)),
                "match_any" => set(t, &|i| a[i] % 7 == a[t] % 7),
                "sum" => lanes(t).map(|i| a[i]).sum(),
                "max" => lanes(t).map(|i| a[i]).max().unwrap(),
                "sum_block" => a.iter().sum(),
                "max_block" => *a.iter().max().unwrap(),
                _ => panic!("no oracle for {op}"),
            }
        })
        .collect()
}

#[test]
fn every_warp_operation_follows_the_manual() {
    for name in variants("warp") {
        let (op, threads) = name.strip_prefix("warp__op_").unwrap().rsplit_once("_t").unwrap();
        let threads: usize = threads.parse().unwrap();
        for seed in 0..6 {
            let mut random = Random::new(seed);
            let a: Vec<u32> = (0..threads).map(|_| random.next() % 100_000).collect();
            let b: Vec<u32> = (0..threads).map(|_| random.next() % 40).collect();
            for width in [2, 8, 32] {
                let mut probe = Probe::new(seed, [&bytes(&a), &bytes(&b), &[]], threads * 4);
                probe.n = width;
                assert_eq!(probe.run::<u32>(name), expected(op, &a, &b, width), "{name}, width {width}, seed {seed}");
            }
        }
    }
}
