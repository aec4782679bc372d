//! Burrstone kernel generator.
