use super::Real;
use super::rms_norm::rms_norm;

/// One head: RMS norm if `gain` is given, then a rotation of elements `i` and `i + half` by `cos[i]`, `sin[i]`.
pub fn head<T: Real>(x: &[f32], gain: Option<(&[f32], f32)>, cos: &[f32], sin: &[f32]) -> Vec<T> {
    let mut y: Vec<T> = match gain {
        Some((gain, eps)) => rms_norm(x, gain, eps),
        None => x.iter().map(|&x| T::of(x)).collect(),
    };
    let half = cos.len();
    for i in 0..half {
        let (a, b, c, s) = (y[i], y[i + half], T::of(cos[i]), T::of(sin[i]));
        y[i] = a * c - b * s;
        y[i + half] = b * c + a * s;
    }
    y
}
