use super::Real;

/// `log softmax(logits)`.
pub fn log_softmax<T: Real>(logits: &[f32]) -> Vec<T> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = T::of(0.0);
    for &x in logits {
        total = total + (T::of(x) - T::of(max)).exp();
    }
    logits.iter().map(|&x| T::of(x) - T::of(max) - total.ln()).collect()
}
