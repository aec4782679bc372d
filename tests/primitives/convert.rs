//! Conversions: every code of each type, and floats around every rounding boundary.

use half::{bf16, f16};

use crate::probe::{Probe, Random, bytes};

/// A type's values by code, sign included, and the bytes of a code.
struct Type {
    name: &'static str,
    bytes: usize,
    value: fn(u32) -> f64,
}

fn small_float(code: u32, exponent_bits: u32, mantissa_bits: u32, nan_from: u32) -> f64 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if code >> 7 == 1 { -1.0 } else { 1.0 };
    let (exponent, mantissa) = ((code & 0x7f) >> mantissa_bits, code & ((1 << mantissa_bits) - 1));
    let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    if code & 0x7f >= nan_from {
        return f64::NAN;
    }
    sign * if exponent == 0 {
        fraction * 2_f64.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2_f64.powi(exponent as i32 - bias)
    }
}

const TYPES: [Type; 5] = [
    Type { name: "f16", bytes: 2, value: |code| f16::from_bits(code as u16).to_f64() },
    Type { name: "bf16", bytes: 2, value: |code| bf16::from_bits(code as u16).to_f64() },
    Type { name: "e4m3", bytes: 1, value: |code| small_float(code, 4, 3, 0x7f) },
    // Code 0x7c is infinity.
    Type {
        name: "e5m2",
        bytes: 1,
        value: |code| {
            if code & 0x7f == 0x7c {
                small_float(code & 0x80, 5, 2, 0x7d).signum() * f64::INFINITY
            } else {
                small_float(code, 5, 2, 0x7d)
            }
        },
    },
    Type { name: "i8", bytes: 1, value: |code| f64::from(code as u8 as i8) },
];

impl Type {
    fn codes(&self) -> u32 {
        1 << (8 * self.bytes)
    }

    fn run(&self, codes: &[u32], floats: &[f32]) -> (Vec<f32>, Vec<u32>) {
        let a: Vec<u8> = codes.iter().flat_map(|code| code.to_ne_bytes()[..self.bytes].to_vec()).collect();
        let n = codes.len();
        assert_eq!(floats.len(), n);
        let mut probe = Probe::new(0, [&a, &bytes(floats), &[]], n * (4 + self.bytes));
        probe.n = n as u32;
        let out = probe.run::<u8>(&format!("convert__{}_t128", self.name));
        let wide = out[..n * 4].chunks(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
        let code = |b: &[u8]| b.iter().rev().fold(0, |code, byte| code << 8 | u32::from(*byte));
        (wide, out[n * 4..].chunks(self.bytes).map(code).collect())
    }

    /// The nearest code, ties to even. Eight-bit types saturate.
    fn nearest(&self, x: f32) -> u32 {
        match self.name {
            "f16" => return u32::from(f16::from_f32(x).to_bits()),
            "bf16" => return u32::from(bf16::from_f32(x).to_bits()),
            _ => {}
        }
        let x = f64::from(x);
        let finite = (0..256).filter(|code| (self.value)(*code).is_finite());
        let same_sign = finite.filter(|code| self.name == "i8" || (code >> 7 == 1) == x.is_sign_negative());
        let key = |code: &u32| {
            // For huge numbers all distances round to the same, so the largest code is chosen directly.
            let distance =
                if x.abs() < 1e6 { ((self.value)(*code) - x).abs() } else { -(self.value)(*code) * x.signum() };
            (distance, code & 1)
        };
        same_sign.min_by(|p, q| key(p).partial_cmp(&key(q)).unwrap()).unwrap()
    }
}

#[test]
fn every_code_has_its_value() {
    for t in &TYPES {
        let codes: Vec<u32> = (0..t.codes()).collect();
        let (wide, _) = t.run(&codes, &vec![0.0; codes.len()]);
        for (code, found) in codes.iter().zip(wide) {
            let expected = (t.value)(*code);
            let same = found.to_bits() == (expected as f32).to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{} code {code:#x}: expected {expected}, found {found}", t.name);
        }
    }
}

#[test]
fn floats_round_to_the_nearest_code() {
    for t in &TYPES {
        let mut floats =
            vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45];
        // Each value, the midpoint to the next, and the floats next to both.
        let step = (t.codes() / 256) as usize;
        for code in (0..t.codes()).step_by(step.div_ceil(3)) {
            let (value, next) = ((t.value)(code), (t.value)((code + 1) % t.codes()));
            for x in [value as f32, ((value + next) / 2.0) as f32] {
                floats.extend([
                    x,
                    f32::from_bits(x.to_bits().wrapping_add(1)),
                    f32::from_bits(x.to_bits().wrapping_sub(1)),
                ]);
            }
        }
        let mut random = Random::new(3);
        floats.extend((0..500).map(|_| f32::from_bits(random.next())));
        floats.retain(|x| !x.is_nan());
        let (_, codes) = t.run(&vec![0; floats.len()], &floats);
        for (x, found) in floats.iter().zip(codes) {
            let expected = t.nearest(*x);
            let zero = t.name == "i8" && (t.value)(expected) == 0.0;
            assert!(
                found == expected || zero && found == 0,
                "{} of {x:e}: expected {expected:#x}, found {found:#x}",
                t.name
            );
        }
    }
}

#[test]
fn nan_stays_nan_and_is_no_integer() {
    for t in &TYPES {
        let (_, codes) = t.run(&[0, 0], &[f32::NAN, -f32::NAN]);
        for code in codes {
            let value = (t.value)(code);
            assert!(if t.name == "i8" { value == 0.0 } else { value.is_nan() }, "{}: {value}", t.name);
        }
    }
}
