//! Reads the rotary fields of `config.json` into a [`RopeSpec`].

use crate::error::Result;

use super::families::ROPE_THETA;
use super::fields::Fields;
use super::rope::{RopeKind, RopeSpec};
use super::spec::MAX_CONTEXT;

/// The rotary embedding, and the longest sequence in tokens: `max_position_embeddings`, times the factor for `linear`
/// and `dynamic`, or the original context times the factor for `yarn` (vLLM's rule), never below
/// `max_position_embeddings`.
pub(super) fn read(fields: &Fields, head_dim: usize, max_positions: usize) -> Result<(RopeSpec, usize)> {
    let theta = theta(fields)?;
    whole_head(fields)?;
    let older = fields.object("rope_scaling")?;
    let newer = fields.object("rope_parameters")?;
    if older.is_some() && newer.is_some() && fields.raw("rope_scaling") != fields.raw("rope_parameters") {
        return Err(fields.error("rope_scaling", "the same as rope_parameters, or one of the two alone", "both"));
    }
    // Beside the object, this one field concerns llama3 and yarn, and there it wins over the field inside.
    let original_outside = fields.size("original_max_position_embeddings", 1..=MAX_CONTEXT)?;

    let Some(rope) = older.or(newer) else {
        let theta = theta.unwrap_or(ROPE_THETA);
        return Ok((RopeSpec { rotary_dim: head_dim, theta, kind: RopeKind::Default }, max_positions));
    };
    let theta = self::theta(&rope)?.or(theta).unwrap_or(ROPE_THETA);
    whole_head(&rope)?;
    let original = || -> Result<usize> {
        let inside = rope.size("original_max_position_embeddings", 1..=MAX_CONTEXT)?;
        Ok(original_outside.or(inside).unwrap_or(max_positions))
    };
    let extended = |from: usize, factor: f64| ((from as f64 * factor) as usize).clamp(max_positions, MAX_CONTEXT);

    let (kind, context) = match kind_name(&rope)? {
        "default" => {
            rope.number_where("factor", "1, as this kind does not scale", |x| x == 1.0)?;
            (RopeKind::Default, max_positions)
        }
        "linear" => {
            let factor = factor(&rope)?;
            (RopeKind::Linear { factor }, extended(max_positions, factor))
        }
        "dynamic" => {
            let factor = factor(&rope)?;
            if head_dim < 4 {
                return Err(fields.error("head_dim", "at least 4 for rope_type dynamic", head_dim));
            }
            (RopeKind::Dynamic { factor, context: max_positions }, extended(max_positions, factor))
        }
        "llama3" => (llama3(&rope, original()?)?, max_positions),
        "yarn" => {
            let original = original()?;
            let (kind, factor) = yarn(&rope, original, max_positions)?;
            (kind, extended(original, factor))
        }
        other => {
            let key = if rope.raw("rope_type").is_some() { "rope_type" } else { "type" };
            return Err(rope.error(key, "default, linear, dynamic, llama3 or yarn", other));
        }
    };
    // Early YaRN checkpoints have a field that says whether they were fine-tuned, and may repeat the original context.
    rope.finish(|key| key.starts_with('_') || ["finetuned", "original_max_position_embeddings"].contains(&key))?;
    Ok((RopeSpec { rotary_dim: head_dim, theta, kind }, context))
}

fn theta(fields: &Fields) -> Result<Option<f64>> {
    fields.number_where("rope_theta", "a number above 1", |x| x > 1.0 && x <= f64::from(f32::MAX))
}

/// The families here rotate whole heads.
fn whole_head(fields: &Fields) -> Result<()> {
    fields.number_where("partial_rotary_factor", "1, as this architecture rotates whole heads", |x| x == 1.0)?;
    Ok(())
}

fn kind_name<'a>(rope: &Fields<'a>) -> Result<&'a str> {
    match (rope.text("rope_type")?, rope.text("type")?) {
        (Some(newer), Some(older)) if newer != older => {
            Err(rope.error("type", format_args!("what rope_type says ({newer})"), older))
        }
        (newer, older) => Ok(newer.or(older).unwrap_or("default")),
    }
}

fn required(rope: &Fields, key: &'static str, value: Option<f64>, expected: &str) -> Result<f64> {
    value.ok_or_else(|| rope.error(key, expected, "no such field"))
}

const FACTOR: &str = "a number from 1 to 1e6";

fn factor(rope: &Fields) -> Result<f64> {
    let factor = rope.number_where("factor", FACTOR, |x| (1.0..=1e6).contains(&x))?;
    required(rope, "factor", factor, FACTOR)
}

fn llama3(rope: &Fields, original_context: usize) -> Result<RopeKind> {
    let positive = |key| {
        let value = rope.number_where(key, "a number above 0", |x| x > 0.0)?;
        required(rope, key, value, "a number above 0")
    };
    let factor = factor(rope)?;
    let (low_freq_factor, high_freq_factor) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than low_freq_factor ({low_freq_factor})");
        return Err(rope.error("high_freq_factor", expected, high_freq_factor));
    }
    Ok(RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original_context })
}

fn yarn(rope: &Fields, original_context: usize, max_positions: usize) -> Result<(RopeKind, f64)> {
    // An explicit null asks for the ratio of the two contexts.
    let factor = match rope.raw("factor") {
        Some(serde_json::Value::Null) => max_positions as f64 / original_context as f64,
        _ => factor(rope)?,
    };
    let attention_factor = rope.number_where("attention_factor", "a number above 0", |x| x > 0.0)?;
    // As in the reference, a scale of 0 counts as none.
    let scale = |key| rope.number_where(key, "a number of at least 0", |x| x >= 0.0).map(|x| x.filter(|x| *x != 0.0));
    let scales = scale("mscale")?.zip(scale("mscale_all_dim")?);
    let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let attention_factor = attention_factor.unwrap_or_else(|| match scales {
        Some((over, under)) => magnitude(over) / magnitude(under),
        None => magnitude(1.0),
    });
    let beta_fast = scale("beta_fast")?.unwrap_or(32.0);
    let beta_slow = scale("beta_slow")?.unwrap_or(1.0);
    if beta_fast < beta_slow {
        return Err(rope.error("beta_fast", format_args!("at least beta_slow ({beta_slow})"), beta_fast));
    }
    let truncate = rope.flag("truncate")?.unwrap_or(true);
    let kind = RopeKind::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        original_context,
        truncate,
        when_needed: false,
    };
    Ok((kind, factor))
}
