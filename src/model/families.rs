//! The supported architectures, as a table. Defaults are those of the `transformers` configuration classes.

/// Properties that all models of one `model_type` share.
#[derive(Debug)]
pub(super) struct Family {
    pub model_type: &'static str,
    /// Classes in `architectures` that are this decoder, with or without its output projection.
    pub architectures: &'static [&'static str],
    pub vocab_size: usize,
    pub intermediate_size: usize,
    /// Default if the field is absent; `None` (or `null` in the file) means the number of heads.
    pub kv_heads: Option<usize>,
    /// Default if the field is absent; `None` means `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub context: usize,
    pub qkv_bias: Bias,
    pub output_bias: Bias,
    pub mlp_bias: Bias,
    pub qk_norm: bool,
    pub windows: Windows,
}

/// Defaults that the classes share.
pub(super) const HIDDEN_SIZE: usize = 4096;
pub(super) const LAYERS: usize = 32;
pub(super) const HEADS: usize = 32;
pub(super) const NORM_EPS: f64 = 1e-6;
pub(super) const ROPE_THETA: f64 = 10_000.0;

/// Whether linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    Never,
    Always,
    /// The configuration's field decides; absent means no bias.
    Asked,
}

/// Which layers have a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    Never,
    /// `sliding_window` holds in every layer; the number is its default.
    Everywhere(usize),
    /// Only with `use_sliding_window`, and then in the layers that `layer_types` names, or from `max_window_layers` on.
    Switched {
        window: usize,
        first_layer: usize,
    },
}

pub(super) const FAMILIES: &[Family] = &[
    Family {
        model_type: "llama",
        architectures: &["LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"],
        vocab_size: 32_000,
        intermediate_size: 11_008,
        kv_heads: None,
        head_dim: None,
        context: 2048,
        qkv_bias: Bias::Asked,
        output_bias: Bias::Asked,
        mlp_bias: Bias::Asked,
        qk_norm: false,
        windows: Windows::Never,
    },
    Family {
        model_type: "mistral",
        architectures: &["MistralForCausalLM", "MistralModel"],
        vocab_size: 32_000,
        intermediate_size: 14_336,
        kv_heads: Some(8),
        head_dim: None,
        context: 131_072,
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        mlp_bias: Bias::Never,
        qk_norm: false,
        windows: Windows::Everywhere(4096),
    },
    Family {
        model_type: "qwen2",
        architectures: &["Qwen2ForCausalLM", "Qwen2Model"],
        vocab_size: 151_936,
        intermediate_size: 22_016,
        kv_heads: Some(32),
        head_dim: None,
        context: 32_768,
        qkv_bias: Bias::Always,
        output_bias: Bias::Never,
        mlp_bias: Bias::Never,
        qk_norm: false,
        windows: Windows::Switched { window: 4096, first_layer: 28 },
    },
    Family {
        model_type: "qwen3",
        architectures: &["Qwen3ForCausalLM", "Qwen3Model"],
        vocab_size: 151_936,
        intermediate_size: 22_016,
        kv_heads: Some(32),
        head_dim: Some(128),
        context: 32_768,
        qkv_bias: Bias::Asked,
        output_bias: Bias::Asked,
        mlp_bias: Bias::Never,
        qk_norm: true,
        windows: Windows::Switched { window: 4096, first_layer: 28 },
    },
];

/// Fields that no supported architecture has, and that would change the mathematics if false.
pub(super) const ALWAYS_TRUE: [&str; 4] = ["is_causal", "causal", "scale_attn_weights", "use_rope"];

/// Whether an unused field of `config.json` is known not to change a forward pass: names, training, sampling, token
/// ids, and how other programs run the model.
pub(super) fn harmless(key: &str) -> bool {
    key.starts_with('_')
        || key.starts_with("unsloth_")
        || key.ends_with("_token_id")
        || key.ends_with("_token_ids")
        || key.contains("dropout")
        || key.ends_with("_pdrop")
        || HARMLESS.contains(&key)
}

const HARMLESS: &[&str] = &[
    // Token texts.
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    // Names and provenance.
    "author",
    "auto_map",
    "custom_pipelines",
    "description",
    "finetuning_task",
    "is_llama_config",
    "language",
    "license",
    "model_name",
    "name_or_path",
    "tags",
    "tokenizer_class",
    "transformers.js_config",
    "transformers_version",
    "version",
    // Training.
    "gradient_checkpointing",
    "initializer_range",
    "neftune_noise_alpha",
    "pretrain_tp",
    "pretraining_tp",
    // How a program runs the model: caches, kernels, outputs, number formats.
    "attn_implementation",
    "bf16",
    "cache_implementation",
    "chunk_size_feed_forward",
    "fp16",
    "fp32",
    "is_decoder",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    // Lengths that no class reads.
    "max_sequence_length",
    "model_max_length",
    "seq_length",
    // Heads for other tasks.
    "id2label",
    "label2id",
    "num_labels",
    "prefix",
    "problem_type",
    "task_specific_params",
    // Sampling, which belongs to generation_config.json.
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    // Of Qwen2 and Qwen3, in files that were converted to other classes; with windows off it says nothing.
    "max_window_layers",
];
