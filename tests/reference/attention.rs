use super::Real;

/// How scores are computed from queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct Scoring {
    pub scale: f32,
    /// Soft cap: a score becomes `cap · tanh(score / cap)`.
    pub cap: Option<f32>,
    /// ALiBi slope: a score falls by this for each position that its key is before the query, and rises for keys after
    /// it.
    pub slope: f32,
    /// Visible keys after the query's own position.
    pub ahead: usize,
    /// A score that takes part in the softmax but has no value.
    pub sink: Option<f32>,
}

impl Scoring {
    pub fn scaled(scale: f32) -> Self {
        Self { scale, cap: None, slope: 0.0, ahead: 0, sink: None }
    }
}

/// One query over its visible keys and values, `[positions][head_dim]`.
pub fn attend<T: Real>(query: &[f32], keys: &[&[f32]], values: &[&[f32]], scoring: Scoring) -> Vec<T> {
    let Scoring { scale, cap, slope, ahead, sink } = scoring;
    let dot = |(i, key): (usize, &&[f32])| {
        let mut sum = T::of(0.0);
        for (&q, &k) in query.iter().zip(*key) {
            sum = sum + T::of(q) * T::of(k);
        }
        let score = sum * T::of(scale);
        let score = cap.map_or(score, |cap| T::of(cap) * (score / T::of(cap)).tanh());
        score - T::of(slope) * T::of((keys.len() - 1 - i) as f32 - ahead as f32)
    };
    let scores: Vec<T> = keys.iter().enumerate().map(dot).collect();
    let first = sink.map_or(scores[0], T::of);
    let max = scores.iter().copied().fold(first, |a, b| if a > b { a } else { b });
    let mut total = sink.map_or(T::of(0.0), |sink| (T::of(sink) - max).exp());
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
