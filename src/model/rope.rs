//! Rotary position embeddings: how an angle follows from a position.

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Leading dimensions of a head that rotate.
    pub rotary_dim: usize,
    pub theta: f64,
}
