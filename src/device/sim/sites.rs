//! Call sites of primitives: source lines of kernels.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};

use super::fault::Place;

pub(super) type SiteId = u16;

/// A call site as C++ passes it: a string literal and a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Site {
    file: *const c_char,
    line: u32,
}

impl Site {
    /// # Safety
    /// `file` is a string with static lifetime.
    pub(super) unsafe fn new(file: *const c_char, line: u32) -> Self {
        Site { file, line }
    }

    pub(super) fn place(self) -> Place {
        // SAFETY: guaranteed by the constructor's caller.
        let path = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        // The compiler gets absolute paths; only the part inside `csrc` is shown.
        let file = path.rsplit_once("csrc/").map_or(&*path, |(_, inside)| inside).to_owned();
        Place { file, line: self.line }
    }
}

const CACHED: usize = 256;

/// Numbers call sites, so that a cell of shared memory can name one in two bytes.
#[derive(Debug)]
pub(super) struct Sites {
    list: Vec<Site>,
    ids: HashMap<Site, SiteId>,
    cache: Box<[Option<(Site, SiteId)>; CACHED]>,
}

impl Default for Sites {
    fn default() -> Self {
        Sites { list: Vec::new(), ids: HashMap::new(), cache: Box::new([None; CACHED]) }
    }
}

impl Sites {
    pub(super) fn id(&mut self, site: Site) -> SiteId {
        let slot = (site.line as usize ^ (site.file.addr() >> 4)) % CACHED;
        if let Some((cached, id)) = self.cache[slot]
            && cached == site
        {
            return id;
        }
        let next = self.list.len() as SiteId;
        let list = &mut self.list;
        let id = *self.ids.entry(site).or_insert_with(|| {
            list.push(site);
            next
        });
        self.cache[slot] = Some((site, id));
        id
    }

    pub(super) fn place(&self, id: SiteId) -> Place {
        self.list[usize::from(id)].place()
    }
}
