//! Streams, memory and graphs: on the simulator, or with `BURRSTONE_TEST_DEVICE=cuda` on the first GPU.
#![cfg(feature = "sim")]

#[allow(dead_code, reason = "no variants are launched here")]
#[path = "gpu/device.rs"]
mod gpu;

use std::time::Duration;

use burrstone::DType;
use burrstone::device::{Memory, Readback, SimOptions, Stream};

fn stream() -> Stream {
    if gpu::on_a_gpu() {
        return gpu::gpu();
    }
    Stream::sim(SimOptions { memory_bytes: 1 << 20, ..SimOptions::default() }).unwrap()
}

#[test]
fn memory_holds_what_is_written() {
    let stream = stream();
    let mut memory = stream.alloc(DType::U32, 5).unwrap();
    assert_eq!(memory.read::<u32>().unwrap(), [0; 5], "fresh memory is zeros");
    memory.write(&[1u32, 2, 3]).unwrap();
    memory.write_at(4, &[9u32]).unwrap();
    assert_eq!(memory.read::<u32>().unwrap(), [1, 2, 3, 0, 9]);
    memory.clear().unwrap();
    assert_eq!(memory.read::<u32>().unwrap(), [0; 5]);
    let error = memory.write_at(4, &[1u32, 2]).unwrap_err().to_string();
    assert_eq!(error, "operator write: values: expected at most 4 bytes of u32, found 8 bytes");
    assert!(memory.write(&[1u8]).is_err(), "no whole element");
    assert!(stream.alloc(DType::U8, 3).unwrap().read::<u32>().is_err(), "no whole element");
}

#[test]
fn out_of_memory_reports_used_and_total_on_the_simulator() {
    let stream = stream();
    let held = stream.alloc(DType::U8, 1 << 19).unwrap();
    let error = stream.alloc(DType::F32, 1 << 18).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("device sim: simulated memory: 1048576 bytes asked for, 524288 of 1048576"), "{error}");
    drop(held);
    assert_eq!(stream.free_bytes().unwrap(), 1 << 20);
    stream.alloc(DType::F32, 1 << 18).unwrap();
    assert!(stream.alloc(DType::F32, usize::MAX).is_err());
}

#[test]
fn a_captured_graph_runs_when_replayed() {
    let stream = stream();
    let mut results = Readback::<u32>::new(&stream, 2).unwrap();
    let mut memory = stream.alloc(DType::U32, 1).unwrap();
    let graph = stream.capture(|| results.enqueue(2)).unwrap();
    assert_eq!(graph.launches(), 0);
    assert_eq!(results.wait(2).unwrap(), [0, 0]);
    let before = stream.counters();
    graph.replay().unwrap();
    let after = stream.counters();
    assert_eq!((after.replays - before.replays, after.launches - before.launches), (1, 0));
    assert_eq!((after.allocations, after.uploads), (before.allocations, before.uploads));
    assert_eq!(results.wait(1).unwrap(), [0]);
    assert!(results.wait(3).is_err(), "more than there are");
    memory.write(&[1u32]).unwrap();
    assert_eq!(stream.counters().uploads - after.uploads, 1);
}

/// Work that a graph cannot contain is refused by name, and the stream stays usable.
#[test]
fn a_capture_that_allocates_uploads_or_waits_is_an_error() {
    let stream = stream();
    let device = stream.info().device.clone();
    let mut memory = stream.alloc(DType::U32, 1).unwrap();
    let mut refused = |what: &str, attempt: &mut dyn FnMut(&mut Memory) -> burrstone::Result<()>| {
        let error = stream.capture(|| attempt(&mut memory)).map(drop).unwrap_err().to_string();
        assert_eq!(error, format!("device {device}: {what}"));
    };
    let other = stream.capture(|| Ok(())).unwrap();
    refused("an allocation while a graph is being captured", &mut |_| stream.alloc(DType::U32, 1).map(drop));
    refused("an upload while a graph is being captured", &mut |memory| memory.write(&[1u32]));
    refused("a synchronization while a graph is being captured", &mut |_| stream.synchronize());
    refused("a synchronization while a graph is being captured", &mut |memory| memory.read::<u32>().map(drop));
    refused("a replay while a graph is being captured", &mut |_| other.replay());
    refused("a graph is being captured already", &mut |_| stream.capture(|| Ok(())).map(drop));
    assert_eq!(memory.read::<u32>().unwrap(), [0], "captured work did not run");
    memory.write(&[7u32]).unwrap();
    assert_eq!(memory.read::<u32>().unwrap(), [7], "the stream stays usable");
}

/// Work is timed on the device; a graph cannot be captured meanwhile.
#[test]
fn enqueued_work_is_timed() {
    let stream = stream();
    let mut memory = stream.alloc(DType::U8, 1 << 19).unwrap();
    let time = stream.timed(|| (0..20).try_for_each(|_| memory.clear())).unwrap();
    assert!(time > Duration::ZERO);
    let error = stream.capture(|| stream.timed(|| Ok(())).map(drop)).map(drop).unwrap_err().to_string();
    assert!(error.ends_with("a measurement while a graph is being captured"), "{error}");
}

/// Memory that a graph may use is freed only with the graph.
#[test]
fn memory_that_a_graph_may_use_outlives_its_owner_on_the_simulator() {
    let stream = stream();
    let memory = stream.alloc(DType::U8, 1 << 19).unwrap();
    let graph = stream.capture(|| Ok(())).unwrap();
    drop(memory);
    assert_eq!(stream.free_bytes().unwrap(), 1 << 19);
    // Memory allocated after the capture is not in the graph, so it is freed at once.
    drop(stream.alloc(DType::U8, 1 << 18).unwrap());
    assert_eq!(stream.free_bytes().unwrap(), 1 << 19);
    drop(graph);
    assert_eq!(stream.free_bytes().unwrap(), 1 << 20);
}

#[test]
fn an_unknown_architecture_is_refused_on_the_simulator() {
    let error = Stream::sim(SimOptions { arch: 60, ..SimOptions::default() }).map(drop).unwrap_err().to_string();
    assert_eq!(error, "sim-arch: expected one of [70, 75, 80, 86, 89, 90], found 60");
}

/// Without a driver asking for a GPU is an error, not a panic.
#[cfg(feature = "cuda")]
#[test]
fn a_missing_gpu_is_an_error_value() {
    let n = Stream::cuda_devices();
    let error = Stream::cuda(n).map(drop).unwrap_err().to_string();
    assert!(error.starts_with(&format!("device cuda:{n}: ")), "{error}");
}
