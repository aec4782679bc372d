//! `generate_chat_templates.py` wrote what is expected here.

use burrstone::text::{ChatTemplate, Message};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
    special_tokens: Map<String, Value>,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    extra: Map<String, Value>,
    expected: Option<String>,
    error: Option<String>,
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let templates: Vec<Template> = serde_json::from_str(include_str!("chat_templates.json")).unwrap();
    let mut failures = Vec::new();
    for Template { name, template, special_tokens, runs } in templates {
        let template = match ChatTemplate::parse(&template) {
            Ok(template) => template.with_special_tokens(special_tokens),
            Err(e) => {
                failures.push(format!("{name}: {e}"));
                continue;
            }
        };
        for (i, run) in runs.into_iter().enumerate() {
            let found = template.render(&run.messages, run.add_generation_prompt, &run.extra);
            match (found, run.expected, run.error) {
                (Ok(found), Some(expected), None) if found == expected => {}
                // Another engine words its own errors; a template's own words must arrive.
                (Err(found), None, Some(error))
                    if found.to_string().contains(&error) || error.contains("is undefined") => {}
                (found, expected, error) => failures.push(format!(
                    "{name}, conversation {i}\n   found    {found:?}\n   expected {:?}",
                    expected.ok_or(error)
                )),
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}
