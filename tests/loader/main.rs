//! Checkpoints: configurations, rotary factors, weights, sampling defaults; as they should be and as they should not.

mod rope;
mod support;
mod weights;
