//! Benches on the CPU.

use std::time::{Duration, Instant};

use burrstone::cpu::{Buffer, Cpu};
use burrstone::{DType, Result};

use crate::support::{Bench, Layers, Timer};

impl Bench for Cpu {
    fn dtype(&self) -> DType {
        DType::BF16
    }

    fn rows(&self) -> &'static [usize] {
        &[1, 512]
    }

    fn product_rows(&self) -> &'static [usize] {
        &[1, 8, 64, 512]
    }

    fn cold_bytes(&self) -> usize {
        0
    }

    fn measurement_time(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn layers(&self) -> Option<Layers> {
        None
    }

    fn sequences(&self) -> Vec<(&'static str, Vec<(usize, usize)>)> {
        vec![("prefill-512", vec![(0, 512)]), ("prefill-2048", vec![(0, 2048)]), ("decode-2048", vec![(2047, 1)])]
    }

    fn write(&self, buffer: &mut Buffer, values: &[f32]) {
        buffer.write(values).expect("the values");
    }

    /// On the CPU it is part of the matrix product.
    fn act_mul(&self, _rows: usize, _width: usize, _gate_up: &Buffer, _out: &mut Buffer) -> Option<Result<()>> {
        None
    }

    fn timer<'a>(&'a self, sets: usize, call: &'a mut dyn FnMut(usize) -> Result<()>) -> Result<Timer<'a>> {
        let mut next = (0..sets).cycle();
        Ok(Box::new(move |calls| {
            let start = Instant::now();
            (0..calls).try_for_each(|_| call(next.next().unwrap_or(0)))?;
            Ok(start.elapsed())
        }))
    }
}
