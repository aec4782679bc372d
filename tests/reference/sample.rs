use burrstone::ops::SampleRow;

/// Probability of each token after penalties, biases, mask, temperature, top-k, top-p, min-p and typical-p, computed by
/// sorting in f64. The temperature must be above 0.
pub fn distribution(logits: &[f32], row: &SampleRow) -> Vec<f64> {
    let mut x: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for (t, generated) in row.history.iter().flat_map(|history| history.tokens()) {
        let logit = &mut x[t as usize];
        let penalty = f64::from(row.repetition_penalty);
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        *logit -= f64::from(row.frequency_penalty) * f64::from(generated);
        if generated > 0 {
            *logit -= f64::from(row.presence_penalty);
        }
    }
    for &(t, bias) in &row.logit_bias {
        x[t as usize] += f64::from(bias);
    }
    for (t, logit) in x.iter_mut().enumerate() {
        if row.mask.as_ref().is_some_and(|mask| mask.words()[t / 32] >> (t % 32) & 1 == 0) {
            *logit = f64::NEG_INFINITY;
        }
    }
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> = x.iter().map(|x| ((x - max) / f64::from(row.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    if row.top_k > 0 && row.top_k < p.len() {
        let least = p[order[row.top_k - 1]];
        p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
    }
    let total: f64 = p.iter().sum();
    let mut sum = 0.0;
    for &t in &order {
        if sum >= f64::from(row.top_p) * total {
            p[t] = 0.0;
        }
        sum += p[t];
    }
    p.iter_mut().filter(|p| **p < f64::from(row.min_p)).for_each(|p| *p = 0.0);
    normalize(&mut p);
    if row.typical_p < 1.0 {
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let away = |p: f64| (-p.ln() - entropy).abs();
        order.sort_by(|&a, &b| away(p[a]).total_cmp(&away(p[b])));
        let mut sum = 0.0;
        let last = order.iter().find(|&&t| {
            sum += p[t];
            sum >= f64::from(row.typical_p)
        });
        let most = away(p[*last.unwrap_or(&order[0])]);
        p.iter_mut().filter(|p| away(**p) > most + 1e-9).for_each(|p| *p = 0.0);
        normalize(&mut p);
    }
    p
}

fn normalize(p: &mut [f64]) {
    let total: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= total);
}
