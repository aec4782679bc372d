//! The end of a generation that goes round in circles.

use crate::error::{Error, Result};

/// Ends a generation when its last tokens are one pattern, `min_count` times over: with
/// [`FinishReason::Repetition`](super::FinishReason::Repetition), and not before its `min_tokens`. What the prompt repeats
/// is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepetitionDetection {
    /// Tokens of the shortest pattern, at least 1.
    pub min_pattern_size: usize,
    /// Tokens of the longest. Each token is compared with so many before it.
    pub max_pattern_size: usize,
    /// At least 2.
    pub min_count: usize,
}

impl RepetitionDetection {
    pub(in crate::engine) fn check(&self) -> Result<()> {
        let Self { min_pattern_size, max_pattern_size, min_count } = *self;
        if !(1..=max_pattern_size).contains(&min_pattern_size) {
            let (field, expected) = ("repetition_detection: min_pattern_size", "from 1 to max_pattern_size");
            return Err(Error::request(field, format!("{expected}, {max_pattern_size}"), min_pattern_size));
        }
        if min_count < 2 {
            return Err(Error::request("repetition_detection: min_count", "at least 2", min_count));
        }
        Ok(())
    }
}

/// [`RepetitionDetection`] over the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Detector {
    detection: RepetitionDetection,
    /// By the size of a pattern less the smallest: how many of the last tokens are those so many places before them.
    runs: Vec<usize>,
}

impl Detector {
    pub fn new(detection: RepetitionDetection) -> Self {
        Self { detection, runs: Vec::new() }
    }

    /// Takes the token after those that were `generated` so far. Whether the last tokens are now a pattern so many times
    /// over.
    pub fn take(&mut self, generated: &[u32], token: u32) -> bool {
        let RepetitionDetection { min_pattern_size, max_pattern_size, min_count } = self.detection;
        let sizes = (max_pattern_size.min(generated.len()) + 1).saturating_sub(min_pattern_size);
        self.runs.resize(sizes, 0);
        let mut found = false;
        for (run, size) in self.runs.iter_mut().zip(min_pattern_size..) {
            *run = if generated[generated.len() - size] == token { *run + 1 } else { 0 };
            found |= *run / size >= min_count - 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As it is said: the last tokens, cut into pieces.
    fn by_hand(detection: RepetitionDetection, tokens: &[u32]) -> bool {
        let RepetitionDetection { min_pattern_size, max_pattern_size, min_count } = detection;
        (min_pattern_size..=max_pattern_size).any(|size| {
            let Some(start) = tokens.len().checked_sub(size * min_count) else { return false };
            let mut pieces = tokens[start..].chunks(size);
            let first = pieces.next().unwrap();
            pieces.all(|piece| piece == first)
        })
    }

    proptest! {
        #[test]
        fn issue_7842_a_pattern_is_found_when_it_is_complete(
            tokens in prop::collection::vec(0u32..3, 0..60),
            min_pattern_size in 1usize..4,
            more in 0usize..6,
            min_count in 2usize..5,
        ) {
            let max_pattern_size = min_pattern_size + more;
            let detection = RepetitionDetection { min_pattern_size, max_pattern_size, min_count };
            detection.check().unwrap();
            let mut detector = Detector::new(detection);
            for len in 1..=tokens.len() {
                let found = detector.take(&tokens[..len - 1], tokens[len - 1]);
                prop_assert_eq!(found, by_hand(detection, &tokens[..len]), "{:?}", &tokens[..len]);
            }
        }
    }

    #[test]
    fn what_finds_nothing_or_everything_is_refused() {
        let detection = |min_pattern_size, max_pattern_size, min_count| {
            RepetitionDetection { min_pattern_size, max_pattern_size, min_count }.check()
        };
        detection(1, 1, 2).unwrap();
        for (sizes, count, field) in
            [([0, 3], 2, "min_pattern_size"), ([4, 3], 2, "min_pattern_size"), ([1, 3], 1, "min_count")]
        {
            let error = detection(sizes[0], sizes[1], count).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(field), "{error}");
        }
    }
}
