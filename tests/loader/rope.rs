//! Rotary factors against those of `transformers` (rope.json, written by rope.py).

use std::path::Path;

use burrstone::model::ArchSpec;
use serde_json::Value;

/// Positions of a table.
const TABLE: usize = 1 << 16;

#[test]
fn factors_are_those_of_transformers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("rope.json")).unwrap();
    assert!(cases.len() >= 17);
    let (mut equal, mut total, mut from_table, mut own) = (0, 0, 0, 0);
    for case in cases {
        let config = case["config"].to_string();
        let spec = ArchSpec::from_config(Path::new("config.json"), config.as_bytes(), None).unwrap();
        let mut rope = spec.rope.table(TABLE);
        for factors in case["factors"].as_array().unwrap() {
            let position = factors[0].as_u64().unwrap() as usize;
            let expected: Vec<f32> = serde_json::from_value(factors[2].clone()).unwrap();
            let (mut rows, mut found) = (vec![0], Vec::new());
            rope.append(position, factors[1].as_u64().unwrap() as usize, usize::MAX, &mut rows, &mut found);
            if found.is_empty() {
                assert_eq!(rows, [0, position as u32]);
                found = rope.factors(position..position + 1);
                from_table += 1;
            } else {
                // The second token's.
                assert_eq!(rows, [0, TABLE as u32 + 1]);
                assert!(found.drain(..found.len() / 2).all(|factor| factor == 0.0));
                own += 1;
            }
            assert_eq!(found.len(), expected.len());
            // Two units in the last place of a frequency near 1, carried to this position, and of the factor itself.
            let tolerance = 2.5e-7 + 1.2e-7 * position as f32;
            for (i, (x, y)) in found.iter().zip(&expected).enumerate() {
                assert!((x - y).abs() <= tolerance, "{config}: position {position}, factor {i}: {x} for {y}");
                equal += usize::from(x == y);
                total += 1;
            }
        }
    }
    assert!(from_table > 0 && own > 0, "{from_table} {own}");
    println!("{equal} of {total} to the bit");
    // Powers are rounded correctly here and to within a unit there: most factors are the very same float.
    assert!(equal * 100 >= total * 90, "{equal} of {total}");
}
