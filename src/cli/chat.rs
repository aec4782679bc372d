//! `burrstone chat`

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use anyhow::Result;
use burrstone::text::{ChatTemplate, Message};
use burrstone::{Engine, Request};
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::args::{ModelArgs, SamplingArgs};
use super::exit::{Interrupted, message};
use super::interrupt::Interrupt;
use super::output;
use super::values;

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    forget the conversation and start with this system message; without TEXT, with none
/exit           leave (as does Ctrl-D)
/help           this list
A line that ends in \\ goes on in the next. Ctrl-C stops an answer.";

/// Talk with a model, using its own chat template
#[derive(Args)]
#[command(after_help = "In the session:
  /reset, /system TEXT, /exit, /help; a line that ends in \\ goes on in the next; Ctrl-C stops an answer, Ctrl-D leaves.
  From a pipe, every line is a turn of the user's.

Examples:
  burrstone chat --model ./Qwen3-0.6B
  burrstone chat --model Qwen/Qwen3-0.6B --system \"Answer in one sentence.\" --temperature 0.7
  echo \"Who built the mill?\" | burrstone chat --model ./Qwen3-0.6B --quiet
  burrstone chat --model ./Qwen3-0.6B --regex \"[A-Z][a-z ]+[.]\" --dry-multiplier 0.8
  burrstone chat --chat-template plain.jinja")]
pub struct Chat {
    /// A system message to start with
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Use this Jinja template instead of the model's own
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,

    /// Longest answer in tokens [default: up to the end of the context]
    #[arg(long, value_name = "N", value_parser = values::positive, allow_negative_numbers = true)]
    max_tokens: Option<usize>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    sampling: SamplingArgs,
}

impl Chat {
    pub fn run(self) -> Result<()> {
        let interrupt = Interrupt::install()?;
        let engine = self.model.load()?;
        let template = match &self.chat_template {
            Some(file) => engine.chat_template_from(file)?,
            None => engine.chat_template()?,
        };
        let mut lines = Lines::new()?;
        if lines.interactive() && !self.model.quiet {
            output::note(format_args!("{}: /help says what else than talk", engine.report().model));
        }
        let mut session = Session { engine, template, messages: Vec::new(), interrupt, options: self };
        session.start(session.options.system.clone());
        while let Some(line) = lines.next()? {
            match session.turn(&line) {
                Ok(true) => {}
                Ok(false) => break,
                // One turn failed: the others are still there, for someone who can react to it.
                Err(error) if lines.interactive() && error.is::<burrstone::Error>() => {
                    output::note(format_args!("error: {}", message(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A conversation.
struct Session {
    engine: Engine,
    template: ChatTemplate,
    messages: Vec<Message>,
    interrupt: Interrupt,
    options: Chat,
}

impl Session {
    fn start(&mut self, system: Option<String>) {
        self.messages = system.into_iter().map(Message::system).collect();
    }

    /// Takes a command or a turn of the user's. False to leave.
    fn turn(&mut self, line: &str) -> Result<bool> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" if rest.trim().is_empty() => {}
            "/exit" | "/quit" => return Ok(false),
            "/help" => output::note(HELP),
            "/reset" => {
                let system = self.messages.first().filter(|m| m.role == "system").map(|m| m.content.clone());
                self.start(system);
            }
            "/system" => self.start(Some(rest.trim().to_owned()).filter(|text| !text.is_empty())),
            command if command.starts_with('/') && !command[1..].contains('/') => {
                output::note(format_args!("no command {command}\n{HELP}"));
            }
            _ => {
                self.messages.push(Message::user(line));
                let answer = self.answer();
                self.interrupt.release();
                match answer {
                    Ok(answer) => self.messages.push(Message::assistant(answer)),
                    Err(error) => {
                        self.messages.pop();
                        return Err(error);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Streams the model's answer, and returns it.
    fn answer(&mut self) -> Result<String> {
        let prompt = self.template.render(&self.messages, true, &Default::default())?;
        // Templates write the special tokens themselves.
        let tokens = self.engine.tokenizer()?.encode(&prompt, false)?;
        let mut request = self.options.sampling.apply(Request::tokens(tokens))?;
        request.max_tokens = self.options.max_tokens;
        let mut answer = String::new();
        self.interrupt.hold();
        for token in self.engine.generate(request)? {
            let token = token?;
            output::print(&token.text)?;
            answer += &token.text;
            if self.interrupt.noted() {
                break;
            }
        }
        output::print("\n")?;
        if self.interrupt.release() && !io::stdin().is_terminal() {
            return Err(Interrupted.into());
        }
        Ok(answer)
    }
}

/// Lines of the user's, from a terminal or a pipe.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Lines {
    fn new() -> Result<Self> {
        Ok(if io::stdin().is_terminal() {
            Self::Terminal(Box::new(DefaultEditor::new()?))
        } else {
            Self::Pipe(io::stdin().lock().lines())
        })
    }

    fn interactive(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line, with continued lines joined; `None` at the end. Ctrl-C at the prompt discards the input.
    fn next(&mut self) -> Result<Option<String>> {
        let mut whole = String::new();
        loop {
            let line = match self {
                Self::Pipe(lines) => lines.next().transpose()?,
                Self::Terminal(editor) => match editor.readline(if whole.is_empty() { "> " } else { ". " }) {
                    Ok(line) => Some(line),
                    Err(ReadlineError::Eof) => None,
                    Err(ReadlineError::Interrupted) => {
                        whole.clear();
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                },
            };
            let Some(line) = line else { return Ok(Some(whole).filter(|text| !text.is_empty())) };
            match line.strip_suffix('\\') {
                Some(part) => {
                    whole += part;
                    whole.push('\n');
                }
                None => {
                    whole += &line;
                    if let Self::Terminal(editor) = self {
                        editor.add_history_entry(&whole)?;
                    }
                    return Ok(Some(whole));
                }
            }
        }
    }
}
