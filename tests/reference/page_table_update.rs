/// Sets entry `changes[i][0]` of `table` to `changes[i][1]`.
pub fn page_table_update(table: &mut [u32], changes: &[[u32; 2]]) {
    for &[entry, page] in changes {
        table[entry as usize] = page;
    }
}
