//! Text in columns.

/// Columns as wide as their widest cell: the first `left` of them left-aligned, the others, numbers, right-aligned.
pub fn aligned<const N: usize>(rows: &[[String; N]], left: usize) -> String {
    let widths: Vec<_> = (0..N).map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells
            .map(|(i, (cell, &width))| if i < left { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_left_and_numbers_right_aligned() {
        let rows = [["a", "1"], ["bc", "234"]].map(|row| row.map(str::to_owned));
        assert_eq!(super::aligned(&rows, 1), "a     1\nbc  234\n");
        assert_eq!(super::aligned(&rows, 2), "a   1\nbc  234\n");
    }
}
