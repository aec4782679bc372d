//! Checkpoints: configurations, rotary factors, weights, sampling defaults; as they should be and as they should not.

mod config;
mod damage;
mod generation;
mod rope;
mod support;
mod weights;
