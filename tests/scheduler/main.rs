//! The scheduler and the KV blocks, without a model: under a virtual clock, and against memory that remembers what was
//! written to it.
#![cfg(feature = "engine")]

mod blocks;
mod device;
mod orders;
mod reports;
mod simulation;
mod turns;
