use super::Real;

pub fn silu<T: Real>(x: T) -> T {
    x / (T::of(1.0) + (T::of(0.0) - x).exp())
}

pub fn gelu_tanh<T: Real>(x: T) -> T {
    let c = (T::of(2.0) / T::of(1.0).exp().ln() / pi()).sqrt();
    let cubic = T::of(44_715.0) / T::of(1e6) * x * x * x;
    T::of(0.5) * x * (T::of(1.0) + (c * (x + cubic)).tanh())
}

/// By the Taylor series of erf, which is exact enough in f64 for |x| up to 6; in f32 its error is that of the plain
/// implementation.
pub fn gelu<T: Real>(x: T) -> T {
    let z = x / T::of(2.0).sqrt();
    let (mut term, mut sum) = (z, z);
    for i in 1..200 {
        let n = T::of(i as f32);
        term = T::of(0.0) - term * z * z / n;
        sum = sum + term / (T::of(2.0) * n + T::of(1.0));
    }
    T::of(0.5) * x * (T::of(1.0) + T::of(2.0) / pi::<T>().sqrt() * sum)
}

/// π by Machin's formula: 355/113 is not exact enough.
fn pi<T: Real>() -> T {
    let atan = |inverse: f32| {
        let x = T::of(1.0) / T::of(inverse);
        let (mut power, mut sum) = (x, x);
        for i in 1..20 {
            power = T::of(0.0) - power * x * x;
            sum = sum + power / T::of((2 * i + 1) as f32);
        }
        sum
    };
    T::of(16.0) * atan(5.0) - T::of(4.0) * atan(239.0)
}
