use std::path::Path;

use burrstone::text::{ChatTemplate, Message};
use serde_json::{Map, json};

/// `{% generation %}` tags, which mark text to train on, are removed, but not where they are text.
#[test]
fn generation_tags_are_taken_out_of_templates_only() {
    let template = "{# {% generation %} #}{{ '{% generation %}' }}{% raw %}{% generation %}{{{% endraw %}\
                    {%- generation -%} {% set x = 1 %}{{ messages[0].content }} {%- endgeneration %}{{ x is defined }}";
    assert_eq!(say(&ChatTemplate::parse(template).unwrap()), "{% generation %}{% generation %}{{hiFalse");
}

/// A name is there or undefined, as where `transformers` is given a message with or without one.
#[test]
fn templates_see_the_names_of_speakers() {
    let template =
        ChatTemplate::parse("{% for m in messages %}{{ m.name is defined }}{{ m.name }} {% endfor %}").unwrap();
    let named = Message { name: Some("Bob".to_owned()), ..Message::user("hi") };
    assert_eq!(template.render(&[named, Message::user("hi")], true, &Map::new()).unwrap(), "TrueBob False ");
}

fn say(template: &ChatTemplate) -> String {
    template.render(&[Message::user("hi")], true, &Map::new()).unwrap()
}

/// A folder with these files.
fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        std::fs::write(folder.path().join(name), contents).unwrap();
    }
    folder
}

#[test]
fn the_template_is_found_where_transformers_looks() {
    let config = json!({
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": false},
        "pad_token": null,
        "chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "C{{ bos_token }}"}],
    });
    let config = ("tokenizer_config.json", config.to_string());
    let json = ("chat_template.json", json!({"chat_template": "B{{ eos_token }}{{ pad_token }}"}).to_string());
    let jinja = ("chat_template.jinja", "A{{ bos_token }}".to_owned());

    let here = folder(&[config.clone(), json.clone(), jinja]);
    assert_eq!(say(&ChatTemplate::load(here.path(), None).unwrap()), "A<s>");
    let given = here.path().join("given");
    std::fs::write(&given, "D{{ eos_token }}").unwrap();
    assert_eq!(say(&ChatTemplate::load(here.path(), Some(&given)).unwrap()), "D</s>");

    let here = folder(&[config.clone(), json]);
    assert_eq!(say(&ChatTemplate::load(here.path(), None).unwrap()), "B</s>");
    let here = folder(&[config]);
    assert_eq!(say(&ChatTemplate::load(here.path(), None).unwrap()), "C<s>");
    let here = folder(&[("tokenizer_config.json", json!({"chat_template": "E{{ bos_token }}"}).to_string())]);
    assert_eq!(say(&ChatTemplate::load(here.path(), None).unwrap()), "E");
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let message = |folder: &Path, instead: Option<&Path>| {
        let error = ChatTemplate::load(folder, instead).unwrap_err();
        let message = error.to_string();
        assert!(error.is_input() && !message.contains('\n'), "{message}");
        message.replace(&folder.display().to_string(), "DIR")
    };

    let here = folder(&[]);
    let none = message(here.path(), None);
    assert!(none.starts_with("DIR: chat template: expected chat_template.jinja,"), "{none}");
    assert!(none.contains("--chat-template FILE") && none.ends_with("found none of them"), "{none}");
    assert!(message(here.path(), Some(&here.path().join("gone"))).starts_with("DIR/gone: "));

    let here = folder(&[("chat_template.jinja", "line\n{% for %}".to_owned())]);
    let syntax = message(here.path(), None);
    assert!(
        syntax.starts_with("DIR/chat_template.jinja: chat template: expected a Jinja template, found "),
        "{syntax}"
    );
    assert!(syntax.contains("line 2"), "{syntax}");

    let here =
        folder(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#.to_owned())]);
    assert!(message(here.path(), None).ends_with(r#"found templates named ["rag"]"#));
    let here = folder(&[("tokenizer_config.json", "[]".to_owned())]);
    assert_eq!(message(here.path(), None), "DIR/tokenizer_config.json: contents: expected a JSON object, found a list");
}
