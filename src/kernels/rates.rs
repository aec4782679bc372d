//! A GPU's peak rates, the floors beside measured figures.

use std::time::{Duration, Instant};

use super::PageCopy;
use super::cost::Machine;
use crate::device::Stream;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::Rates;

/// Bytes per copied page, and the largest number of pages: 512 MiB.
const PAGE: usize = 1 << 20;
const MOST: usize = 512;
/// A copy must take this long, so that launch overhead does not count.
const LONG: Duration = Duration::from_micros(200);

/// Bandwidth of a copy in device memory (read and written); compute rate from the data sheet of a product of this
/// architecture.
///
/// # Errors
/// Device memory is short, or the device failed.
pub(super) fn rates(stream: &Stream) -> Result<Rates> {
    let machine = Machine::of(stream.info());
    let products = machine.tensor_rate * machine.clock * f64::from(machine.processors);
    let mut pages = 1;
    let gb_s = loop {
        let time = copy_time(stream, pages)?;
        if time >= LONG || pages == MOST {
            break (2 * pages * PAGE) as f64 / 1e9 / time.as_secs_f64();
        }
        pages *= 2;
    };
    Ok(Rates { gb_s, gflop_s: 2.0 * products / 1e9 })
}

/// The shortest of a few copies.
fn copy_time(stream: &Stream, pages: usize) -> Result<Duration> {
    let mut memory = stream.alloc(DType::U8, 2 * pages * PAGE)?;
    let mut pairs = stream.alloc(DType::U32, 2 * pages)?;
    pairs.write(&(0..pages as u32).flat_map(|page| [page, page + pages as u32]).collect::<Vec<_>>())?;
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        stream.synchronize()?;
        let start = Instant::now();
        let (cache, pairs) = (memory.slice_mut(), pairs.slice());
        PageCopy { cache, pairs, count: pages, planes: 1, pages: 2 * pages, page: PAGE }.launch(stream)?;
        stream.synchronize()?;
        shortest = shortest.min(start.elapsed());
    }
    Ok(shortest)
}
