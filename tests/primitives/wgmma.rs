//! Products of a warpgroup. Operands are laid out in shared memory as in the PTX manual's figures: blocks of eight
//! rows, whose 16-byte pieces are permuted by the row.

use burrstone::device::sim::{Fault, FaultKind};
use half::{bf16, f16};

use crate::probe::{Probe, Random, bytes, variants};

const K: usize = 32;

/// The swizzled position of piece `c` in row `r` of a block.
fn place(swizzle: usize, r: usize, c: usize) -> usize {
    match swizzle {
        128 => c ^ (r % 8),
        64 => c ^ (r / 2 % 4),
        32 => c ^ (r / 4 % 2),
        _ => c,
    }
}

struct Image {
    bytes: Vec<u8>,
    leading: u32,
    stride: u32,
    step: u32,
}

/// An operand of `rows` (M or N) by K.
fn image(rows: usize, element: impl Fn(usize, usize) -> u16, mn: bool, swizzle: usize) -> Image {
    // With a swizzle wider than K, the right half of a block stays empty.
    let row_bytes = if mn { K * 2 } else { swizzle.max(K * 2) };
    let mut bytes = vec![0; rows * row_bytes];
    let mut put = |at: usize, row: usize, k: usize| bytes[at..at + 2].copy_from_slice(&element(row, k).to_ne_bytes());
    let all = (0..rows).flat_map(|row| (0..K).map(move |k| (row, k)));
    let (leading, stride, step) = match (mn, swizzle) {
        (false, 0) => {
            // 8 x 8 blocks; blocks of the same eight rows are adjacent.
            all.for_each(|(row, k)| put((row / 8 * (K / 8) + k / 8) * 128 + row % 8 * 16 + k % 8 * 2, row, k));
            (128, K / 8 * 128, 256)
        }
        (false, width) => {
            // Blocks of 8 rows one after another; columns beyond the width of a block follow in a second stack.
            all.for_each(|(row, k)| {
                let (stack, byte) = (k * 2 / width, k * 2 % width);
                let at = stack * rows * width + row / 8 * 8 * width + row % 8 * width;
                put(at + place(width, row % 8, byte / 16) * 16 + byte % 16, row, k);
            });
            (0, 8 * width, if width > 32 { 32 } else { rows * width })
        }
        (true, 0) => {
            // 8 x 8 blocks of k rows; blocks of the same eight k are adjacent.
            all.for_each(|(row, k)| put((k / 8 * (rows / 8) + row / 8) * 128 + k % 8 * 16 + row % 8 * 2, row, k));
            (rows / 8 * 128, 128, 2 * rows / 8 * 128)
        }
        (true, width) => {
            let blocks = rows * 2 / width;
            all.for_each(|(row, k)| {
                let (block, byte) = (row * 2 / width, row * 2 % width);
                let at = (k / 8 * blocks + block) * 8 * width + k % 8 * width;
                put(at + place(width, k % 8, byte / 16) * 16 + byte % 16, row, k);
            });
            (8 * width, blocks * 8 * width, 2 * blocks * 8 * width)
        }
    };
    Image { bytes, leading: leading as u32, stride: stride as u32, step: step as u32 }
}

struct Case {
    n: usize,
    found: Vec<f32>,
    expected: Vec<f32>,
}

fn run(name: &str, seed: u64) -> Result<Case, Fault> {
    let axes: Vec<&str> = name.split('_').collect();
    let number = |tag: char| -> usize {
        axes.iter().find_map(|axis| axis.strip_prefix(tag)?.parse().ok()).unwrap_or_else(|| panic!("{name}: {tag}"))
    };
    let (n, swizzle) = (number('n'), number('s'));
    let (a_mn, b_mn) = (name.contains("_a_mn"), name.contains("_b_mn"));
    let encode = |x: f32| if name.contains("bf16") { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() };

    let mut random = Random::new(seed);
    let mut matrix =
        |rows: usize| -> Vec<f32> { (0..rows * K).map(|_| (random.next() % 17) as f32 / 4.0 - 2.0).collect() };
    let (a, b) = (matrix(64), matrix(n));
    let b_image = image(n, |row, k| encode(b[row * K + k]), b_mn, swizzle);
    let a_image = if name.contains("a_registers") {
        // Words [step][thread][4] as in the figure of wgmma's A in registers: the m16n8k16 layout for each warp's rows.
        let mut words = Vec::new();
        for step in 0..2 {
            for thread in 0..128 {
                for i in 0..8 {
                    let row = thread / 32 * 16 + thread % 32 / 4 + if i / 2 % 2 == 1 { 8 } else { 0 };
                    let k = step * 16 + thread % 4 * 2 + i % 2 + if i >= 4 { 8 } else { 0 };
                    words.extend(encode(a[row * K + k]).to_ne_bytes());
                }
            }
        }
        Image { bytes: words, leading: 0, stride: 0, step: 0 }
    } else {
        image(64, |row, k| encode(a[row * K + k]), a_mn, swizzle)
    };
    let c: Vec<u32> = [a_image.bytes.len() as u32, b_image.bytes.len() as u32]
        .into_iter()
        .chain([&a_image, &b_image].into_iter().flat_map(|i| [i.leading, i.stride, i.step]))
        .collect();
    let expected = (0..128 * n / 2)
        .map(|at| {
            let (thread, i) = (at / (n / 2), at % (n / 2));
            // d0, d1 in the lane's row, d2, d3 eight rows below; then the next eight columns.
            let row = thread / 32 * 16 + thread % 32 / 4 + if i % 4 >= 2 { 8 } else { 0 };
            let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            let times = if name.contains("product_chained") { 2.0 } else { 1.0 };
            1.0 + times * (0..K).map(|k| a[row * K + k] * b[column * K + k]).sum::<f32>()
        })
        .collect();
    let probe = Probe::new(seed, [&a_image.bytes, &b_image.bytes, &bytes(&c)], 128 * n / 2 * 4);
    probe.launch(name, 1)?;
    Ok(Case { n, found: probe.out(), expected })
}

#[test]
fn every_layout_is_the_manuals() {
    let whole = |name: &&str| name.contains("product_correct") || name.contains("product_chained");
    for name in variants("wgmma").into_iter().filter(whole) {
        for seed in 0..2 {
            let Case { n, found, expected } = run(name, seed).unwrap_or_else(|fault| panic!("{fault}"));
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{name}, thread {}, register {}", at / (n / 2), at % (n / 2));
            }
        }
    }
}

#[test]
fn an_accumulator_is_nan_until_the_wait_on_the_simulator() {
    let case = run("wgmma__n64_bf16_a_k_b_k_s128_product_no_wait_t128", 0).unwrap();
    assert!(case.found.iter().all(|x| x.is_nan()));
}

#[test]
fn shared_memory_may_be_read_until_the_wait_on_the_simulator() {
    let case = run("wgmma__n64_bf16_a_k_b_k_s128_product_early_write_t128", 0).unwrap();
    assert!(case.found.iter().all(|x| *x == 1.0), "b was overwritten with zeros before the wait");
}

#[test]
fn writes_need_a_fence_before_a_product_reads_them_on_the_simulator() {
    for seed in 0..5 {
        let Err(fault) = run("wgmma__n64_bf16_a_k_b_k_s128_product_no_fence_t128", seed) else { panic!("no fault") };
        assert!(matches!(*fault.kind, FaultKind::Unfenced { .. }), "{fault}");
    }
}
