//! Matrix products. The positions of elements follow the fragment figures of the PTX manual, as formulas of the lane
//! (`%laneid`), its group (lane / 4) and its place in the group (lane % 4).

use half::{bf16, f16};

use crate::probe::{Number, Probe, Random, bytes, variants};

/// For each lane and fragment element: product, row and column.
type Map = Box<dyn Fn(usize, usize) -> (usize, usize, usize)>;

struct Shape {
    m: usize,
    n: usize,
    k: usize,
    products: usize,
    /// For a, b and d: elements a lane holds, and their positions.
    a: (usize, Map),
    b: (usize, Map),
    d: (usize, Map),
}

fn shape(name: &str, element_bytes: usize) -> Shape {
    // m8n8k4: threads 0-3 and 16-19 compute the first product, 4-7 and 20-23 the second, and so on.
    let quad = |lane: usize| lane % 16 / 4;
    let row = |lane: usize| if lane < 16 { lane % 4 } else { lane % 4 + 4 };
    let groups = |lane: usize| (lane / 4, lane % 4);
    // m16n8k*: c0, c1 in row `group`, c2, c3 eight below; columns 2 * place and the next.
    let d: (usize, Map) =
        (4, Box::new(move |l, i| (0, groups(l).0 + if i < 2 { 0 } else { 8 }, groups(l).1 * 2 + (i & 1))));
    match name {
        "m8n8k4" | "m8n8k4_rows" | "m8n8k4_f16" => Shape {
            m: 8,
            n: 8,
            k: 4,
            products: 4,
            a: (4, Box::new(move |l, i| (quad(l), row(l), i))),
            b: if name == "m8n8k4_rows" {
                (4, Box::new(move |l, i| (quad(l), l % 4, if l < 16 { i } else { i + 4 })))
            } else {
                (4, Box::new(move |l, i| (quad(l), i, row(l))))
            },
            d: if name == "m8n8k4_f16" {
                (8, Box::new(move |l, i| (quad(l), row(l), i)))
            } else {
                let x = |l: usize, i: usize| (l & 0b1) + (i & 0b10);
                let column = |l: usize, i: usize| (i & 0b100) + (l & 0b10) + (i & 0b1);
                (8, Box::new(move |l, i| (quad(l), if l < 16 { x(l, i) } else { x(l, i) + 4 }, column(l, i))))
            },
        },
        "m16n8k8" => Shape {
            m: 16,
            n: 8,
            k: 8,
            products: 1,
            a: (4, Box::new(move |l, i| (0, groups(l).0 + if i < 2 { 0 } else { 8 }, groups(l).1 * 2 + (i & 1)))),
            b: (2, Box::new(move |l, i| (0, groups(l).1 * 2 + i, groups(l).0))),
            d,
        },
        "m16n8k16" => Shape {
            m: 16,
            n: 8,
            k: 16,
            products: 1,
            a: (
                8,
                Box::new(move |l, i| {
                    let row = if matches!(i, 0 | 1 | 4 | 5) { groups(l).0 } else { groups(l).0 + 8 };
                    let column = groups(l).1 * 2 + (i & 1);
                    (0, row, if i < 4 { column } else { column + 8 })
                }),
            ),
            b: (4, Box::new(move |l, i| (0, groups(l).1 * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, groups(l).0))),
            d,
        },
        "m16n8k32" => {
            assert_eq!(element_bytes, 1);
            Shape {
                m: 16,
                n: 8,
                k: 32,
                products: 1,
                a: (
                    16,
                    Box::new(move |l, i| {
                        let row = if i < 4 || (8..12).contains(&i) { groups(l).0 } else { groups(l).0 + 8 };
                        let column = groups(l).1 * 4 + (i & 3);
                        (0, row, if i < 8 { column } else { column + 16 })
                    }),
                ),
                b: (8, Box::new(move |l, i| (0, groups(l).1 * 4 + (i & 3) + if i < 4 { 0 } else { 16 }, groups(l).0))),
                d,
            }
        }
        _ => panic!("no fragment layout of {name}"),
    }
}

/// A dense stack of matrices, and for each lane its elements in order.
struct Operand {
    values: Vec<f64>,
    columns: usize,
    rows: usize,
}

impl Operand {
    fn random(
        products: usize,
        rows: usize,
        columns: usize,
        random: &mut Random,
        value: impl Fn(&mut Random) -> f64,
    ) -> Self {
        Operand { values: (0..products * rows * columns).map(|_| value(random)).collect(), columns, rows }
    }

    fn at(&self, (product, row, column): (usize, usize, usize)) -> f64 {
        self.values[(product * self.rows + row) * self.columns + column]
    }

    fn fragments(&self, (count, map): &(usize, Map)) -> Vec<f64> {
        (0..32).flat_map(|lane| (0..*count).map(move |i| (lane, i))).map(|(lane, i)| self.at(map(lane, i))).collect()
    }
}

/// Encodes values that each type represents exactly: multiples of 1/4 up to 3.
fn encode(dtype: &str, values: &[f64]) -> Vec<u8> {
    let small_float = |x: f64, bias: i32, mantissa: u32| -> u8 {
        if x == 0.0 {
            return 0;
        }
        let exponent = x.abs().log2().floor() as i32;
        let fraction = (x.abs() / 2_f64.powi(exponent) - 1.0) * f64::from(1 << mantissa);
        assert_eq!(fraction.fract(), 0.0, "{x} is not exact");
        (u8::from(x < 0.0) << 7) | (((exponent + bias) as u8) << mantissa) | fraction as u8
    };
    let mut out = Vec::new();
    for x in values {
        match dtype {
            "f16" => f16::from_f64(*x).extend(&mut out),
            "bf16" => bf16::from_f64(*x).extend(&mut out),
            "i8" => (*x as i8).extend(&mut out),
            "e4m3" => small_float(*x, 7, 3).extend(&mut out),
            "e5m2" => small_float(*x, 15, 2).extend(&mut out),
            _ => panic!("no encoding of {dtype}"),
        }
    }
    out
}

#[test]
fn every_shape_has_the_manuals_fragment_layout() {
    for name in variants("mma") {
        let (shape_name, dtype) =
            name.strip_prefix("mma__").unwrap().strip_suffix("_t32").unwrap().rsplit_once('_').unwrap();
        let element_bytes = if matches!(dtype, "f16" | "bf16") { 2 } else { 1 };
        let s = shape(shape_name, element_bytes);
        for seed in 0..10 {
            let mut random = Random::new(seed);
            let small = |r: &mut Random| match dtype {
                "i8" => f64::from(r.next() as i8),
                // Exact with two bits after the leading one.
                _ => {
                    [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0][r.next() as usize % 10]
                        * f64::from(1 - 2 * (r.next() as i32 & 1))
                }
            };
            let a = Operand::random(s.products, s.m, s.k, &mut random, small);
            let b = Operand::random(s.products, s.k, s.n, &mut random, small);
            let c = Operand::random(s.products, s.m, s.n, &mut random, |r| f64::from(r.next() % 64) - 32.0);
            let mut product = Operand { values: c.values.clone(), ..c };
            for p in 0..s.products {
                for row in 0..s.m {
                    for column in 0..s.n {
                        for k in 0..s.k {
                            product.values[(p * s.m + row) * s.n + column] += a.at((p, row, k)) * b.at((p, k, column));
                        }
                    }
                }
            }
            let encode_sums = |o: &Operand| -> Vec<u8> {
                let sums = o.fragments(&s.d);
                match (shape_name, dtype) {
                    ("m8n8k4_f16", _) => encode("f16", &sums),
                    (_, "i8") => bytes(&sums.iter().map(|x| *x as i32).collect::<Vec<_>>()),
                    _ => bytes(&sums.iter().map(|x| *x as f32).collect::<Vec<_>>()),
                }
            };
            let inputs = [encode(dtype, &a.fragments(&s.a)), encode(dtype, &b.fragments(&s.b)), encode_sums(&c)];
            let expected = encode_sums(&product);
            let probe = Probe::new(seed, inputs.each_ref().map(Vec::as_slice), expected.len());
            assert_eq!(probe.run::<u8>(name), expected, "{name}, seed {seed}");
        }
    }
}
