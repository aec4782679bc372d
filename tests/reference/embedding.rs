/// `out[t] = table[tokens[t]]`, `table: [_, width]`.
pub fn embedding(table: &[f32], tokens: &[u32], width: usize) -> Vec<f32> {
    tokens.iter().flat_map(|&t| table[t as usize * width..][..width].iter().copied()).collect()
}
