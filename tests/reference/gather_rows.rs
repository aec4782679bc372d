/// `x[rows[i]]` for each `i`.
pub fn gather_rows(x: &[f32], width: usize, rows: &[u32]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &x[row as usize * width..][..width]).copied().collect()
}
