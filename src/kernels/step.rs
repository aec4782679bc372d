//! A batch on the device: one upload that every kernel of the step reads.
//!
//! Sections of fixed size come first: their addresses depend only on the number of rows, so a captured graph finds them
//! again at replay. Data of sampling, whose size varies, is at the end and reached through offsets. The page table
//! stays on the device; its changes are part of the upload and applied before the first kernel of the step.

use std::ops::Range;

use bytemuck::Zeroable;

use super::abi::{BURRSTONE_NO_SLOT, attention_mask, attention_span, attention_tile, sample_row};
use super::attention::MASK_WORDS;
use super::page_table_update::PageTableUpdate;
use super::rotary_kv_write::RopeRows;
use super::sample::{Sample, row_words};
use crate::device::{Memory, Readback, Slice, SliceMut, Stream};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{AttentionMask, Batch, PageTable, PageTableMark, RecordingKey, Sampled, StepShape};

/// Queries per tile of prefill attention: the rows of a block for heads without groups.
pub(super) const TILE_QUERIES: usize = 64;

/// Section alignment in words: kernels load 16 bytes at a time.
const ALIGN: usize = 4;

/// Entries of the first page table. Growing it invalidates all captured graphs.
const FIRST_PAGES: usize = 1 << 14;

/// A step on a device.
pub struct Step {
    memory: Memory,
    stream: Stream,
    /// Tokens of the largest step.
    largest: usize,
    vocab: usize,
    pages: PagesThere,
    /// The words of the next upload.
    words: Vec<u32>,
    sections: Sections,
    /// The layout of `words`; 0 for none.
    layout: u64,
    shape: StepShape,
    generation: u64,
    /// Requested rows, without padding rows.
    wanted: usize,
    sampled: Readback<u8>,
    scored: Readback<f32>,
}

/// The page table on the device.
struct PagesThere {
    memory: Memory,
    /// Mark of the host's page table that this copy has reached.
    mark: Option<PageTableMark>,
}

/// Offsets of the sections, in words.
#[derive(Clone, Debug, Default)]
struct Sections {
    /// Rows of a decode step, padding included.
    bucket: Option<usize>,
    tokens: Range<usize>,
    slots: Range<usize>,
    rope_rows: Range<usize>,
    rope: Range<usize>,
    spans: Range<usize>,
    tiles: Range<usize>,
    /// Empty if no query has a mask.
    masks: Range<usize>,
    has_trees: bool,
    /// Cached tokens of the longest sequence.
    kv_len: usize,
    logit_rows: Range<usize>,
    samples: Range<usize>,
    targets: Range<usize>,
    tail: usize,
    /// Changes of the page table (entry, page). `None` if it is written whole.
    page_changes: Option<Range<usize>>,
    /// Data of sampling, after the changes.
    lists: usize,
}

const SPAN_WORDS: usize = size_of::<attention_span>() / 4;
const TILE_WORDS: usize = size_of::<attention_tile>() / 4;
const SAMPLE_WORDS: usize = size_of::<sample_row>() / 4;

impl Step {
    /// For steps of at most `largest` tokens of a vocabulary of `vocab`.
    ///
    /// # Errors
    /// Device memory is short.
    pub(super) fn new(stream: &Stream, largest: usize, vocab: usize) -> Result<Self> {
        Ok(Self {
            memory: stream.alloc(DType::U32, 0)?,
            pages: PagesThere { memory: stream.alloc(DType::U32, 0)?, mark: None },
            stream: stream.clone(),
            largest,
            vocab,
            words: Vec::new(),
            sections: Sections::default(),
            layout: 0,
            shape: StepShape { tokens: 0, logit_rows: 0, recording: None },
            generation: 0,
            wanted: 0,
            sampled: Readback::new(stream, 0)?,
            scored: Readback::new(stream, 0)?,
        })
    }

    /// Lays out the part of `batch` that does not depend on its tokens and samples.
    pub(super) fn prepare(&mut self, batch: &Batch) -> Result<()> {
        self.layout = 0;
        batch.check()?;
        let decodes = batch.spans.iter().all(|span| span.len == 1)
            && batch.logit_rows.len() == batch.spans.len()
            && batch.samples.len() == batch.spans.len()
            && batch.masks.is_empty();
        if batch.tokens.len() > self.largest {
            let expected = format!("at most {}", self.largest);
            return Err(Error::operator("upload", "tokens", expected, batch.tokens.len()));
        }
        let bucket = decodes.then(|| recorded_rows(batch.spans.len()).min(self.largest));
        self.lay_out(batch, bucket);
        self.layout = batch.layout;
        Ok(())
    }

    /// Lays out `batch`, unless [`prepare`](Self::prepare) did, and enqueues the upload.
    pub(super) fn upload(&mut self, batch: &Batch) -> Result<StepShape> {
        if batch.layout == 0 || batch.layout != self.layout {
            self.prepare(batch)?;
        }
        batch.samples.iter().try_for_each(|row| row.check_mask(self.vocab))?;
        self.fill_in(batch);
        let Sections { bucket, .. } = self.sections;
        self.grow(bucket.unwrap_or(batch.logit_rows.len()), batch.page_table.len())?;
        self.memory.write(&self.words)?;
        self.update_pages(&batch.page_table)?;
        self.wanted = batch.logit_rows.len();
        self.shape = StepShape {
            tokens: bucket.unwrap_or(batch.tokens.len()),
            logit_rows: bucket.unwrap_or(batch.logit_rows.len()),
            recording: bucket.map(|bucket| RecordingKey {
                bucket,
                has_rope: !batch.rope.is_empty(),
                generation: self.generation,
            }),
        };
        Ok(self.shape)
    }

    /// Fills `words` and `sections`, except tokens and samples. Padding rows read token 0, write to no slot, attend to
    /// nothing and sample greedily.
    fn lay_out(&mut self, batch: &Batch, bucket: Option<usize>) {
        let Self { words, sections, pages, .. } = self;
        words.clear();
        let rows = |len: usize| bucket.unwrap_or(len);
        let tokens = rows(batch.tokens.len());
        let samples = if batch.samples.is_empty() { 0 } else { rows(batch.samples.len()) };
        sections.bucket = bucket;
        sections.tokens = section(words, &[], tokens, 0);
        sections.slots = section(words, &batch.slots, tokens, BURRSTONE_NO_SLOT);
        sections.rope_rows = section(words, &batch.rope_rows, tokens, 0);
        let spans: Vec<attention_span> = batch
            .spans
            .iter()
            .map(|span| attention_span {
                start: span.start as u32,
                len: span.len as u32,
                kv_len: span.kv_len as u32,
                pages: span.pages as u32,
            })
            .collect();
        sections.spans = section(words, bytemuck::cast_slice(&spans), rows(spans.len()) * SPAN_WORDS, 0);
        let tiles = if bucket.is_some() { Vec::new() } else { tiles(batch) };
        sections.tiles = section(words, bytemuck::cast_slice(&tiles), tiles.len() * TILE_WORDS, 0);
        let masks: Vec<attention_mask> = batch.masks.iter().map(mask).collect();
        sections.kv_len = batch.spans.iter().map(|span| span.kv_len).max().unwrap_or(0);
        sections.has_trees = batch.has_trees();
        sections.masks = section(words, bytemuck::cast_slice(&masks), masks.len() * MASK_WORDS, 0);
        sections.logit_rows = section(words, &batch.logit_rows, rows(batch.logit_rows.len()), 0);
        sections.targets = section(words, &batch.targets, batch.targets.len(), 0);
        sections.samples = section(words, &[], samples * SAMPLE_WORDS, 0);
        // Last of the fixed sections: usually empty, and its width depends on the model.
        let width = batch.rope.len() / batch.tokens.len().max(1);
        sections.rope = section(words, bytemuck::cast_slice(&batch.rope), width * tokens, 0);
        sections.tail = words.len();
        sections.page_changes = batch.page_table.since(pages.mark).map(|changed| {
            let mut changed = changed.to_vec();
            changed.sort_unstable();
            changed.dedup();
            words.extend(changed.iter().flat_map(|&entry| [entry, batch.page_table.pages()[entry as usize]]));
            sections.tail..words.len()
        });
        sections.lists = words.len();
    }

    /// Writes tokens and samples into `words`.
    fn fill_in(&mut self, batch: &Batch) {
        let Self { words, sections, .. } = self;
        words.truncate(sections.lists);
        words[sections.tokens.clone()][..batch.tokens.len()].copy_from_slice(&batch.tokens);
        for (i, at) in sections.samples.clone().step_by(SAMPLE_WORDS).enumerate() {
            let row = match batch.samples.get(i) {
                Some(row) => row_words(row, words, sections.tail),
                None => sample_row { mask: u32::MAX, ..sample_row::zeroed() },
            };
            words[at..at + SAMPLE_WORDS].copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&row)));
        }
    }

    /// Makes room for `words`, `rows` results and `pages` page-table entries. Addresses change only here.
    fn grow(&mut self, rows: usize, pages: usize) -> Result<()> {
        if pages > self.pages.memory.len() {
            self.generation += 1;
            let entries = pages.next_power_of_two().max(FIRST_PAGES);
            self.pages = PagesThere { memory: self.stream.alloc(DType::U32, entries)?, mark: None };
        }
        if self.words.len() > self.memory.len() {
            self.generation += 1;
            self.memory = self.stream.alloc(DType::U32, self.words.len().next_power_of_two())?;
        }
        if rows * Sample::RESULT_BYTES > self.sampled.device().len() {
            self.generation += 1;
            let rows = rows.next_power_of_two();
            self.sampled = Readback::new(&self.stream, rows * Sample::RESULT_BYTES)?;
            self.scored = Readback::new(&self.stream, rows)?;
        }
        Ok(())
    }

    /// Applies the batch's page-table changes on the device.
    fn update_pages(&mut self, table: &PageTable) -> Result<()> {
        let PagesThere { memory, mark } = &mut self.pages;
        let changes = self.sections.page_changes.clone().filter(|_| mark.is_some());
        // If this fails, the table's content is unknown.
        *mark = None;
        match changes {
            None => memory.write(table.pages())?,
            Some(words) => {
                let count = words.len() / 2;
                let missing = || Error::operator("step", "page_table", "a range of the step", format!("{words:?}"));
                let changes = self.memory.slice().range(words.clone()).ok_or_else(missing)?;
                PageTableUpdate { table: memory.slice_mut(), changes, count }.launch(&self.stream)?;
            }
        }
        *mark = Some(table.mark());
        Ok(())
    }

    pub(super) fn shape(&self) -> StepShape {
        self.shape
    }

    /// True if every sequence has one token, so decode attention serves it.
    pub(super) fn is_decode(&self) -> bool {
        self.sections.tiles.is_empty()
    }

    fn slice(&self, range: &Range<usize>, dtype: DType) -> Result<Slice<'_>> {
        let inside = || Error::operator("step", "section", "a range of the step", format!("{range:?}"));
        Ok(self.memory.slice().range(range.clone()).ok_or_else(inside)?.cast(dtype))
    }

    /// Token ids, `[tokens]`.
    pub(super) fn tokens(&self) -> Result<Slice<'_>> {
        self.slice(&self.sections.tokens, DType::U32)
    }

    /// Cache slots, `[tokens]`.
    pub(super) fn slots(&self) -> Result<Slice<'_>> {
        self.slice(&self.sections.slots, DType::U32)
    }

    /// Rotary factors of all tokens, those of `table` and others.
    pub(super) fn rope<'a>(&'a self, table: Slice<'a>, table_rows: usize, rotary_dim: usize) -> Result<RopeRows<'a>> {
        let of_tokens = self.slice(&self.sections.rope_rows, DType::U32)?;
        let others = self.slice(&self.sections.rope, DType::F32)?;
        let other_rows = others.len().checked_div(rotary_dim).unwrap_or(0);
        Ok(RopeRows { of_tokens, table, table_rows, others, other_rows })
    }

    /// [`attention_span`]s as words.
    pub(super) fn spans(&self) -> Result<Slice<'_>> {
        self.slice(&self.sections.spans, DType::U32)
    }

    /// [`attention_tile`]s as words.
    pub(super) fn tiles(&self) -> Result<Slice<'_>> {
        self.slice(&self.sections.tiles, DType::U32)
    }

    /// [`attention_mask`]s as words, where some query has one.
    pub(super) fn masks(&self) -> Result<Option<Slice<'_>>> {
        let range = &self.sections.masks;
        if range.is_empty() { Ok(None) } else { self.slice(range, DType::U32).map(Some) }
    }

    pub(super) fn kv_len(&self) -> usize {
        self.sections.kv_len
    }

    pub(super) fn has_trees(&self) -> bool {
        self.sections.has_trees
    }

    /// Page tables of all spans.
    pub(super) fn page_table(&self) -> Slice<'_> {
        self.pages.memory.slice()
    }

    /// Rows whose logits are wanted, those of `rows`.
    pub(super) fn logit_rows(&self, rows: Range<usize>) -> Result<Slice<'_>> {
        let start = self.sections.logit_rows.start;
        self.slice(&(start + rows.start..start + rows.end), DType::U32)
    }

    /// Rows to sample and where their results go, those of `rows`.
    pub(super) fn samples(&mut self, rows: Range<usize>) -> Result<Sampling<'_>> {
        let start = self.sections.samples.start;
        let wrong = || Error::operator("sample", "rows", "rows of the step's samples", format!("{rows:?}"));
        let range = start + rows.start * SAMPLE_WORDS..start + rows.end * SAMPLE_WORDS;
        if range.end > self.sections.samples.end {
            return Err(wrong());
        }
        let results = rows.start * Sample::RESULT_BYTES..rows.end * Sample::RESULT_BYTES;
        let (fixed, lists) = self.memory.slice_mut().split_at(self.sections.tail).ok_or_else(wrong)?;
        let rows = fixed.into_slice().range(range).ok_or_else(wrong)?;
        Ok(Sampling { rows, lists, results: self.sampled.device().range(results).ok_or_else(wrong)? })
    }

    /// Targets and where their log-probabilities go, those of `rows`.
    pub(super) fn targets(&mut self, rows: Range<usize>) -> Result<(Slice<'_>, SliceMut<'_>)> {
        let start = self.sections.targets.start;
        let wrong = || Error::operator("target_logprobs", "rows", "rows of the step's targets", format!("{rows:?}"));
        let range = start + rows.start..start + rows.end;
        if range.end > self.sections.targets.end {
            return Err(wrong());
        }
        let targets = self.memory.slice().range(range).ok_or_else(wrong)?;
        let out = self.scored.device().range(4 * rows.start..4 * rows.end).ok_or_else(wrong)?;
        Ok((targets, out.cast(DType::F32)))
    }

    /// Enqueues the copy of the chosen tokens to the host.
    pub(super) fn collect_samples(&mut self) -> Result<()> {
        self.sampled.enqueue(self.shape.logit_rows * Sample::RESULT_BYTES)
    }

    /// Enqueues the copy of the log-probabilities to the host.
    pub(super) fn collect_scores(&mut self) -> Result<()> {
        self.scored.enqueue(self.shape.logit_rows)
    }

    /// Waits for the chosen tokens.
    pub(super) fn sampled(&mut self) -> Result<Vec<Sampled>> {
        Sample::results(self.sampled.wait(self.wanted * Sample::RESULT_BYTES)?)
    }

    /// Waits for the log-probabilities.
    pub(super) fn scored(&mut self) -> Result<Vec<f32>> {
        let scores = self.scored.wait(self.wanted)?;
        match scores.iter().position(|score| score.is_nan()) {
            None => Ok(scores.to_vec()),
            Some(row) => {
                Err(Error::operator("target_logprobs", "logits", "finite numbers", format!("none such in row {row}")))
            }
        }
    }
}

/// Rows that a decode step of `sequences` is captured with: four sizes per octave, because capturing takes the time of
/// several steps, and padding rows are computed like all others.
pub(crate) fn recorded_rows(sequences: usize) -> usize {
    let octave = sequences.next_power_of_two();
    if sequences <= 8 { octave } else { sequences.next_multiple_of(octave / 8) }
}

/// Inputs and outputs of sampling.
pub(super) struct Sampling<'a> {
    pub rows: Slice<'a>,
    pub lists: SliceMut<'a>,
    pub results: SliceMut<'a>,
}

/// Appends `data`, padded to `len` words, at an aligned offset.
fn section(words: &mut Vec<u32>, data: &[u32], len: usize, fill: u32) -> Range<usize> {
    words.resize(words.len().next_multiple_of(ALIGN), 0);
    let start = words.len();
    words.extend_from_slice(data);
    words.resize(start + len, fill);
    start..start + len
}

fn mask(mask: &AttentionMask) -> attention_mask {
    let none = attention_mask::zeroed();
    match *mask {
        AttentionMask::Causal => none,
        AttentionMask::Range { begin, end } => attention_mask { begin, end, ..none },
        AttentionMask::Branch(nodes) => attention_mask { branch: [nodes as u32, (nodes >> 32) as u32], ..none },
    }
}

/// All query tiles of all spans, longest first.
fn tiles(batch: &Batch) -> Vec<attention_tile> {
    if batch.spans.iter().all(|span| span.len == 1) {
        return Vec::new();
    }
    let of_span = |(span, queries): (usize, usize)| {
        (0..queries).step_by(TILE_QUERIES).map(move |first| attention_tile { span: span as u32, first: first as u32 })
    };
    let mut tiles: Vec<_> = batch.spans.iter().map(|span| span.len).enumerate().flat_map(of_span).collect();
    tiles.sort_by_key(|tile| {
        let span = &batch.spans[tile.span as usize];
        std::cmp::Reverse(span.kv_len - span.len + tile.first as usize)
    });
    tiles
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::recorded_rows;

    #[test]
    fn few_recordings_serve_all_batches_and_few_rows_pad() {
        let rows: Vec<usize> = (0..=256).map(recorded_rows).collect();
        assert!(rows.is_sorted() && (1..=256).all(|n| rows[n] >= n && rows[rows[n]] == rows[n]));
        assert!((8..=256).all(|n| 4 * rows[n] <= 5 * n), "{rows:?}");
        assert_eq!(rows[1..].iter().collect::<BTreeSet<_>>().len(), 24);
    }
}
