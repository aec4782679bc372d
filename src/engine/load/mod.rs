//! Loading: builds an engine from its options, a device and a checkpoint.

mod build;
mod builder;
mod device;
mod loader;
mod report;

pub use builder::EngineBuilder;
pub use device::Device;
pub use report::LoadReport;
