use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use burrstone::text::{ChatTemplate, Message};

use crate::support::{Checkpoint, comma, command, run, tokenizer, with_input};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant:{% endif %}";

/// The built-in model, with a chat template.
fn model() -> Checkpoint {
    let model = Checkpoint::builtin();
    std::fs::write(model.file("chat_template.jinja"), TEMPLATE).unwrap();
    model
}

fn options(model: &Checkpoint) -> Vec<&str> {
    vec!["chat", "--model", model.path(), "--temperature", "0", "--max-tokens", "10", "--quiet"]
}

/// The reply that `generate` gives to this conversation.
fn expected(messages: &[Message]) -> String {
    let prompt = ChatTemplate::parse(TEMPLATE).unwrap().render(messages, true, &Default::default()).unwrap();
    let list = comma(&tokenizer().encode(&prompt, false).unwrap());
    let args = ["generate", "--token-ids", &list, "--temperature", "0", "--max-tokens", "10", "--json"];
    run(&args).json()["text"].as_str().unwrap().to_owned()
}

#[test]
fn every_line_of_a_pipe_is_a_turn() {
    let model = model();
    let mut talk = vec![Message::user("Who is the LORD?")];
    let first = expected(&talk);
    talk.extend([Message::assistant(&first), Message::user("And who\nis he?")]);
    let second = expected(&talk);
    // The last line has no line break.
    let ran = with_input(&options(&model), "Who is the LORD?\n\nAnd who\\\nis he?");
    assert_eq!(ran.err, "");
    assert_eq!(ran.ok(), format!("{first}\n{second}\n"));
}

#[test]
fn commands_are_not_turns() {
    let model = model();
    let said = expected(&[Message::user("Say it.")]);
    let told = expected(&[Message::system("You are Moses."), Message::user("Say it.")]);
    assert_ne!(said, told);
    let input =
        "Say it.\n/reset\nSay it.\n/system You are Moses.\nSay it.\n/reset\nSay it.\n/system\nSay it.\n/exit\nNo.\n";
    let out = with_input(&options(&model), input).ok();
    assert_eq!(out, format!("{said}\n{said}\n{told}\n{told}\n{said}\n"));

    let system = [&options(&model)[..], &["--system", "You are Moses."]].concat();
    assert_eq!(with_input(&system, "Say it.\n").ok(), format!("{told}\n"));

    let ran = with_input(&options(&model), "/help\n/frobnicate\n/etc/passwd is a file.\n");
    assert!(ran.err.contains("/system TEXT") && ran.err.contains("no command /frobnicate"), "{}", ran.err);
    assert_eq!(ran.ok(), expected(&[Message::user("/etc/passwd is a file.")]) + "\n");
}

#[test]
fn the_users_template_replaces_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain.jinja");
    std::fs::write(&file, TEMPLATE).unwrap();
    let file = file.to_str().unwrap();
    let args = ["chat", "--chat-template", file, "--temperature", "0", "--max-tokens", "10", "--quiet"];
    assert_eq!(with_input(&args, "Say it.\n").ok(), expected(&[Message::user("Say it.")]) + "\n");

    std::fs::write(file, "{% if %}").unwrap();
    let ran = with_input(&args, "Say it.\n");
    assert!(ran.error(2).starts_with(&format!("{file}: chat template: expected a Jinja template")), "{ran:?}");
}

#[test]
fn without_a_template_the_error_names_the_option() {
    let ran = with_input(&["chat"], "Say it.\n");
    assert!(ran.error(2).contains("no chat template") && ran.err.contains("--chat-template FILE"), "{ran:?}");
    let model = Checkpoint::builtin();
    let ran = with_input(&["chat", "--model", model.path()], "Say it.\n");
    assert!(ran.error(2).contains("--chat-template FILE"), "{ran:?}");
}

#[test]
fn exceptions_raised_by_the_template_are_shown() {
    let model = model();
    std::fs::write(model.file("chat_template.jinja"), "{{ raise_exception('No\n talk.') }}").unwrap();
    let ran = with_input(&options(&model), "Say it.\n");
    assert!(ran.error(2).contains("No talk."), "{ran:?}");
}

/// Ctrl-C at the input prompt ends silently, with the shell's exit code for it.
#[test]
fn ctrl_c_leaves() {
    let model = model();
    let mut child = command(&options(&model)).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Say it.\n").unwrap();
    // After the whole reply it waits for the next line, or is about to.
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    let interrupted = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(130), &b""[..]));
    drop(stdin);
}
