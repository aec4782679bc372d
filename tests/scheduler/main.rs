//! The scheduler and the KV blocks without a model: on a virtual clock, and with a fake device whose memory remembers
//! what was written.
#![cfg(feature = "engine")]

mod blocks;
mod device;
mod orders;
mod reports;
mod simulation;
mod turns;
