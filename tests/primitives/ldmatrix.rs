//! Matrix loads as in the manual's figure: row r of a matrix is in lanes 4r to 4r+3, two elements each.

use crate::probe::{Probe, Random, bytes, variants};

#[test]
fn every_load_gives_each_lane_its_elements() {
    for name in variants("ldmatrix") {
        for seed in 0..4 {
            let mut random = Random::new(seed);
            let tile: Vec<u16> = (0..2048).map(|_| random.next() as u16).collect();
            let rows: Vec<u32> = (0..32).map(|_| random.next() % 256 * 8).collect();
            let count: usize = name.split("_x").nth(1).unwrap()[..1].parse().unwrap();
            let transposed = name.contains("_t1");
            let words: Vec<u32> = Probe::new(seed, [&bytes(&tile), &bytes(&rows), &[]], 128 * count).run(name);
            for matrix in 0..count {
                // element(r, c) of the matrix whose row addresses lanes 8m..8m+7 hold
                let element = |r: usize, c: usize| tile[rows[matrix * 8 + r] as usize + c];
                for r in 0..8 {
                    for c in 0..8 {
                        // Thread 4r + c/2 holds element (r, c); transposed, element (c, r).
                        let word = words[(4 * r + c / 2) * count + matrix];
                        let found = (word >> (16 * (c % 2))) as u16;
                        let expected = if transposed { element(c, r) } else { element(r, c) };
                        assert_eq!(found, expected, "{name}, matrix {matrix}, row {r}, column {c}");
                    }
                }
            }
        }
    }
}
