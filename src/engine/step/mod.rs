//! The step loop: turns the scheduler's plan into a batch, runs it on the device and hands tokens to their requests.

pub mod batching;
mod channel;
mod incident;
mod page_rows;
mod runner;
mod watchdog;
mod worker;

pub(super) use channel::{Receiver, channel};
pub use incident::Incident;
pub(super) use incident::OnIncident;
pub(super) use runner::{Load, Runner};
pub(super) use watchdog::Watchdog;
pub use watchdog::{SlowStep, StepSize};
pub use worker::Status;
pub(super) use worker::{Command, Event, Job, Kind, Worker};
