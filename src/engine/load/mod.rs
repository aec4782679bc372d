//! Builds an engine: options, device, checkpoint, memory plan.

mod build;
mod builder;
mod device;
mod loader;
mod report;

pub use builder::EngineBuilder;
pub use device::Device;
pub use report::LoadReport;
