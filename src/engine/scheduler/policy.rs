//! Scheduling policy: limits and preferences that an operator sets.

use std::time::Duration;

/// Limits and preferences.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Token budget of a step, at least `max_running`. A larger one makes prefill faster, and the time between two
    /// tokens of a running sequence longer.
    pub step_tokens: usize,
    /// Sequences that run at a time.
    pub max_running: usize,
    /// Requests that wait at a time; more are refused.
    pub max_waiting: usize,
    /// Tokens of a step that a long prompt gets at least: no more of them are begun than a step has room for. Prompts
    /// with no more tokens left are short: they do not wait for long ones.
    pub min_chunk: usize,
    /// Tokens that a running sequence is expected to generate yet, within its `max_tokens`: room is kept for them.
    pub reserve: usize,
    /// Waiting so long weighs as much as one level of priority.
    pub aging: Duration,
    /// How many requests at the head of the queue are compared by their prefix hits.
    pub candidates: usize,
    /// How often the first request of the queue may be overtaken.
    pub patience: usize,
    /// Requests that the driver submits between two steps, at most.
    pub ingest: usize,
    pub preemption: Preemption,
    pub mechanisms: Mechanisms,
}

/// How a preempted sequence is restored. Blocks that are still in the device's prefix cache are reused in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preemption {
    /// It is computed again.
    Recompute,
    /// Blocks in host memory are fetched; the rest is computed again.
    Swap,
    /// Blocks in host memory are fetched where that is faster than computing them.
    #[default]
    Auto,
}

/// Parts of the scheduler that can be switched off, to measure what each is worth.
#[derive(Clone, Copy, Debug)]
pub struct Mechanisms {
    /// A prompt is admitted when all of it has room, not just its next chunk.
    pub whole_prompt: bool,
    /// Room is kept for what running sequences will generate, and a preempted one is admitted only when there is room
    /// for all that it may still need.
    pub hysteresis: bool,
    /// Prompts and generated tokens share a step; without, prompts go first.
    pub mixed_steps: bool,
    /// Prompts are cut to fit the step.
    pub chunks: bool,
    /// Prefix hits do not count as blocks that a prompt needs.
    pub count_hits: bool,
    /// Among the first of the queue, the one with the most prefix hits goes first.
    pub affinity: bool,
    /// A prompt waits where a running one is computing its next block.
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
