/// `cache: [planes, pages, page]`. Copies page `from` to page `to` in every plane.
pub fn page_copy<T: Copy>(cache: &mut [T], pages: usize, page: usize, pairs: &[[u32; 2]]) {
    for plane in cache.chunks_mut(pages * page) {
        for [from, to] in pairs.iter().map(|pair| pair.map(|p| p as usize)) {
            plane.copy_within(from * page..(from + 1) * page, to * page);
        }
    }
}
