use super::Real;

/// `x: [rows, k]`, `w: [n, k]`, optional `bias: [n]`.
pub fn matmul<T: Real>(x: &[f32], w: &[f32], bias: Option<&[f32]>, rows: usize, n: usize, k: usize) -> Vec<T> {
    let mut out = Vec::new();
    for r in 0..rows {
        for c in 0..n {
            let mut sum = T::of(0.0);
            for i in 0..k {
                sum = sum + T::of(x[r * k + i]) * T::of(w[c * k + i]);
            }
            out.push(sum + T::of(bias.map_or(0.0, |b| b[c])));
        }
    }
    out
}
