//! Measures every kernel on the layers of real models, against the floor of this machine: `cargo bench --bench
//! kernels`. `BURRSTONE_BENCH_DEVICE=cuda` measures the CUDA kernels on a GPU, `BURRSTONE_BENCH_KERNELS=matmul,sample`
//! only these kernels.

use burrstone::cpu::{Cpu, CpuOptions};
use burrstone::device::{SimOptions, Stream};

#[path = "kernels/cpu.rs"]
mod cpu;
#[path = "kernels/gpu.rs"]
mod gpu;
#[path = "kernels/layers.rs"]
mod layers;
#[path = "../tests/simulator/mod.rs"]
mod simulator;
#[path = "kernels/support.rs"]
mod support;

/// The shapes of `codegen/specs`: benches and tests share them.
#[allow(dead_code, reason = "tests and benches each read the fields that they need")]
mod problems {
    include!(concat!(env!("OUT_DIR"), "/problems.rs"));
}

// Kernels, by `burrstone-codegen lists`:
#[path = "kernels/act_mul.rs"]
mod act_mul;
#[path = "kernels/attention.rs"]
mod attention;
#[path = "kernels/embedding.rs"]
mod embedding;
#[path = "kernels/gather_rows.rs"]
mod gather_rows;
#[path = "kernels/matmul.rs"]
mod matmul;
#[path = "kernels/page_copy.rs"]
mod page_copy;
#[path = "kernels/page_table_update.rs"]
mod page_table_update;
#[path = "kernels/rms_norm.rs"]
mod rms_norm;
#[path = "kernels/rotary_kv_write.rs"]
mod rotary_kv_write;
#[path = "kernels/sample.rs"]
mod sample;
#[path = "kernels/target_logprobs.rs"]
mod target_logprobs;
// End of kernels.

/// Measures a kernel on a device.
type Measure<D> = fn(&mut criterion::Criterion, &support::Lab<D>);

fn all<D: support::Bench>(device: D) {
    let benches: &[(&str, Measure<D>)] = &[
        // Benches, by `burrstone-codegen lists`:
        ("act_mul", act_mul::bench),
        ("attention", attention::bench),
        ("embedding", embedding::bench),
        ("gather_rows", gather_rows::bench),
        ("matmul", matmul::bench),
        ("page_copy", page_copy::bench),
        ("page_table_update", page_table_update::bench),
        ("rms_norm", rms_norm::bench),
        ("rotary_kv_write", rotary_kv_write::bench),
        ("sample", sample::bench),
        ("target_logprobs", target_logprobs::bench),
        // End of benches.
        ("layers", layers::bench),
    ];
    let chosen = std::env::var("BURRSTONE_BENCH_KERNELS").ok();
    let chosen: Option<Vec<&str>> = chosen.as_deref().map(|list| list.split(',').collect());
    if let Some(other) = chosen.iter().flatten().find(|name| benches.iter().all(|(bench, _)| bench != *name)) {
        let names: Vec<_> = benches.iter().map(|(name, _)| *name).collect();
        eprintln!("BURRSTONE_BENCH_KERNELS: expected some of {}, found {other}", names.join(", "));
        std::process::exit(2);
    }
    let mut criterion = criterion::Criterion::default().configure_from_args();
    let mut lab = support::Lab::new(device);
    for (name, bench) in benches {
        if chosen.as_ref().is_none_or(|chosen| chosen.contains(name)) {
            lab.probe();
            bench(&mut criterion, &lab);
        }
    }
    criterion.final_summary();
}

fn main() -> burrstone::Result<()> {
    match std::env::var("BURRSTONE_BENCH_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => all(Cpu::new(CpuOptions::default())?),
        Ok("cuda") => all(gpu::gpu(Stream::cuda(0)?)?),
        // The simulator's times are meaningless, but the benches can be tried on it (`-- --test`).
        Ok("sim") => {
            simulator::load();
            all(gpu::gpu(Stream::sim(SimOptions::default())?)?);
        }
        Ok(other) => {
            eprintln!("BURRSTONE_BENCH_DEVICE: expected cpu, cuda or sim, found {other}");
            std::process::exit(2);
        }
    }
    Ok(())
}
