use super::Real;

/// One query over the keys and values that it sees, `[positions][head_dim]`. Scores beyond `cap` are bent to it.
pub fn attend<T: Real>(query: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32, cap: Option<f32>) -> Vec<T> {
    let dot = |key: &[f32]| {
        let mut sum = T::of(0.0);
        for (&q, &k) in query.iter().zip(key) {
            sum = sum + T::of(q) * T::of(k);
        }
        let score = sum * T::of(scale);
        cap.map_or(score, |cap| T::of(cap) * (score / T::of(cap)).tanh())
    };
    let scores: Vec<T> = keys.iter().map(|key| dot(key)).collect();
    let max = scores.iter().copied().fold(scores[0], |a, b| if a > b { a } else { b });
    let mut total = T::of(0.0);
    let mut out = vec![T::of(0.0); query.len()];
    for (&score, value) in scores.iter().zip(values) {
        let weight = (score - max).exp();
        total = total + weight;
        for (o, &v) in out.iter_mut().zip(*value) {
            *o = *o + weight * T::of(v);
        }
    }
    out.into_iter().map(|o| o / total).collect()
}
