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

/// One row: `(x − mean) / deviation · weight`.
pub fn layer_norm<T: Real>(x: &[f32], weight: &[f32], eps: f32) -> Vec<T> {
    let n = T::of(x.len() as f32);
    let mean = x.iter().fold(T::of(0.0), |sum, &x| sum + T::of(x)) / n;
    let squares = x.iter().fold(T::of(0.0), |sum, &x| sum + (T::of(x) - mean) * (T::of(x) - mean));
    let deviation = (squares / n + T::of(eps)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| (T::of(x) - mean) / deviation * T::of(w)).collect()
}
