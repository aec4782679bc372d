//! An architecture is data: `config.json` → [`ArchSpec`] → one decoder.

mod rope;
mod spec;

pub use rope::RopeSpec;
pub use spec::ArchSpec;
