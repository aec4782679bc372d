//! Pairs of 16-bit floats: every 8-bit code in every position of a word, and floats rounded two at a time.

use half::{bf16, f16};

use crate::probe::{Probe, Random, bytes, variants};

/// Decodes a code by the format's definition.
fn number(name: &str, code: u8) -> f32 {
    let small_float = |mantissa: i32, bias: i32| {
        let (sign, magnitude) = (if code >> 7 == 1 { -1.0 } else { 1.0 }, i32::from(code & 0x7f));
        let (exponent, rest) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
        let (whole, exponent) = if exponent == 0 { (0, 1) } else { (1 << mantissa, exponent) };
        sign * (whole + rest) as f32 * 2f32.powi(exponent - bias - mantissa)
    };
    match (name, code & 0x7f) {
        ("e4m3", 0x7f) | ("e5m2", 0x7d..) => f32::NAN,
        ("e5m2", 0x7c) => f32::INFINITY.copysign(if code >> 7 == 1 { -1.0 } else { 1.0 }),
        ("e4m3", _) => small_float(3, 7),
        ("e5m2", _) => small_float(2, 15),
        _ => f32::from(code as i8),
    }
}

#[test]
fn pairs_are_decoded_and_rounded_exactly() {
    for name in variants("pairs") {
        let [dtype, cache] =
            [name.split("__").nth(1).unwrap().split('_').next().unwrap(), name.split('_').nth(3).unwrap()];
        let mut random = Random::new(7);
        // Each code in each position, beside random ones.
        let codes: Vec<u8> = (0..1024)
            .flat_map(|i| {
                let mut word = random.next().to_ne_bytes();
                word[i / 256] = i as u8;
                word
            })
            .collect();
        let floats: Vec<f32> = (0..2048)
            .map(|i| if i % 2 == 0 { f32::from_bits(random.next()) } else { random.next() as f32 / 65536.0 - 30000.0 })
            .collect();
        let mut probe = Probe::new(0, [&codes, &bytes(&floats), &[]], 3 * 1024 * 4);
        probe.n = 1024;
        let found = probe.run::<u16>(name);
        let one =
            |bits: u16| if dtype == "bf16" { bf16::from_bits(bits).to_f32() } else { f16::from_bits(bits).to_f32() };
        for (i, (&code, &bits)) in codes.iter().zip(&found).enumerate() {
            let (expected, found) = (number(cache, code), one(bits));
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{name}, number {i}, code {code:#x}: expected {expected}, found {found}");
        }
        for (i, (&float, &bits)) in floats.iter().zip(&found[4096..]).enumerate() {
            let expected = if dtype == "bf16" { bf16::from_f32(float).to_f32() } else { f16::from_f32(float).to_f32() };
            let found = one(bits);
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{name}, float {i}, {float:e}: expected {expected}, found {found}");
        }
    }
}
