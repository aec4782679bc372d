//! Every kernel on the layers of real models, with the floor of this machine beside: `cargo bench --bench kernels`.
//! `BURRSTONE_BENCH_DEVICE=cuda` measures the CUDA kernels on a GPU.

use burrstone::cpu::{Cpu, CpuOptions};
use burrstone::device::{SimOptions, Stream};

#[path = "kernels/cpu.rs"]
mod cpu;
#[path = "kernels/gpu.rs"]
mod gpu;
#[path = "../tests/simulator/mod.rs"]
mod simulator;
#[path = "kernels/support.rs"]
mod support;

/// The shapes of `codegen/specs`: what is measured is what is tested.
#[allow(dead_code, reason = "tests and benches each read the fields that they need")]
mod problems {
    include!(concat!(env!("OUT_DIR"), "/problems.rs"));
}

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

fn all<D: support::Bench>(device: D) {
    let mut criterion = criterion::Criterion::default().configure_from_args();
    let mut lab = support::Lab::new(device);
    for bench in [
        act_mul::bench,
        attention::bench,
        embedding::bench,
        gather_rows::bench,
        matmul::bench,
        page_copy::bench,
        page_table_update::bench,
        rms_norm::bench,
        rotary_kv_write::bench,
        sample::bench,
        target_logprobs::bench,
    ] {
        lab.probe();
        bench(&mut criterion, &lab);
    }
    criterion.final_summary();
}

fn main() -> burrstone::Result<()> {
    match std::env::var("BURRSTONE_BENCH_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => all(Cpu::new(CpuOptions::default())?),
        Ok("cuda") => all(gpu::gpu(Stream::cuda(0)?)?),
        // Its times mean nothing; what is measured can be tried out (`-- --test`).
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
