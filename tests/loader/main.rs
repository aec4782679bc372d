//! Checkpoints: configurations, rotary factors, weights, sampling defaults; as they should be and as they should not.
#![cfg(feature = "engine")]

mod config;
mod damage;
mod generation;
mod quantized;
mod rope;
mod support;
mod weights;
