//! Shadow state of shared memory: the last write and the last reads of each piece.

use super::clocks::Clocks;
use super::fault::FaultKind;
use super::sites::{SiteId, Sites};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Load,
    /// By the async proxy: a bulk copy, `wgmma`.
    AsyncLoad,
    Store,
    Atomic,
}

/// The accessing thread and call site, with the clocks that order accesses.
#[derive(Debug, Clone, Copy)]
pub(super) struct By<'a> {
    pub thread: usize,
    pub site: SiteId,
    pub clocks: &'a Clocks,
    pub sites: &'a Sites,
}

/// Marks `Cell::reader` if several unordered threads have read; `read_epoch` is then a row of `Shadow::readers`.
const MANY: u16 = u16::MAX;
/// `Cell::write_epoch` while an asynchronous copy is in flight.
const IN_FLIGHT: u32 = u32::MAX;
/// Set in `Cell::writer` if the write was atomic, or a bulk copy's.
const ATOMIC: u16 = 0x8000;
const BULK: u16 = 0x4000;

/// The last write and the last reads of one granule; epoch 0 if there was none.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write_epoch: u32,
    writer: u16,
    write_site: SiteId,
    read_epoch: u32,
    reader: u16,
    read_site: SiteId,
}

#[derive(Debug)]
pub(super) struct Shadow {
    cells: Vec<Cell>,
    bytes: usize,
    /// Bytes of a cell: the narrowest access so far.
    granule: usize,
    /// Rows with an epoch for each thread, for cells that many threads have read.
    readers: Vec<u32>,
    free_rows: Vec<u32>,
    threads: usize,
}

impl Shadow {
    pub(super) fn new(bytes: usize, threads: usize) -> Self {
        Shadow { cells: Vec::new(), bytes, granule: 16, readers: Vec::new(), free_rows: Vec::new(), threads }
    }

    /// Starts a block: nothing is written.
    pub(super) fn reset(&mut self) {
        self.cells.clear();
        self.cells.resize(self.bytes.div_ceil(self.granule), Cell::default());
        self.readers.clear();
        self.free_rows.clear();
    }

    /// Makes cells small enough for an access.
    fn refine(&mut self, offset: usize, bytes: usize) {
        while !offset.is_multiple_of(self.granule) || !bytes.is_multiple_of(self.granule) {
            let mut fine = Vec::with_capacity(self.cells.len() * 2);
            for mut cell in std::mem::take(&mut self.cells) {
                fine.push(cell);
                if cell.reader == MANY {
                    let row = self.new_row();
                    let from = cell.read_epoch as usize * self.threads;
                    self.readers.copy_within(from..from + self.threads, row as usize * self.threads);
                    cell.read_epoch = row;
                }
                fine.push(cell);
            }
            self.cells = fine;
            self.granule /= 2;
            self.cells.truncate(self.bytes.div_ceil(self.granule));
        }
    }

    fn new_row(&mut self) -> u32 {
        if let Some(row) = self.free_rows.pop() {
            let start = row as usize * self.threads;
            self.readers[start..start + self.threads].fill(0);
            return row;
        }
        let row = self.readers.len() / self.threads;
        self.readers.resize(self.readers.len() + self.threads, 0);
        row as u32
    }

    fn cells(&self, offset: usize, bytes: usize) -> std::ops::Range<usize> {
        offset / self.granule..(offset + bytes) / self.granule
    }

    /// Checks and records an access, which must be inside the memory.
    pub(super) fn access(&mut self, offset: usize, bytes: usize, access: Access, by: By<'_>) -> Result<(), FaultKind> {
        self.refine(offset, bytes);
        self.cells(offset, bytes).try_for_each(|index| self.one(index, access, by))
    }

    /// Starts an asynchronous copy to checked bytes, which must not be accessed until it completes.
    pub(super) fn take_off(&mut self, offset: usize, bytes: usize) {
        for index in self.cells(offset, bytes) {
            self.cells[index].write_epoch = IN_FLIGHT;
        }
    }

    /// Completes a copy, as a write of `thread` in `epoch`.
    pub(super) fn land(&mut self, offset: usize, bytes: usize, thread: usize, epoch: u32, bulk: bool, site: SiteId) {
        let writer = thread as u16 | if bulk { BULK } else { 0 };
        for index in self.cells(offset, bytes) {
            self.cells[index] = Cell { write_epoch: epoch, writer, write_site: site, ..Cell::default() };
        }
    }

    fn one(&mut self, index: usize, access: Access, by: By<'_>) -> Result<(), FaultKind> {
        let By { thread, site, clocks, sites } = by;
        let cell = self.cells[index];
        let offset = (index * self.granule) as u64;
        let verb = match access {
            Access::Load => "read",
            Access::AsyncLoad => "asynchronous read",
            Access::Store => "write",
            Access::Atomic => "atomic update",
        };
        if cell.write_epoch == IN_FLIGHT {
            return Err(FaultKind::InFlight { offset });
        }
        if cell.write_epoch == 0 && access != Access::Store {
            return Err(FaultKind::UninitialisedShared { offset });
        }
        let both_atomic = access == Access::Atomic && cell.writer & ATOMIC != 0;
        let writer = usize::from(cell.writer & !(ATOMIC | BULK));
        if cell.write_epoch != 0 && !both_atomic && !clocks.ordered(writer, cell.write_epoch, thread) {
            let earlier = if cell.writer & ATOMIC != 0 { "atomic update" } else { "write" };
            let place = sites.place(cell.write_site);
            return Err(FaultKind::Race { offset, access: verb, earlier, thread: writer as u32, place });
        }
        if access == Access::AsyncLoad && cell.writer & BULK == 0 && !clocks.is_fenced(writer, cell.write_epoch) {
            return Err(FaultKind::Unfenced { offset, thread: writer as u32, place: sites.place(cell.write_site) });
        }
        let epoch = clocks.epoch(thread);
        if matches!(access, Access::Load | Access::AsyncLoad) {
            self.note_read(index, epoch, by);
            return Ok(());
        }
        if let Some(reader) = self.unordered_reader(cell, thread, clocks) {
            let place = sites.place(cell.read_site);
            return Err(FaultKind::Race { offset, access: verb, earlier: "read", thread: reader as u32, place });
        }
        if cell.reader == MANY {
            self.free_rows.push(cell.read_epoch);
        }
        let writer = thread as u16 | if access == Access::Atomic { ATOMIC } else { 0 };
        self.cells[index] = Cell { write_epoch: epoch, writer, write_site: site, ..Cell::default() };
        Ok(())
    }

    fn note_read(&mut self, index: usize, epoch: u32, By { thread, site, clocks, .. }: By<'_>) {
        let mut cell = self.cells[index];
        cell.read_site = site;
        if cell.reader == MANY {
            self.readers[cell.read_epoch as usize * self.threads + thread] = epoch;
        } else if cell.read_epoch == 0 || clocks.ordered(usize::from(cell.reader), cell.read_epoch, thread) {
            (cell.reader, cell.read_epoch) = (thread as u16, epoch);
        } else {
            let row = self.new_row();
            let start = row as usize * self.threads;
            self.readers[start + usize::from(cell.reader)] = cell.read_epoch;
            self.readers[start + thread] = epoch;
            (cell.reader, cell.read_epoch) = (MANY, row);
        }
        self.cells[index] = cell;
    }

    fn unordered_reader(&self, cell: Cell, thread: usize, clocks: &Clocks) -> Option<usize> {
        if cell.reader == MANY {
            let row = &self.readers[cell.read_epoch as usize * self.threads..][..self.threads];
            return row.iter().enumerate().find(|(t, epoch)| !clocks.ordered(*t, **epoch, thread)).map(|(t, _)| t);
        }
        let reader = usize::from(cell.reader);
        (cell.read_epoch != 0 && !clocks.ordered(reader, cell.read_epoch, thread)).then_some(reader)
    }
}
