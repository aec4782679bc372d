//! Options that several commands share.

use anyhow::Result;
use burrstone::model::WeightPrecision;
use burrstone::{Device, Dry, Engine, EngineBuilder, Guidance, Prompt, RepetitionDetection, Request, Sampling};
use clap::Args;

use super::constraint::ConstraintArgs;
use super::output;
use super::values::{self, ActivationFormat, KvPrecision, OnPreemption, Precision, Scaling, WeightFormat};

/// Which model to load and how to run it.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A folder in Hugging Face format, or a hub id such as org/name or org/name@revision [default: the built-in model]
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,

    /// auto, cpu, cuda, cuda:N or sim (the CUDA kernels in the simulator)
    #[arg(long, default_value = "auto", value_parser = device)]
    pub device: Device,

    /// Architecture that the simulator emulates: sm_70, sm_75, sm_80, sm_86, sm_89 or sm_90a
    #[arg(long, value_name = "ARCH", default_value = "sm_80", value_parser = values::arch)]
    pub sim_arch: u32,

    /// CPU threads [default: what the control group and the cores allow]
    #[arg(long, value_name = "N", value_parser = values::threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,

    /// Precision of activations; on a GPU of weights too, which on the CPU stay as stored
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    pub dtype: Precision,

    /// Quantize the weights of a 16-bit checkpoint while loading it, by rounding to the nearest
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = WeightFormat::None, hide_default_value = true)]
    pub quantize: WeightFormat,

    /// The same for the output projection [default: int8 with --quantize, else none]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub quantize_head: Option<WeightFormat>,

    /// Precision of the activations that quantized weights are multiplied with
    #[arg(long, value_enum, value_name = "BITS", default_value_t = ActivationFormat::Auto)]
    pub activations: ActivationFormat,

    /// Precision of the KV cache [default: that of the activations]
    #[arg(long, value_enum, default_value_t = KvPrecision::Auto)]
    pub kv_dtype: KvPrecision,

    /// Longest sequence in tokens [default: what the model and the memory allow]
    #[arg(long, value_name = "TOKENS", value_parser = values::positive, allow_negative_numbers = true)]
    pub context: Option<usize>,

    /// When to apply YaRN scaling, for models whose configuration asks for it
    #[arg(long, value_enum, default_value_t = Scaling::Always)]
    pub rope_scaling: Scaling,

    /// Bytes of weights, activations and KV cache together: 8GiB, 500MB
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub memory: Option<u64>,

    /// Bytes of the KV cache [default: enough for all sequences at full length, or half of the free memory]
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub kv_memory: Option<u64>,

    /// Host memory for KV blocks that are evicted from the cache, in bytes
    #[arg(long, value_name = "SIZE", value_parser = values::bytes)]
    pub host_kv_memory: Option<u64>,

    /// How to resume a preempted sequence [default: auto]
    #[arg(long, value_name = "HOW", value_enum)]
    pub preemption: Option<OnPreemption>,

    /// Tokens of the KV cache
    #[arg(long, value_name = "TOKENS", value_parser = values::positive, allow_negative_numbers = true)]
    pub kv_tokens: Option<usize>,

    /// Sequences that run at once [default: 64 on the CPU, 256 on a GPU, 4 on the simulator]
    #[arg(long, value_name = "N", value_parser = values::bounded, allow_negative_numbers = true)]
    pub max_sequences: Option<usize>,

    /// Tokens per step: more makes prefill faster, and decoding slower while prompts are prefilled [default: 512]
    #[arg(long, value_name = "TOKENS", value_parser = values::bounded, allow_negative_numbers = true)]
    pub step_tokens: Option<usize>,

    /// Read every weight first and refuse NaN and infinities
    #[arg(long)]
    pub check: bool,

    /// Use hub models from the local cache only
    #[arg(long)]
    pub offline: bool,

    /// Print no progress, notes or timings on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

fn device(text: &str) -> Result<Device, &'static str> {
    text.parse().map_err(|_| "expected auto, cpu, cuda, cuda:N or sim")
}

impl ModelArgs {
    fn weight_precision(&self) -> WeightPrecision {
        let default = if self.quantize == WeightFormat::None { WeightFormat::None } else { WeightFormat::Int8 };
        WeightPrecision {
            layers: self.quantize.quantize(),
            head: self.quantize_head.unwrap_or(default).quantize(),
            activations: self.activations.bits(),
        }
    }

    /// Loads the model, with progress on a terminal.
    pub fn load(&self) -> Result<Engine> {
        let mut builder = self.builder()?.device(self.device).sim_arch(self.sim_arch).dtype(self.dtype.dtype());
        builder = builder.kv_dtype(self.kv_dtype.dtype()).rope_scaling(self.rope_scaling.into());
        builder = builder.weight_precision(self.weight_precision());
        builder = builder.check_weights(self.check).offline(self.offline).progress(output::Downloads::new(self.quiet));
        if !self.quiet {
            builder = builder.on_incident(output::note);
        }
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(context) = self.context {
            builder = builder.context(context);
        }
        if let Some(bytes) = self.memory {
            builder = builder.memory(bytes);
        }
        if let Some(bytes) = self.kv_memory {
            builder = builder.kv_memory(bytes);
        }
        if let Some(bytes) = self.host_kv_memory {
            builder = builder.host_kv_memory(bytes);
        }
        if let Some(preemption) = self.preemption {
            builder = builder.preemption(preemption.preemption());
        }
        if let Some(tokens) = self.kv_tokens {
            builder = builder.kv_tokens(tokens);
        }
        if let Some(sequences) = self.max_sequences {
            builder = builder.max_sequences(sequences);
        }
        if let Some(tokens) = self.step_tokens {
            builder = builder.step_tokens(tokens);
        }
        let engine = builder.build()?;
        if !self.quiet {
            engine.report().warnings.iter().for_each(|warning| output::note(format_args!("warning: {warning}")));
        }
        Ok(engine)
    }

    fn builder(&self) -> Result<EngineBuilder> {
        match &self.model {
            Some(model) => Ok(Engine::builder(model)),
            #[cfg(feature = "builtin-model")]
            None => Ok(Engine::builtin()),
            #[cfg(not(feature = "builtin-model"))]
            None => Err(super::exit::bad_input("--model", "a folder or a hub id", "none, and this build has no model")),
        }
    }
}

/// How tokens are sampled, and when to stop.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most likely token [default: the checkpoint's]
    #[arg(long, value_name = "T", value_parser = values::amount, allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Keep the smallest set of most likely tokens that reaches this probability, in (0, 1] [default: the checkpoint's]
    #[arg(long, value_name = "P", value_parser = values::share, allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Keep this many most likely tokens; 0 keeps all [default: the checkpoint's]
    #[arg(long, value_name = "K", value_parser = values::count, allow_negative_numbers = true)]
    top_k: Option<usize>,

    /// Drop tokens less likely than this fraction of the most likely one [default: the checkpoint's]
    #[arg(long, value_name = "P", value_parser = values::min_p, allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Keep the smallest set of tokens that reaches this probability, in (0, 1], nearest to the expected surprise first
    /// [default: the checkpoint's]
    #[arg(long, value_name = "P", value_parser = values::share, allow_negative_numbers = true)]
    typical_p: Option<f32>,

    /// Divide the logits of earlier tokens by this (multiply if negative); 1 is off [default: the checkpoint's]
    #[arg(long, value_name = "R", value_parser = values::penalty, allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// Subtract this from the logit of every generated token once, from -2 to 2
    #[arg(long, value_name = "P", value_parser = values::subtracted, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,

    /// Subtract this from a token's logit for each time it was generated, from -2 to 2
    #[arg(long, value_name = "P", value_parser = values::subtracted, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,

    /// Never repeat an n-gram of this many tokens; 0 is off [default: the checkpoint's]
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    no_repeat_ngram_size: Option<usize>,

    /// DRY: a token that would extend a repeated sequence of n tokens loses MULTIPLIER * BASE ^ (n - LENGTH) from its
    /// logit; 0 is off
    #[arg(long, value_name = "MULTIPLIER", value_parser = values::amount, allow_negative_numbers = true)]
    dry_multiplier: Option<f32>,

    /// BASE of DRY [default: 1.75]
    #[arg(long, value_name = "BASE", value_parser = values::base, requires = "dry_multiplier")]
    #[arg(allow_negative_numbers = true)]
    dry_base: Option<f32>,

    /// LENGTH of DRY: shorter sequences may be repeated freely [default: 2]
    #[arg(long, value_name = "LENGTH", value_parser = values::positive, requires = "dry_multiplier")]
    #[arg(allow_negative_numbers = true)]
    dry_allowed_length: Option<usize>,

    /// DRY: how many of the last tokens are searched for repetitions [default: 4096]
    #[arg(long, value_name = "N", value_parser = values::positive, requires = "dry_multiplier")]
    #[arg(allow_negative_numbers = true)]
    dry_penalty_last_n: Option<usize>,

    /// DRY: repeated sequences end at tokens with this text; may be given several times [default: line end, :, ", *]
    #[arg(long, value_name = "TEXT", value_parser = values::text, requires = "dry_multiplier")]
    dry_sequence_breaker: Vec<String>,

    /// Never write this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = values::text)]
    bad_word: Vec<String>,

    /// Add to a token's logit, -inf to ban it; may be given several times
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = values::bias)]
    logit_bias: Vec<(u32, f32)>,

    /// Seed of the random draws [default: a new one each time]
    #[arg(long, value_name = "N", value_parser = values::seed, allow_negative_numbers = true)]
    seed: Option<u64>,

    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = values::text)]
    stop: Vec<String>,

    /// Stop at this token id; may be given several times
    #[arg(long, value_name = "ID", visible_alias = "stop-token-id", value_parser = values::token)]
    #[arg(allow_negative_numbers = true)]
    stop_token: Vec<u32>,

    /// Stop when the last tokens repeat a pattern of up to this many tokens --repetition-min-count times
    #[arg(long, value_name = "N", value_parser = values::positive, requires = "repetition_min_count")]
    #[arg(allow_negative_numbers = true)]
    repetition_max_pattern_size: Option<usize>,

    /// Shortest pattern in tokens [default: 1]
    #[arg(long, value_name = "N", value_parser = values::positive, requires = "repetition_max_pattern_size")]
    #[arg(allow_negative_numbers = true)]
    repetition_min_pattern_size: Option<usize>,

    /// Repetitions of the pattern that stop the generation; at least 2
    #[arg(long, value_name = "N", value_parser = values::positive, requires = "repetition_max_pattern_size")]
    #[arg(allow_negative_numbers = true)]
    repetition_min_count: Option<usize>,

    /// Continue past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,

    /// Classifier-free guidance: 1 is off, more steers further away from --negative-prompt
    #[arg(long, value_name = "SCALE", value_parser = values::amount, allow_negative_numbers = true)]
    guidance_scale: Option<f32>,

    /// Prompt that guidance steers away from [default: the prompt's last token]
    #[arg(long, value_name = "TEXT", value_parser = values::text, requires = "guidance_scale")]
    negative_prompt: Option<String>,

    #[command(flatten)]
    constraint: ConstraintArgs,
}

impl SamplingArgs {
    /// Applies these options to a request; reads files.
    pub fn apply(&self, request: Request) -> Result<Request> {
        Ok(Request {
            sampling: Sampling {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                min_p: self.min_p,
                typical_p: self.typical_p,
                repetition_penalty: self.repetition_penalty,
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                no_repeat_ngram_size: self.no_repeat_ngram_size,
                dry: self.dry(),
                bad_words: self.bad_word.clone(),
                logit_bias: self.logit_bias.clone(),
                seed: self.seed,
            },
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token.clone(),
            repetition_detection: self.repetition_detection(),
            constraint: self.constraint.read()?,
            guidance: self
                .guidance_scale
                .map(|scale| Guidance { scale, negative_prompt: self.negative_prompt.clone().map(Prompt::Text) }),
            ignore_eos: self.ignore_eos,
            ..request
        })
    }

    fn repetition_detection(&self) -> Option<RepetitionDetection> {
        Some(RepetitionDetection {
            min_pattern_size: self.repetition_min_pattern_size.unwrap_or(1),
            max_pattern_size: self.repetition_max_pattern_size?,
            min_count: self.repetition_min_count?,
        })
    }

    fn dry(&self) -> Option<Dry> {
        let default = Dry::default();
        let breakers = Some(&self.dry_sequence_breaker).filter(|texts| !texts.is_empty());
        Some(Dry {
            multiplier: self.dry_multiplier?,
            base: self.dry_base.unwrap_or(default.base),
            allowed_length: self.dry_allowed_length.unwrap_or(default.allowed_length),
            last_n: self.dry_penalty_last_n.unwrap_or(default.last_n),
            sequence_breakers: breakers.cloned().unwrap_or(default.sequence_breakers),
        })
    }
}
