//! One request on its way: an iterator or a stream of tokens.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::engine::Inner;
use crate::engine::sampling::FinishReason;
use crate::engine::step::{Command, Event, Receiver};
use crate::error::Result;
use crate::scheduler::Receipt;
use crate::text::{DecodeStream, StopMatcher, Stopped};

use super::{Timings, Token, Usage};

/// Tokens as they are generated. Ends after the last one, or after an error. Dropping it ends the request.
///
/// The engine generates whether or not anybody asks for the next token; several generations of one engine share its
/// steps. [`into_stream`](Self::into_stream) makes it asynchronous.
pub struct Generation {
    engine: Arc<Inner>,
    key: u64,
    events: Receiver<Event>,
    prompt: Vec<u32>,
    completion_tokens: usize,
    /// `None` where the checkpoint has no tokenizer: tokens then come without text.
    text: Option<(DecodeStream, StopMatcher)>,
    finish_reason: Option<FinishReason>,
    /// Nothing comes any more.
    over: bool,
    receipt: Receipt,
}

impl Generation {
    pub(in crate::engine) fn new(
        engine: Arc<Inner>,
        key: u64,
        events: Receiver<Event>,
        prompt: Vec<u32>,
        text: Option<(DecodeStream, StopMatcher)>,
    ) -> Self {
        Self {
            engine,
            key,
            events,
            prompt,
            completion_tokens: 0,
            text,
            finish_reason: None,
            over: false,
            receipt: Receipt::default(),
        }
    }

    /// Why it ended; `None` while it goes on, and after an error.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish_reason
    }

    pub fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.prompt.len(), completion_tokens: self.completion_tokens }
    }

    pub fn timings(&self) -> Timings {
        Timings { prefill_s: self.receipt.prefill.as_secs_f64(), decode_s: self.receipt.decode.as_secs_f64() }
    }

    /// What the request went through, up to the last token that was taken.
    pub fn receipt(&self) -> Receipt {
        self.receipt
    }

    /// The prompt as the model sees it.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// The same generation, for a task to wait for.
    pub fn into_stream(self) -> TokenStream {
        TokenStream(self)
    }

    fn receive(&mut self, event: Option<Event>) -> Option<Result<Token>> {
        let (sampled, finish, hidden) = match event {
            Some(Event::Token { sampled, finish, hidden, receipt }) => {
                self.receipt = receipt;
                (sampled, finish, hidden)
            }
            Some(Event::End { finish, receipt }) => {
                (self.finish_reason, self.receipt, self.over) = (Some(finish), receipt, true);
                return None;
            }
            Some(Event::Failed(error)) => {
                self.over = true;
                return Some(Err(error));
            }
            None => {
                self.over = true;
                return Some(Err(self.engine.stopped()));
            }
        };
        self.completion_tokens += 1;
        self.finish_reason = finish;
        self.over = finish.is_some();
        let text = self.advance_text(sampled.token, hidden, finish.is_some());
        if text.is_err() || self.finish_reason.is_some() {
            self.cancel();
        }
        Some(text.map(|text| Token { id: sampled.token, text, logprob: sampled.logprob }))
    }

    /// Which text is certain now; whether a stop text ends it. A `hidden` token ends the text and is not part of it.
    fn advance_text(&mut self, token: u32, hidden: bool, is_last: bool) -> Result<String> {
        let Some((decoder, matcher)) = &mut self.text else { return Ok(String::new()) };
        let mut piece = if hidden { String::new() } else { decoder.push(token)? };
        if is_last {
            piece += &decoder.finish()?;
        }
        let mut matched = matcher.push(&piece);
        if let Some(name) = self.engine.tokenizer.as_ref().and_then(|tokenizer| tokenizer.special_token(token)) {
            let further = matcher.push_special(&name);
            matched = Stopped { text: matched.text + &further.text, stopped: further.stopped };
        }
        if matched.stopped {
            self.finish_reason = Some(FinishReason::Stop);
        } else if is_last {
            matched.text += &matcher.finish();
        }
        Ok(matched.text)
    }

    /// Ends the request where the engine does not know yet that it has ended.
    fn cancel(&mut self) {
        if !self.over {
            self.over = true;
            self.engine.send(Command::Cancel(self.key));
        }
    }
}

impl Iterator for Generation {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.over {
            return None;
        }
        let event = self.events.wait();
        self.receive(event)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// A [`Generation`] for tasks, on any runtime.
pub struct TokenStream(Generation);

impl TokenStream {
    /// What is known of it so far.
    pub fn generation(&self) -> &Generation {
        &self.0
    }
}

impl Stream for TokenStream {
    type Item = Result<Token>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Token>>> {
        if self.0.over {
            return Poll::Ready(None);
        }
        let event = std::task::ready!(self.0.events.poll(context));
        Poll::Ready(self.0.receive(event))
    }
}
