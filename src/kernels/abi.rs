// Generated from csrc/abi: cargo run -p burrstone-codegen --features bindings -- bindings

pub const BURRSTONE_SILU: u32 = 1;
pub const BURRSTONE_GELU_TANH: u32 = 2;
pub const BURRSTONE_GELU_ERF: u32 = 3;
pub const BURRSTONE_NO_SLOT: u32 = 4294967295;
pub const BURRSTONE_MATMUL_K_SLICE: u32 = 512;
pub const BURRSTONE_MATMUL_COUNTERS: u32 = 4096;
pub const BURRSTONE_MATMUL_GATES: u32 = 8;
pub const BURRSTONE_MATMUL_CODE_ROWS: u32 = 256;
pub const BURRSTONE_MATMUL_PAIR_X: u32 = 1;
pub const BURRSTONE_MATMUL_PAIR_WEIGHT: u32 = 2;
pub const BURRSTONE_MATMUL_E4M3: u32 = 1;
pub const BURRSTONE_MATMUL_I8: u32 = 2;
/// An address in the device's memory; 0 where an optional array is absent.
pub type device_ptr = u64;
/// One sequence's share of a batch.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct attention_span {
    /// First token of the sequence in the flat batch.
    pub start: u32,
    /// Tokens of the sequence in this batch; 0 in a row that only pads a captured step.
    pub len: u32,
    /// Tokens in the cache once this batch is written; the last query sits at position kv_len - 1.
    pub kv_len: u32,
    /// First entry of the sequence in the page table.
    pub pages: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_span"][::core::mem::size_of::<attention_span>() - 16usize];
    ["Alignment of attention_span"][::core::mem::align_of::<attention_span>() - 4usize];
    ["Offset of field: attention_span::start"][::core::mem::offset_of!(attention_span, start) - 0usize];
    ["Offset of field: attention_span::len"][::core::mem::offset_of!(attention_span, len) - 4usize];
    ["Offset of field: attention_span::kv_len"][::core::mem::offset_of!(attention_span, kv_len) - 8usize];
    ["Offset of field: attention_span::pages"][::core::mem::offset_of!(attention_span, pages) - 12usize];
};
/// What a query sees other than all before it and itself. Zeros for a query that sees just that.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct attention_mask {
    /// A range of positions that the query's is in, all of which it sees, and those of its window and chunk besides: an
    /// image's, say. Every query of the range has the same one, and its keys are in the cache.
    pub begin: u32,
    pub end: u32,
    /// Where the queries of a sequence in this batch, at most 64, are nodes of a tree, parents before their children:
    /// those on the way from the root to this one, itself included, from the lowest bit of branch[0] on. It sees them
    /// and what is in the cache before the batch; window and chunk count from behind the nodes above it, slopes from
    /// its key.
    pub branch: [u32; 2usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_mask"][::core::mem::size_of::<attention_mask>() - 16usize];
    ["Alignment of attention_mask"][::core::mem::align_of::<attention_mask>() - 4usize];
    ["Offset of field: attention_mask::begin"][::core::mem::offset_of!(attention_mask, begin) - 0usize];
    ["Offset of field: attention_mask::end"][::core::mem::offset_of!(attention_mask, end) - 4usize];
    ["Offset of field: attention_mask::branch"][::core::mem::offset_of!(attention_mask, branch) - 8usize];
};
/// out[t, i] = activation(gate_up[t, i]) * gate_up[t, width + i].
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct act_mul_args {
    /// [rows, 2 width]
    pub gate_up: device_ptr,
    /// [rows, width]
    pub out: device_ptr,
    /// f32 [rows]: what a quantized output must be multiplied by; 0 where it is not quantized
    pub scales: device_ptr,
    pub rows: u32,
    pub width: u32,
    /// one of abi/activation.h
    pub activation: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of act_mul_args"][::core::mem::size_of::<act_mul_args>() - 40usize];
    ["Alignment of act_mul_args"][::core::mem::align_of::<act_mul_args>() - 8usize];
    ["Offset of field: act_mul_args::gate_up"][::core::mem::offset_of!(act_mul_args, gate_up) - 0usize];
    ["Offset of field: act_mul_args::out"][::core::mem::offset_of!(act_mul_args, out) - 8usize];
    ["Offset of field: act_mul_args::scales"][::core::mem::offset_of!(act_mul_args, scales) - 16usize];
    ["Offset of field: act_mul_args::rows"][::core::mem::offset_of!(act_mul_args, rows) - 24usize];
    ["Offset of field: act_mul_args::width"][::core::mem::offset_of!(act_mul_args, width) - 28usize];
    ["Offset of field: act_mul_args::activation"][::core::mem::offset_of!(act_mul_args, activation) - 32usize];
    ["Offset of field: act_mul_args::padding"][::core::mem::offset_of!(act_mul_args, padding) - 36usize];
};
/// A tensor and the boxes it is copied in. Made by the device: CUDA's CUtensorMap, or the simulator's own. Opaque, 128
/// bytes at a multiple of 64.
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct tensor_map {
    pub opaque: [u64; 16usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of tensor_map"][::core::mem::size_of::<tensor_map>() - 128usize];
    ["Alignment of tensor_map"][::core::mem::align_of::<tensor_map>() - 64usize];
    ["Offset of field: tensor_map::opaque"][::core::mem::offset_of!(tensor_map, opaque) - 0usize];
};
/// Softmax attention of one query, or a few, of each sequence over the paged cache.
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct attention_decode_args {
    /// On Hopper, 16 bits, where entries lie at multiples of 16 bytes: keys and values as [entries, head_dim], in boxes
    /// of box_rows entries of a page and 64 columns, with a swizzle of 128 bytes. Else zeros.
    pub key_boxes: tensor_map,
    pub value_boxes: tensor_map,
    /// [tokens, heads, head_dim]
    pub query: device_ptr,
    /// [tokens, heads, head_dim]
    pub out: device_ptr,
    /// one layer: [pages, kv_heads, page_size, head_dim]
    pub keys: device_ptr,
    /// the same
    pub values: device_ptr,
    /// int8 cache: f32 [pages, kv_heads, page_size]; else 0
    pub key_scales: device_ptr,
    /// the same
    pub value_scales: device_ptr,
    /// f32 [heads]: a score rises by slope * (key's position - query's); or 0
    pub slopes: device_ptr,
    /// f32 [heads]: a score without a value, seen by every query of the head; or 0
    pub sinks: device_ptr,
    /// attention_mask [tokens]; 0 where every query sees all before it and itself
    pub masks: device_ptr,
    /// attention_span [spans_len]
    pub spans: device_ptr,
    /// u32
    pub page_table: device_ptr,
    /// u32 [records], zeros before and after
    pub counters: device_ptr,
    /// f32 [records, head_dim in whole pairs + 2]
    pub partials: device_ptr,
    /// states of rows after a split, that there is room for
    pub records: u32,
    pub spans_len: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// log2 of the page size
    pub page_bits: u32,
    /// a power of two from 8 to 64; 0 where there are no boxes
    pub box_rows: u32,
    /// a query at p sees p - window + 1 ..= p; 0 sees all
    pub window: u32,
    /// a query sees positions of its own chunk of so many; 0 sees all
    pub chunk: u32,
    /// of the scores, before the softmax
    pub scale: f32,
    /// scores become soft_cap * tanh(score / soft_cap); 0 leaves them
    pub soft_cap: f32,
    /// fp8 cache: x = stored * scale; 1 for the others
    pub key_scale: f32,
    pub value_scale: f32,
    /// zeros: up to a multiple of the maps' alignment
    pub unused: [u32; 9usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_decode_args"][::core::mem::size_of::<attention_decode_args>() - 448usize];
    ["Alignment of attention_decode_args"][::core::mem::align_of::<attention_decode_args>() - 64usize];
    ["Offset of field: attention_decode_args::key_boxes"]
        [::core::mem::offset_of!(attention_decode_args, key_boxes) - 0usize];
    ["Offset of field: attention_decode_args::value_boxes"]
        [::core::mem::offset_of!(attention_decode_args, value_boxes) - 128usize];
    ["Offset of field: attention_decode_args::query"][::core::mem::offset_of!(attention_decode_args, query) - 256usize];
    ["Offset of field: attention_decode_args::out"][::core::mem::offset_of!(attention_decode_args, out) - 264usize];
    ["Offset of field: attention_decode_args::keys"][::core::mem::offset_of!(attention_decode_args, keys) - 272usize];
    ["Offset of field: attention_decode_args::values"]
        [::core::mem::offset_of!(attention_decode_args, values) - 280usize];
    ["Offset of field: attention_decode_args::key_scales"]
        [::core::mem::offset_of!(attention_decode_args, key_scales) - 288usize];
    ["Offset of field: attention_decode_args::value_scales"]
        [::core::mem::offset_of!(attention_decode_args, value_scales) - 296usize];
    ["Offset of field: attention_decode_args::slopes"]
        [::core::mem::offset_of!(attention_decode_args, slopes) - 304usize];
    ["Offset of field: attention_decode_args::sinks"][::core::mem::offset_of!(attention_decode_args, sinks) - 312usize];
    ["Offset of field: attention_decode_args::masks"][::core::mem::offset_of!(attention_decode_args, masks) - 320usize];
    ["Offset of field: attention_decode_args::spans"][::core::mem::offset_of!(attention_decode_args, spans) - 328usize];
    ["Offset of field: attention_decode_args::page_table"]
        [::core::mem::offset_of!(attention_decode_args, page_table) - 336usize];
    ["Offset of field: attention_decode_args::counters"]
        [::core::mem::offset_of!(attention_decode_args, counters) - 344usize];
    ["Offset of field: attention_decode_args::partials"]
        [::core::mem::offset_of!(attention_decode_args, partials) - 352usize];
    ["Offset of field: attention_decode_args::records"]
        [::core::mem::offset_of!(attention_decode_args, records) - 360usize];
    ["Offset of field: attention_decode_args::spans_len"]
        [::core::mem::offset_of!(attention_decode_args, spans_len) - 364usize];
    ["Offset of field: attention_decode_args::heads"][::core::mem::offset_of!(attention_decode_args, heads) - 368usize];
    ["Offset of field: attention_decode_args::kv_heads"]
        [::core::mem::offset_of!(attention_decode_args, kv_heads) - 372usize];
    ["Offset of field: attention_decode_args::head_dim"]
        [::core::mem::offset_of!(attention_decode_args, head_dim) - 376usize];
    ["Offset of field: attention_decode_args::page_bits"]
        [::core::mem::offset_of!(attention_decode_args, page_bits) - 380usize];
    ["Offset of field: attention_decode_args::box_rows"]
        [::core::mem::offset_of!(attention_decode_args, box_rows) - 384usize];
    ["Offset of field: attention_decode_args::window"]
        [::core::mem::offset_of!(attention_decode_args, window) - 388usize];
    ["Offset of field: attention_decode_args::chunk"][::core::mem::offset_of!(attention_decode_args, chunk) - 392usize];
    ["Offset of field: attention_decode_args::scale"][::core::mem::offset_of!(attention_decode_args, scale) - 396usize];
    ["Offset of field: attention_decode_args::soft_cap"]
        [::core::mem::offset_of!(attention_decode_args, soft_cap) - 400usize];
    ["Offset of field: attention_decode_args::key_scale"]
        [::core::mem::offset_of!(attention_decode_args, key_scale) - 404usize];
    ["Offset of field: attention_decode_args::value_scale"]
        [::core::mem::offset_of!(attention_decode_args, value_scale) - 408usize];
    ["Offset of field: attention_decode_args::unused"]
        [::core::mem::offset_of!(attention_decode_args, unused) - 412usize];
};
/// A tile of queries of one sequence: with those behind it, or taken along with those before it.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct attention_tile {
    pub span: u32,
    /// First query of the tile, counted from the span's start.
    pub first: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_tile"][::core::mem::size_of::<attention_tile>() - 8usize];
    ["Alignment of attention_tile"][::core::mem::align_of::<attention_tile>() - 4usize];
    ["Offset of field: attention_tile::span"][::core::mem::offset_of!(attention_tile, span) - 0usize];
    ["Offset of field: attention_tile::first"][::core::mem::offset_of!(attention_tile, first) - 4usize];
};
/// Softmax attention of many queries of each sequence over the paged cache.
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct attention_prefill_args {
    /// On Hopper, 16 bits, where entries lie at multiples of 16 bytes: keys and values as [entries, head_dim], in boxes
    /// of box_rows entries of a page and 64 columns, with a swizzle of 128 bytes. Else zeros.
    pub key_boxes: tensor_map,
    pub value_boxes: tensor_map,
    /// [tokens, heads, head_dim]
    pub query: device_ptr,
    /// [tokens, heads, head_dim]
    pub out: device_ptr,
    /// one layer: [pages, kv_heads, page_size, head_dim]
    pub keys: device_ptr,
    /// the same
    pub values: device_ptr,
    /// int8 cache: f32 [pages, kv_heads, page_size]; else 0
    pub key_scales: device_ptr,
    /// the same
    pub value_scales: device_ptr,
    /// f32 [heads]: a score rises by slope * (key's position - query's); or 0
    pub slopes: device_ptr,
    /// f32 [heads]: a score without a value, seen by every query of the head; or 0
    pub sinks: device_ptr,
    /// attention_mask [tokens]; 0 where every query sees all before it and itself
    pub masks: device_ptr,
    /// attention_span
    pub spans: device_ptr,
    /// u32
    pub page_table: device_ptr,
    /// attention_tile [tiles_len]
    pub tiles: device_ptr,
    pub tiles_len: u32,
    /// blocks work on as many queries of a span, from a multiple of as many on
    pub tile_queries: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// log2 of the page size
    pub page_bits: u32,
    /// a power of two from 8 to 64; 0 where there are no boxes
    pub box_rows: u32,
    /// a query at p sees p - window + 1 ..= p; 0 sees all
    pub window: u32,
    /// a query sees positions of its own chunk of so many; 0 sees all
    pub chunk: u32,
    /// of the scores, before the softmax
    pub scale: f32,
    /// scores become soft_cap * tanh(score / soft_cap); 0 leaves them
    pub soft_cap: f32,
    /// fp8 cache: x = stored * scale; 1 for the others
    pub key_scale: f32,
    pub value_scale: f32,
    /// zeros: up to a multiple of the maps' alignment
    pub unused: [u32; 11usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of attention_prefill_args"][::core::mem::size_of::<attention_prefill_args>() - 448usize];
    ["Alignment of attention_prefill_args"][::core::mem::align_of::<attention_prefill_args>() - 64usize];
    ["Offset of field: attention_prefill_args::key_boxes"]
        [::core::mem::offset_of!(attention_prefill_args, key_boxes) - 0usize];
    ["Offset of field: attention_prefill_args::value_boxes"]
        [::core::mem::offset_of!(attention_prefill_args, value_boxes) - 128usize];
    ["Offset of field: attention_prefill_args::query"]
        [::core::mem::offset_of!(attention_prefill_args, query) - 256usize];
    ["Offset of field: attention_prefill_args::out"][::core::mem::offset_of!(attention_prefill_args, out) - 264usize];
    ["Offset of field: attention_prefill_args::keys"][::core::mem::offset_of!(attention_prefill_args, keys) - 272usize];
    ["Offset of field: attention_prefill_args::values"]
        [::core::mem::offset_of!(attention_prefill_args, values) - 280usize];
    ["Offset of field: attention_prefill_args::key_scales"]
        [::core::mem::offset_of!(attention_prefill_args, key_scales) - 288usize];
    ["Offset of field: attention_prefill_args::value_scales"]
        [::core::mem::offset_of!(attention_prefill_args, value_scales) - 296usize];
    ["Offset of field: attention_prefill_args::slopes"]
        [::core::mem::offset_of!(attention_prefill_args, slopes) - 304usize];
    ["Offset of field: attention_prefill_args::sinks"]
        [::core::mem::offset_of!(attention_prefill_args, sinks) - 312usize];
    ["Offset of field: attention_prefill_args::masks"]
        [::core::mem::offset_of!(attention_prefill_args, masks) - 320usize];
    ["Offset of field: attention_prefill_args::spans"]
        [::core::mem::offset_of!(attention_prefill_args, spans) - 328usize];
    ["Offset of field: attention_prefill_args::page_table"]
        [::core::mem::offset_of!(attention_prefill_args, page_table) - 336usize];
    ["Offset of field: attention_prefill_args::tiles"]
        [::core::mem::offset_of!(attention_prefill_args, tiles) - 344usize];
    ["Offset of field: attention_prefill_args::tiles_len"]
        [::core::mem::offset_of!(attention_prefill_args, tiles_len) - 352usize];
    ["Offset of field: attention_prefill_args::tile_queries"]
        [::core::mem::offset_of!(attention_prefill_args, tile_queries) - 356usize];
    ["Offset of field: attention_prefill_args::heads"]
        [::core::mem::offset_of!(attention_prefill_args, heads) - 360usize];
    ["Offset of field: attention_prefill_args::kv_heads"]
        [::core::mem::offset_of!(attention_prefill_args, kv_heads) - 364usize];
    ["Offset of field: attention_prefill_args::head_dim"]
        [::core::mem::offset_of!(attention_prefill_args, head_dim) - 368usize];
    ["Offset of field: attention_prefill_args::page_bits"]
        [::core::mem::offset_of!(attention_prefill_args, page_bits) - 372usize];
    ["Offset of field: attention_prefill_args::box_rows"]
        [::core::mem::offset_of!(attention_prefill_args, box_rows) - 376usize];
    ["Offset of field: attention_prefill_args::window"]
        [::core::mem::offset_of!(attention_prefill_args, window) - 380usize];
    ["Offset of field: attention_prefill_args::chunk"]
        [::core::mem::offset_of!(attention_prefill_args, chunk) - 384usize];
    ["Offset of field: attention_prefill_args::scale"]
        [::core::mem::offset_of!(attention_prefill_args, scale) - 388usize];
    ["Offset of field: attention_prefill_args::soft_cap"]
        [::core::mem::offset_of!(attention_prefill_args, soft_cap) - 392usize];
    ["Offset of field: attention_prefill_args::key_scale"]
        [::core::mem::offset_of!(attention_prefill_args, key_scale) - 396usize];
    ["Offset of field: attention_prefill_args::value_scale"]
        [::core::mem::offset_of!(attention_prefill_args, value_scale) - 400usize];
    ["Offset of field: attention_prefill_args::unused"]
        [::core::mem::offset_of!(attention_prefill_args, unused) - 404usize];
};
/// out[t] = table[rows[t]]; a gather of rows of any table. Rows that the table lacks come out with every bit set.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct embedding_args {
    /// [tokens, width]
    pub out: device_ptr,
    /// [table_rows, width]
    pub table: device_ptr,
    /// u32 [tokens]
    pub rows: device_ptr,
    pub row_bytes: u64,
    pub tokens: u32,
    pub table_rows: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of embedding_args"][::core::mem::size_of::<embedding_args>() - 40usize];
    ["Alignment of embedding_args"][::core::mem::align_of::<embedding_args>() - 8usize];
    ["Offset of field: embedding_args::out"][::core::mem::offset_of!(embedding_args, out) - 0usize];
    ["Offset of field: embedding_args::table"][::core::mem::offset_of!(embedding_args, table) - 8usize];
    ["Offset of field: embedding_args::rows"][::core::mem::offset_of!(embedding_args, rows) - 16usize];
    ["Offset of field: embedding_args::row_bytes"][::core::mem::offset_of!(embedding_args, row_bytes) - 24usize];
    ["Offset of field: embedding_args::tokens"][::core::mem::offset_of!(embedding_args, tokens) - 32usize];
    ["Offset of field: embedding_args::table_rows"][::core::mem::offset_of!(embedding_args, table_rows) - 36usize];
};
/// out = x weight^T + bias. With an activation, out = activation(gate) * up, where gate and up are the results for rows
/// of the weight that alternate: BURRSTONE_MATMUL_GATES gates, as many ups, and so on; the last ones are filled up. Each
/// is rounded to x's type first, if out is not f32. With accumulate, which goes with neither an activation nor codes, what
/// out would be is rounded to its type, and added to what it holds.
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct matmul_args {
    /// x and the weight in boxes of 64 elements of k and a tile's rows, half of them of what a pair shares, with a swizzle of
    /// 128 bytes: on Hopper, where rows are aligned to 16 bytes; zeros elsewhere.
    pub x_boxes: tensor_map,
    pub weight_boxes: tensor_map,
    /// [m, k]
    pub x: device_ptr,
    /// [n, k]; or codes: see src/kernels/packed_weight.rs
    pub weight: device_ptr,
    /// [n] or 0
    pub bias: device_ptr,
    /// [m, columns]
    pub out: device_ptr,
    /// f32 [1]: with codes, what results are divided by; or 0
    pub scale: device_ptr,
    /// u32 [BURRSTONE_MATMUL_COUNTERS]: arrivals at each tile, 0 before and after the launch; then f32 [tiles, K slices,
    /// tile]: sums. At a multiple of 16 bytes; not used with one split.
    pub workspace: device_ptr,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    /// blocks that share the K slices of a tile: at least 1, at most their number
    pub splits: u32,
    /// n; with an activation the number of gates
    pub columns: u32,
    /// one of abi/activation.h, for outputs of x's type; or 0
    pub activation: u32,
    /// One of the above in clusters of two blocks, on Hopper, with boxes and one split; or 0.
    pub pair: u32,
    /// One of the types above that results of x's type are rounded to, saturating: then columns, and the address of out,
    /// are multiples of 4; or 0.
    pub codes: u32,
    /// 1 where results are added to what out holds; or 0
    pub accumulate: u32,
    /// Of codes: groups of 2^code_group_bits elements of k, at least 16.
    pub code_group_bits: u32,
    /// u32 [groups, rows]: the scale in x's type in the lower half, the zero point in the upper one. With code_floats f32, and
    /// all zero points are code_zero.
    pub code_scales: device_ptr,
    /// f32 [16]: what codes of four bits stand for, with code_floats; or 0
    pub code_table: device_ptr,
    pub code_floats: u32,
    pub code_zero: u32,
    pub padding: [u32; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of matmul_args"][::core::mem::size_of::<matmul_args>() - 384usize];
    ["Alignment of matmul_args"][::core::mem::align_of::<matmul_args>() - 64usize];
    ["Offset of field: matmul_args::x_boxes"][::core::mem::offset_of!(matmul_args, x_boxes) - 0usize];
    ["Offset of field: matmul_args::weight_boxes"][::core::mem::offset_of!(matmul_args, weight_boxes) - 128usize];
    ["Offset of field: matmul_args::x"][::core::mem::offset_of!(matmul_args, x) - 256usize];
    ["Offset of field: matmul_args::weight"][::core::mem::offset_of!(matmul_args, weight) - 264usize];
    ["Offset of field: matmul_args::bias"][::core::mem::offset_of!(matmul_args, bias) - 272usize];
    ["Offset of field: matmul_args::out"][::core::mem::offset_of!(matmul_args, out) - 280usize];
    ["Offset of field: matmul_args::scale"][::core::mem::offset_of!(matmul_args, scale) - 288usize];
    ["Offset of field: matmul_args::workspace"][::core::mem::offset_of!(matmul_args, workspace) - 296usize];
    ["Offset of field: matmul_args::m"][::core::mem::offset_of!(matmul_args, m) - 304usize];
    ["Offset of field: matmul_args::n"][::core::mem::offset_of!(matmul_args, n) - 308usize];
    ["Offset of field: matmul_args::k"][::core::mem::offset_of!(matmul_args, k) - 312usize];
    ["Offset of field: matmul_args::splits"][::core::mem::offset_of!(matmul_args, splits) - 316usize];
    ["Offset of field: matmul_args::columns"][::core::mem::offset_of!(matmul_args, columns) - 320usize];
    ["Offset of field: matmul_args::activation"][::core::mem::offset_of!(matmul_args, activation) - 324usize];
    ["Offset of field: matmul_args::pair"][::core::mem::offset_of!(matmul_args, pair) - 328usize];
    ["Offset of field: matmul_args::codes"][::core::mem::offset_of!(matmul_args, codes) - 332usize];
    ["Offset of field: matmul_args::accumulate"][::core::mem::offset_of!(matmul_args, accumulate) - 336usize];
    ["Offset of field: matmul_args::code_group_bits"][::core::mem::offset_of!(matmul_args, code_group_bits) - 340usize];
    ["Offset of field: matmul_args::code_scales"][::core::mem::offset_of!(matmul_args, code_scales) - 344usize];
    ["Offset of field: matmul_args::code_table"][::core::mem::offset_of!(matmul_args, code_table) - 352usize];
    ["Offset of field: matmul_args::code_floats"][::core::mem::offset_of!(matmul_args, code_floats) - 360usize];
    ["Offset of field: matmul_args::code_zero"][::core::mem::offset_of!(matmul_args, code_zero) - 364usize];
    ["Offset of field: matmul_args::padding"][::core::mem::offset_of!(matmul_args, padding) - 368usize];
};
/// Copies KV pages: in each of `planes` planes, page pairs[i][0] to page pairs[i][1].
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct page_copy_args {
    /// [planes, pages, page_bytes], planes plane_bytes apart
    pub cache: device_ptr,
    /// u32 [count, 2]: from, to
    pub pairs: device_ptr,
    pub plane_bytes: u64,
    pub page_bytes: u64,
    pub count: u32,
    pub planes: u32,
    /// of a plane; a pair that names another is left out
    pub pages: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of page_copy_args"][::core::mem::size_of::<page_copy_args>() - 48usize];
    ["Alignment of page_copy_args"][::core::mem::align_of::<page_copy_args>() - 8usize];
    ["Offset of field: page_copy_args::cache"][::core::mem::offset_of!(page_copy_args, cache) - 0usize];
    ["Offset of field: page_copy_args::pairs"][::core::mem::offset_of!(page_copy_args, pairs) - 8usize];
    ["Offset of field: page_copy_args::plane_bytes"][::core::mem::offset_of!(page_copy_args, plane_bytes) - 16usize];
    ["Offset of field: page_copy_args::page_bytes"][::core::mem::offset_of!(page_copy_args, page_bytes) - 24usize];
    ["Offset of field: page_copy_args::count"][::core::mem::offset_of!(page_copy_args, count) - 32usize];
    ["Offset of field: page_copy_args::planes"][::core::mem::offset_of!(page_copy_args, planes) - 36usize];
    ["Offset of field: page_copy_args::pages"][::core::mem::offset_of!(page_copy_args, pages) - 40usize];
    ["Offset of field: page_copy_args::padding"][::core::mem::offset_of!(page_copy_args, padding) - 44usize];
};
/// Writes entries of a page table.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct page_table_update_args {
    /// u32 [entries]
    pub table: device_ptr,
    /// u32 [count, 2]: entry, page; no entry twice
    pub changes: device_ptr,
    pub count: u32,
    /// a change of another one is left out
    pub entries: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of page_table_update_args"][::core::mem::size_of::<page_table_update_args>() - 24usize];
    ["Alignment of page_table_update_args"][::core::mem::align_of::<page_table_update_args>() - 8usize];
    ["Offset of field: page_table_update_args::table"][::core::mem::offset_of!(page_table_update_args, table) - 0usize];
    ["Offset of field: page_table_update_args::changes"]
        [::core::mem::offset_of!(page_table_update_args, changes) - 8usize];
    ["Offset of field: page_table_update_args::count"]
        [::core::mem::offset_of!(page_table_update_args, count) - 16usize];
    ["Offset of field: page_table_update_args::entries"]
        [::core::mem::offset_of!(page_table_update_args, entries) - 20usize];
};
/// out[r][j] = x[r][order[j]], elements of 16 bits. An index beyond a row comes out with every bit set.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct permute_columns_args {
    /// [rows, width], at a multiple of 16 bytes
    pub out: device_ptr,
    /// [rows, width]
    pub x: device_ptr,
    /// u32 [width], at a multiple of 16 bytes
    pub order: device_ptr,
    pub rows: u32,
    /// a multiple of 8
    pub width: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of permute_columns_args"][::core::mem::size_of::<permute_columns_args>() - 32usize];
    ["Alignment of permute_columns_args"][::core::mem::align_of::<permute_columns_args>() - 8usize];
    ["Offset of field: permute_columns_args::out"][::core::mem::offset_of!(permute_columns_args, out) - 0usize];
    ["Offset of field: permute_columns_args::x"][::core::mem::offset_of!(permute_columns_args, x) - 8usize];
    ["Offset of field: permute_columns_args::order"][::core::mem::offset_of!(permute_columns_args, order) - 16usize];
    ["Offset of field: permute_columns_args::rows"][::core::mem::offset_of!(permute_columns_args, rows) - 24usize];
    ["Offset of field: permute_columns_args::width"][::core::mem::offset_of!(permute_columns_args, width) - 28usize];
};
/// residual += delta where given; out = norm(residual) * (weight + weight_offset) + bias.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct rms_norm_args {
    /// [rows, width], written only where delta is given
    pub residual: device_ptr,
    /// [rows, width] or 0
    pub delta: device_ptr,
    /// [width]
    pub weight: device_ptr,
    /// [width] or 0
    pub bias: device_ptr,
    /// [rows, width]
    pub out: device_ptr,
    /// f32 [rows]: what a quantized output must be multiplied by; 0 where it is not quantized
    pub scales: device_ptr,
    pub rows: u32,
    pub width: u32,
    pub eps: f32,
    /// 1 where a checkpoint stores gains less one
    pub weight_offset: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rms_norm_args"][::core::mem::size_of::<rms_norm_args>() - 64usize];
    ["Alignment of rms_norm_args"][::core::mem::align_of::<rms_norm_args>() - 8usize];
    ["Offset of field: rms_norm_args::residual"][::core::mem::offset_of!(rms_norm_args, residual) - 0usize];
    ["Offset of field: rms_norm_args::delta"][::core::mem::offset_of!(rms_norm_args, delta) - 8usize];
    ["Offset of field: rms_norm_args::weight"][::core::mem::offset_of!(rms_norm_args, weight) - 16usize];
    ["Offset of field: rms_norm_args::bias"][::core::mem::offset_of!(rms_norm_args, bias) - 24usize];
    ["Offset of field: rms_norm_args::out"][::core::mem::offset_of!(rms_norm_args, out) - 32usize];
    ["Offset of field: rms_norm_args::scales"][::core::mem::offset_of!(rms_norm_args, scales) - 40usize];
    ["Offset of field: rms_norm_args::rows"][::core::mem::offset_of!(rms_norm_args, rows) - 48usize];
    ["Offset of field: rms_norm_args::width"][::core::mem::offset_of!(rms_norm_args, width) - 52usize];
    ["Offset of field: rms_norm_args::eps"][::core::mem::offset_of!(rms_norm_args, eps) - 56usize];
    ["Offset of field: rms_norm_args::weight_offset"][::core::mem::offset_of!(rms_norm_args, weight_offset) - 60usize];
};
/// Norms (where asked) and rotates queries and keys; writes keys and values to their slots in the cache.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct rotary_kv_write_args {
    /// [tokens, heads + 2 kv_heads, head_dim]
    pub qkv: device_ptr,
    /// [tokens, heads, head_dim]
    pub query: device_ptr,
    /// one layer: [pages, kv_heads, page_size, head_dim]
    pub keys: device_ptr,
    /// the same
    pub values: device_ptr,
    /// int8 cache: f32 [pages, kv_heads, page_size]; else 0
    pub key_scales: device_ptr,
    /// the same
    pub value_scales: device_ptr,
    /// u32 [tokens]: page * page_size + offset; nothing is written for one from slot_count on
    pub slots: device_ptr,
    /// u32 [tokens]: of rope_table and, behind its last, of rope; nothing is written for another
    pub rope_rows: device_ptr,
    /// f32 [table_rows, 2, rotary_dim / 2]: cosines, sines
    pub rope_table: device_ptr,
    /// f32 [rows, 2, rotary_dim / 2]
    pub rope: device_ptr,
    /// [head_dim] or 0: no norm
    pub query_gain: device_ptr,
    /// [head_dim] or 0
    pub key_gain: device_ptr,
    pub tokens: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// element i pairs with i + rotary_dim / 2
    pub rotary_dim: u32,
    pub page_size: u32,
    pub eps: f32,
    pub gain_offset: f32,
    /// fp8 cache: stored = x / scale, one for the whole layer
    pub key_scale: f32,
    pub value_scale: f32,
    /// pages * page_size, at most BURRSTONE_NO_SLOT
    pub slot_count: u32,
    pub table_rows: u32,
    pub rows: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of rotary_kv_write_args"][::core::mem::size_of::<rotary_kv_write_args>() - 152usize];
    ["Alignment of rotary_kv_write_args"][::core::mem::align_of::<rotary_kv_write_args>() - 8usize];
    ["Offset of field: rotary_kv_write_args::qkv"][::core::mem::offset_of!(rotary_kv_write_args, qkv) - 0usize];
    ["Offset of field: rotary_kv_write_args::query"][::core::mem::offset_of!(rotary_kv_write_args, query) - 8usize];
    ["Offset of field: rotary_kv_write_args::keys"][::core::mem::offset_of!(rotary_kv_write_args, keys) - 16usize];
    ["Offset of field: rotary_kv_write_args::values"][::core::mem::offset_of!(rotary_kv_write_args, values) - 24usize];
    ["Offset of field: rotary_kv_write_args::key_scales"]
        [::core::mem::offset_of!(rotary_kv_write_args, key_scales) - 32usize];
    ["Offset of field: rotary_kv_write_args::value_scales"]
        [::core::mem::offset_of!(rotary_kv_write_args, value_scales) - 40usize];
    ["Offset of field: rotary_kv_write_args::slots"][::core::mem::offset_of!(rotary_kv_write_args, slots) - 48usize];
    ["Offset of field: rotary_kv_write_args::rope_rows"]
        [::core::mem::offset_of!(rotary_kv_write_args, rope_rows) - 56usize];
    ["Offset of field: rotary_kv_write_args::rope_table"]
        [::core::mem::offset_of!(rotary_kv_write_args, rope_table) - 64usize];
    ["Offset of field: rotary_kv_write_args::rope"][::core::mem::offset_of!(rotary_kv_write_args, rope) - 72usize];
    ["Offset of field: rotary_kv_write_args::query_gain"]
        [::core::mem::offset_of!(rotary_kv_write_args, query_gain) - 80usize];
    ["Offset of field: rotary_kv_write_args::key_gain"]
        [::core::mem::offset_of!(rotary_kv_write_args, key_gain) - 88usize];
    ["Offset of field: rotary_kv_write_args::tokens"][::core::mem::offset_of!(rotary_kv_write_args, tokens) - 96usize];
    ["Offset of field: rotary_kv_write_args::heads"][::core::mem::offset_of!(rotary_kv_write_args, heads) - 100usize];
    ["Offset of field: rotary_kv_write_args::kv_heads"]
        [::core::mem::offset_of!(rotary_kv_write_args, kv_heads) - 104usize];
    ["Offset of field: rotary_kv_write_args::head_dim"]
        [::core::mem::offset_of!(rotary_kv_write_args, head_dim) - 108usize];
    ["Offset of field: rotary_kv_write_args::rotary_dim"]
        [::core::mem::offset_of!(rotary_kv_write_args, rotary_dim) - 112usize];
    ["Offset of field: rotary_kv_write_args::page_size"]
        [::core::mem::offset_of!(rotary_kv_write_args, page_size) - 116usize];
    ["Offset of field: rotary_kv_write_args::eps"][::core::mem::offset_of!(rotary_kv_write_args, eps) - 120usize];
    ["Offset of field: rotary_kv_write_args::gain_offset"]
        [::core::mem::offset_of!(rotary_kv_write_args, gain_offset) - 124usize];
    ["Offset of field: rotary_kv_write_args::key_scale"]
        [::core::mem::offset_of!(rotary_kv_write_args, key_scale) - 128usize];
    ["Offset of field: rotary_kv_write_args::value_scale"]
        [::core::mem::offset_of!(rotary_kv_write_args, value_scale) - 132usize];
    ["Offset of field: rotary_kv_write_args::slot_count"]
        [::core::mem::offset_of!(rotary_kv_write_args, slot_count) - 136usize];
    ["Offset of field: rotary_kv_write_args::table_rows"]
        [::core::mem::offset_of!(rotary_kv_write_args, table_rows) - 140usize];
    ["Offset of field: rotary_kv_write_args::rows"][::core::mem::offset_of!(rotary_kv_write_args, rows) - 144usize];
    ["Offset of field: rotary_kv_write_args::padding"]
        [::core::mem::offset_of!(rotary_kv_write_args, padding) - 148usize];
};
/// A token that was seen before.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct sample_seen {
    pub token: u32,
    /// How often it was generated; 0 where only the prompt has it.
    pub generated: u32,
    /// The kernel's: the logit before the penalties.
    pub logit: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_seen"][::core::mem::size_of::<sample_seen>() - 12usize];
    ["Alignment of sample_seen"][::core::mem::align_of::<sample_seen>() - 4usize];
    ["Offset of field: sample_seen::token"][::core::mem::offset_of!(sample_seen, token) - 0usize];
    ["Offset of field: sample_seen::generated"][::core::mem::offset_of!(sample_seen, generated) - 4usize];
    ["Offset of field: sample_seen::logit"][::core::mem::offset_of!(sample_seen, logit) - 8usize];
};
/// A token's additive bias.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct sample_bias {
    pub token: u32,
    pub bias: f32,
    /// The kernel's: the logit before the bias.
    pub logit: f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_bias"][::core::mem::size_of::<sample_bias>() - 12usize];
    ["Alignment of sample_bias"][::core::mem::align_of::<sample_bias>() - 4usize];
    ["Offset of field: sample_bias::token"][::core::mem::offset_of!(sample_bias, token) - 0usize];
    ["Offset of field: sample_bias::bias"][::core::mem::offset_of!(sample_bias, bias) - 4usize];
    ["Offset of field: sample_bias::logit"][::core::mem::offset_of!(sample_bias, logit) - 8usize];
};
/// How the next token of one row is chosen. Offsets count 4-byte words from sample_args.lists.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct sample_row {
    /// The draw, in [0, 1): a function of the request's seed and the position, computed by the host.
    pub uniform: f64,
    /// 0 takes the most likely token, the lowest id among equals
    pub temperature: f32,
    /// 0 keeps all
    pub top_k: u32,
    /// 1 keeps all
    pub top_p: f32,
    /// 0 keeps all
    pub min_p: f32,
    /// 1 keeps all
    pub typical_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// offset of sample_seen [seen_len], each token once
    pub seen: u32,
    pub seen_len: u32,
    /// offset of sample_bias [biases_len], each token once; -infinity bans
    pub biases: u32,
    pub biases_len: u32,
    /// offset of a bitmask of vocab bits, set where a token is allowed; 0xffffffff: none
    pub mask: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_row"][::core::mem::size_of::<sample_row>() - 64usize];
    ["Alignment of sample_row"][::core::mem::align_of::<sample_row>() - 8usize];
    ["Offset of field: sample_row::uniform"][::core::mem::offset_of!(sample_row, uniform) - 0usize];
    ["Offset of field: sample_row::temperature"][::core::mem::offset_of!(sample_row, temperature) - 8usize];
    ["Offset of field: sample_row::top_k"][::core::mem::offset_of!(sample_row, top_k) - 12usize];
    ["Offset of field: sample_row::top_p"][::core::mem::offset_of!(sample_row, top_p) - 16usize];
    ["Offset of field: sample_row::min_p"][::core::mem::offset_of!(sample_row, min_p) - 20usize];
    ["Offset of field: sample_row::typical_p"][::core::mem::offset_of!(sample_row, typical_p) - 24usize];
    ["Offset of field: sample_row::repetition_penalty"]
        [::core::mem::offset_of!(sample_row, repetition_penalty) - 28usize];
    ["Offset of field: sample_row::presence_penalty"][::core::mem::offset_of!(sample_row, presence_penalty) - 32usize];
    ["Offset of field: sample_row::frequency_penalty"]
        [::core::mem::offset_of!(sample_row, frequency_penalty) - 36usize];
    ["Offset of field: sample_row::seen"][::core::mem::offset_of!(sample_row, seen) - 40usize];
    ["Offset of field: sample_row::seen_len"][::core::mem::offset_of!(sample_row, seen_len) - 44usize];
    ["Offset of field: sample_row::biases"][::core::mem::offset_of!(sample_row, biases) - 48usize];
    ["Offset of field: sample_row::biases_len"][::core::mem::offset_of!(sample_row, biases_len) - 52usize];
    ["Offset of field: sample_row::mask"][::core::mem::offset_of!(sample_row, mask) - 56usize];
    ["Offset of field: sample_row::padding"][::core::mem::offset_of!(sample_row, padding) - 60usize];
};
/// A chosen token.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct sample_result {
    pub token: u32,
    /// under the model: before temperature, penalties and filters
    pub logprob: f32,
    /// 0 chosen; 1 the row has no softmax: see column `token`, whose logit is `logprob`; 2 no token is left
    pub status: u32,
    pub padding: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_result"][::core::mem::size_of::<sample_result>() - 16usize];
    ["Alignment of sample_result"][::core::mem::align_of::<sample_result>() - 4usize];
    ["Offset of field: sample_result::token"][::core::mem::offset_of!(sample_result, token) - 0usize];
    ["Offset of field: sample_result::logprob"][::core::mem::offset_of!(sample_result, logprob) - 4usize];
    ["Offset of field: sample_result::status"][::core::mem::offset_of!(sample_result, status) - 8usize];
    ["Offset of field: sample_result::padding"][::core::mem::offset_of!(sample_result, padding) - 12usize];
};
/// Chooses one token for each row of logits.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct sample_args {
    /// f32 [rows_len, vocab]; penalties and biases are applied in place
    pub logits: device_ptr,
    /// sample_row [rows_len]
    pub rows: device_ptr,
    /// what the rows' offsets lead to; the kernel notes logits there
    pub lists: device_ptr,
    /// sample_result [rows_len]
    pub results: device_ptr,
    pub rows_len: u32,
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of sample_args"][::core::mem::size_of::<sample_args>() - 40usize];
    ["Alignment of sample_args"][::core::mem::align_of::<sample_args>() - 8usize];
    ["Offset of field: sample_args::logits"][::core::mem::offset_of!(sample_args, logits) - 0usize];
    ["Offset of field: sample_args::rows"][::core::mem::offset_of!(sample_args, rows) - 8usize];
    ["Offset of field: sample_args::lists"][::core::mem::offset_of!(sample_args, lists) - 16usize];
    ["Offset of field: sample_args::results"][::core::mem::offset_of!(sample_args, results) - 24usize];
    ["Offset of field: sample_args::rows_len"][::core::mem::offset_of!(sample_args, rows_len) - 32usize];
    ["Offset of field: sample_args::vocab"][::core::mem::offset_of!(sample_args, vocab) - 36usize];
};
/// out[i] = log softmax(logits[i])[targets[i]]; NaN where a logit of the row is NaN or +infinity.
#[repr(C)]
#[derive(Debug, Copy, Clone, bytemuck :: Pod, bytemuck :: Zeroable)]
pub struct target_logprobs_args {
    /// f32 [rows, vocab]
    pub logits: device_ptr,
    /// u32 [rows]
    pub targets: device_ptr,
    /// f32 [rows]
    pub out: device_ptr,
    pub rows: u32,
    pub vocab: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of target_logprobs_args"][::core::mem::size_of::<target_logprobs_args>() - 32usize];
    ["Alignment of target_logprobs_args"][::core::mem::align_of::<target_logprobs_args>() - 8usize];
    ["Offset of field: target_logprobs_args::logits"][::core::mem::offset_of!(target_logprobs_args, logits) - 0usize];
    ["Offset of field: target_logprobs_args::targets"][::core::mem::offset_of!(target_logprobs_args, targets) - 8usize];
    ["Offset of field: target_logprobs_args::out"][::core::mem::offset_of!(target_logprobs_args, out) - 16usize];
    ["Offset of field: target_logprobs_args::rows"][::core::mem::offset_of!(target_logprobs_args, rows) - 24usize];
    ["Offset of field: target_logprobs_args::vocab"][::core::mem::offset_of!(target_logprobs_args, vocab) - 28usize];
};
