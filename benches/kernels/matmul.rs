use burrstone::ops::Activation;
use criterion::Criterion;

use crate::problems::matmul::PROBLEMS;
use crate::support::{Bench, Lab, Work};

/// Codes that share a scale.
const GROUP: usize = 128;

pub fn bench<D: Bench>(criterion: &mut Criterion, lab: &Lab<D>) {
    for problem in PROBLEMS {
        let (n, k) = (problem.n, problem.k);
        let matrices = lab.matrices(n, k);
        let mut vendor = lab.device.vendor_matmul(lab.views(n, k).collect(), n, k);
        for &rows in lab.device.product_rows() {
            let x = lab.buffer(lab.device.dtype(), rows * k);
            let mut out = lab.buffer(lab.wide_dtype(), rows * n);
            let sets = matrices.len();
            let bytes = (n * k + rows * k) * lab.narrow() + rows * n * lab.wide();
            let (case, work) = (format!("{}/{rows}", problem.label), Work { bytes, flops: 2 * rows * n * k });
            lab.measure(criterion, "matmul", &case, work, sets, |set| {
                lab.device.matmul(rows, &x, &matrices[set], &mut out)
            });
            if let Some(vendor) = &mut vendor {
                lab.measure(criterion, "vendor_matmul", &case, work, sets, |set| vendor(set, rows, &x, &mut out));
            }
        }
    }
    let large = PROBLEMS.iter().filter(|problem| problem.label.starts_with("8b"));
    for (problem, bits) in large.flat_map(|problem| [(problem, 4), (problem, 8)]) {
        let (n, k) = (problem.n, problem.k);
        let matrices = lab.coded_matrices(n, k, bits, GROUP);
        for &rows in lab.device.product_rows() {
            let x = lab.buffer(lab.device.dtype(), rows * k);
            let mut out = lab.buffer(lab.wide_dtype(), rows * n);
            let sets = matrices.len();
            let bytes = n * k * bits / 8 + n * k / GROUP * 4 + rows * k * lab.narrow() + rows * n * lab.wide();
            let (case, work) = (format!("{}/{rows}", problem.label), Work { bytes, flops: 2 * rows * n * k });
            lab.measure(criterion, &format!("matmul_u{bits}"), &case, work, sets, |set| {
                lab.device.matmul(rows, &x, &matrices[set], &mut out)
            });
        }
    }
    for problem in PROBLEMS.iter().filter(|problem| problem.label.ends_with("gate_up")) {
        let (width, k) = (problem.n / 2, problem.k);
        let matrices = lab.gated_matrices(width, k);
        for &rows in lab.device.product_rows() {
            let x = lab.buffer(lab.device.dtype(), rows * k);
            let mut out = lab.buffer(lab.device.dtype(), rows * width);
            let sets = matrices.len();
            let bytes = (2 * width * k + rows * k + rows * width) * lab.narrow();
            let work = Work { bytes, flops: 4 * rows * width * k };
            lab.measure(criterion, "gated_matmul", &format!("{}/{rows}", problem.label), work, sets, |set| {
                lab.device.gated_matmul(rows, &x, &matrices[set], Activation::Silu, &mut out)
            });
        }
    }
}
