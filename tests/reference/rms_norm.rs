use super::Real;

/// One row: `x / rms(x) · weight`.
pub fn rms_norm<T: Real>(x: &[f32], weight: &[f32], eps: f32) -> Vec<T> {
    let mut squares = T::of(0.0);
    for &x in x {
        squares = squares + T::of(x) * T::of(x);
    }
    let rms = (squares / T::of(x.len() as f32) + T::of(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| T::of(x) / rms * T::of(w)).collect()
}
