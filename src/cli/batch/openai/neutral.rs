//! Fields of OpenAI's and vLLM's requests that have no counterpart here, and the values with which they change nothing.
//!
//! A null always counts as absent. Any other value, and any other field, is refused by name.

use burrstone::{Error, Result};
use serde_json::{Map, Value};

use Values::{Any, Only};

/// The values with which a field leaves the answer as it is without the field.
pub enum Values {
    Any,
    /// These, as JSON.
    Only(&'static [&'static str]),
}

/// A field and its neutral values.
pub type Field = (&'static str, Values);

/// Of the body of a request.
pub const BODY: &[Field] = &[
    // The model is the one that is loaded.
    ("model", Any),
    // For the sender's own use, or about how a request is served.
    ("user", Any),
    ("metadata", Any),
    ("service_tier", Any),
    ("safety_identifier", Any),
    ("prompt_cache_key", Any),
    ("prompt_cache_retention", Any),
    ("request_id", Any),
    ("guided_decoding_backend", Any),
    // About streams and tools, both of which are refused.
    ("stream", Only(&["false"])),
    ("stream_options", Any),
    ("tools", Only(&["[]"])),
    ("tool_choice", Only(&[r#""none""#, r#""auto""#])),
    ("parallel_tool_calls", Any),
    ("functions", Only(&["[]"])),
    ("function_call", Only(&[r#""none""#, r#""auto""#])),
    // OpenAI's others.
    ("store", Only(&["false"])),
    ("suffix", Only(&[r#""""#])),
    ("modalities", Only(&[r#"["text"]"#])),
    // vLLM's others.
    ("use_beam_search", Only(&["false"])),
    ("early_stopping", Only(&["false"])),
    ("length_penalty", Only(&["1", "1.0"])),
    ("include_stop_str_in_output", Only(&["false"])),
    ("skip_special_tokens", Only(&["true"])),
    ("spaces_between_special_tokens", Only(&["true"])),
    ("detokenize", Only(&["true"])),
    ("logits_processors", Only(&["[]"])),
    ("return_tokens_as_token_ids", Only(&["false"])),
    ("return_token_ids", Only(&["false"])),
    ("include_reasoning", Only(&["true"])),
    ("add_generation_prompt", Only(&["true"])),
    ("continue_final_message", Only(&["false"])),
    ("documents", Only(&["[]"])),
    ("chat_template_kwargs", Only(&["{}"])),
    ("mm_processor_kwargs", Only(&["{}"])),
    ("vllm_xargs", Only(&["{}"])),
    ("xtc_probability", Only(&["0", "0.0"])),
];

/// Of a message.
pub const MESSAGE: &[Field] = &[
    ("tool_calls", Only(&["[]"])),
    ("annotations", Only(&["[]"])),
    ("reasoning", Only(&[r#""""#])),
    ("reasoning_content", Only(&[r#""""#])),
    ("prefix", Only(&["false"])),
];

/// Of a part of a message's content.
pub const PART: &[Field] = &[];

/// Of vLLM's `structured_outputs`.
pub const STRUCTURED_OUTPUTS: &[Field] = &[
    ("disable_fallback", Only(&["false"])),
    ("disable_any_whitespace", Only(&["false"])),
    ("disable_additional_properties", Only(&["false"])),
];

/// Fails at the first field of an object that may change something; `place` is where the object is.
pub fn check(place: &str, fields: &Map<String, Value>, neutral: &[Field]) -> Result<()> {
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let found = value.to_string();
        let expected = match neutral.iter().find(|(field, _)| field == name) {
            Some((_, Any)) => continue,
            Some((_, Only(values))) if values.contains(&found.as_str()) => continue,
            Some((_, Only(values))) => format!("null or {}: nothing else is supported", values.join(" or ")),
            None => "no such field, as its meaning is not known here (null if it changes nothing)".to_owned(),
        };
        return Err(Error::Request { field: format!("{place}{name}"), expected, found: brief(found) });
    }
    Ok(())
}

/// The start of a long text.
fn brief(text: String) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
