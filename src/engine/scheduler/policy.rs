//! What an operator decides.

use std::time::Duration;

/// Limits and preferences.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Tokens of a step, no fewer than `max_running`. More make prompts faster and the steps between two tokens of a
    /// running sequence longer.
    pub step_tokens: usize,
    /// Sequences that hold blocks at a time.
    pub max_running: usize,
    /// Requests that wait at a time; more are refused.
    pub max_waiting: usize,
    /// Tokens of a step that a long prompt gets at the least: where the prompts under way fill the step, and are as many
    /// as that allows, none is begun.
    pub min_chunk: usize,
    /// Tokens that a running sequence is expected to generate yet, as far as its `max_tokens` allows.
    pub reserve: usize,
    /// Waiting so long weighs as much as one level of priority.
    pub aging: Duration,
    /// How many of the queue's first are compared by what the cache already has of them.
    pub candidates: usize,
    /// How often the queue's first may be passed by one behind it.
    pub patience: usize,
    /// Requests that the driver submits between two steps at most.
    pub ingest: usize,
    pub preemption: Preemption,
    pub mechanisms: Mechanisms,
}

/// How a sequence that gave its place up gets back what it had. What the device's cache still has of it is taken in any
/// case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// It is computed again.
    Recompute,
    /// What the host's memory has of it comes from there; the rest is computed again.
    Swap,
    /// Of what the host's memory has, so much comes from there as takes less time than to compute it.
    #[default]
    Auto,
}

/// Parts of the scheduler that each answer to a report of something that went wrong without it. They are switched off
/// to measure what they are worth.
#[derive(Clone, Copy, Debug)]
pub struct Mechanisms {
    /// A prompt is begun when all of it has room, not just its next chunk.
    pub whole_prompt: bool,
    /// Room is kept for what running sequences will generate, and one that was preempted comes back only when all that
    /// it may still need is free.
    pub hysteresis: bool,
    /// Prompts and generated tokens share a step; without, prompts go first.
    pub mixed_steps: bool,
    /// Prompts are cut to fit the step.
    pub chunks: bool,
    /// What the cache has of a prompt is not counted as needed.
    pub count_hits: bool,
    /// Among the first of the queue, one that the cache has more of goes first.
    pub affinity: bool,
    /// A prompt whose next block another one is computing waits for it.
    pub share_in_flight: bool,
    /// No more long prompts are under way than get `min_chunk` tokens of a step.
    pub bounded_prompts: bool,
    /// What can never have room is refused.
    pub refuse_oversize: bool,
}

impl Default for Mechanisms {
    fn default() -> Self {
        Self {
            whole_prompt: true,
            hysteresis: true,
            mixed_steps: true,
            chunks: true,
            count_hits: true,
            affinity: true,
            share_in_flight: true,
            bounded_prompts: true,
            refuse_oversize: true,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            step_tokens: 512,
            max_running: 64,
            max_waiting: 65_536,
            min_chunk: 128,
            reserve: 128,
            aging: Duration::from_secs(10),
            candidates: 16,
            patience: 64,
            ingest: 16,
            preemption: Preemption::default(),
            mechanisms: Mechanisms::default(),
        }
    }
}
