//! OpenAI's batch format: a request a line, an answer a line.

use burrstone::Engine;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::openai::{self, Completion, Endpoint, Failure, Usage};

/// A line of the input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestLine {
    pub custom_id: String,
    #[serde(default)]
    method: Option<String>,
    url: String,
    body: Value,
}

/// A line of the output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerLine<Body> {
    id: String,
    custom_id: String,
    response: Response<Body>,
    /// Always null: a request that failed is a response with its status.
    error: (),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Response<Body> {
    status_code: u16,
    request_id: String,
    body: Body,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum AnswerBody {
    Completion(Completion),
    Failure(Failure),
}

impl RequestLine {
    /// # Errors
    /// What was expected and what was found instead.
    pub fn parse(line: &[u8]) -> Result<Self, (&'static str, String)> {
        let text = std::str::from_utf8(line).map_err(|error| {
            let at = error.valid_up_to();
            ("UTF-8 text", format!("byte 0x{:02x} at column {}", line[at], at + 1))
        })?;
        let request: Self = serde_json::from_str(text).map_err(|error| ("a request", error.to_string()))?;
        match request.method.as_deref() {
            None | Some("POST") => Ok(request),
            Some(method) => Err(("method POST", format!("{method:?}"))),
        }
    }

    /// Asks the engine, and waits for the answer. No usage where the request failed.
    pub fn answer(&self, engine: &Engine) -> (AnswerLine<AnswerBody>, Option<Usage>) {
        let endpoint = Endpoint::of_url(&self.url);
        match endpoint.and_then(|endpoint| openai::complete(engine, endpoint, &self.custom_id, &self.body)) {
            Ok(completion) => {
                let usage = completion.usage;
                (self.line(200, AnswerBody::Completion(completion)), Some(usage))
            }
            Err(error) => {
                let (status, failure) = openai::failure(&error);
                (self.line(status, AnswerBody::Failure(failure)), None)
            }
        }
    }

    fn line<Body>(&self, status_code: u16, body: Body) -> AnswerLine<Body> {
        AnswerLine {
            id: answer_id(&self.custom_id),
            custom_id: self.custom_id.clone(),
            response: Response { status_code, request_id: self.custom_id.clone(), body },
            error: (),
        }
    }

    /// Whether `bytes` are how an answer to this request begins.
    pub fn begins_answer(&self, bytes: &[u8]) -> bool {
        let (id, custom_id) = (json!(answer_id(&self.custom_id)), json!(self.custom_id));
        openai::STATUS_CODES.iter().any(|status| {
            let response = format!(r#"{{"status_code":{status},"request_id":{custom_id},"body":"#);
            let head = format!(r#"{{"id":{id},"custom_id":{custom_id},"response":{response}"#);
            if bytes.len() <= head.len() {
                return head.as_bytes().starts_with(bytes);
            }
            bytes.starts_with(head.as_bytes()) && is_cut_or_whole(bytes)
        })
    }
}

fn is_cut_or_whole(answer: &[u8]) -> bool {
    // To serde_json, a number that was cut at its point or exponent is wrong, not cut.
    [&b""[..], b"0"].iter().any(|digits| {
        let parsed = serde_json::from_slice::<AnswerLine<IgnoredAny>>(&[answer, digits].concat());
        parsed.map_or_else(|error| error.is_eof(), |_| true)
    })
}

/// The `custom_id` of an answer that this program wrote; `None` for any other line.
pub fn answered(line: &[u8]) -> Option<String> {
    let AnswerLine { id, custom_id, response, .. } = serde_json::from_slice::<AnswerLine<IgnoredAny>>(line).ok()?;
    (id == answer_id(&custom_id) && response.request_id == custom_id).then_some(custom_id)
}

fn answer_id(custom_id: &str) -> String {
    format!("batch_req_{custom_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(custom_id: &str) -> RequestLine {
        let line = json!({"custom_id": custom_id, "url": "/v1/completions", "body": {}}).to_string();
        RequestLine::parse(line.as_bytes()).unwrap()
    }

    #[test]
    fn answers_are_recognised_whole_and_cut() {
        let ours = request("a \"b\" ü\n");
        let line = serde_json::to_vec(
            &ours.line(200, json!({"text": "ü\u{1}🦀e", "n": [-1, 2.5, 1e-30, -2.5e+30, null, true]})),
        )
        .unwrap();
        assert_eq!(answered(&line).as_ref(), Some(&ours.custom_id));
        for end in 0..=line.len() {
            assert!(ours.begins_answer(&line[..end]), "{end}");
            assert_eq!(request("other").begins_answer(&line[..end]), end <= r#"{"id":"batch_req_"#.len(), "{end}");
            assert!(end == line.len() || answered(&line[..end]).is_none());
        }
    }

    #[test]
    fn what_others_wrote_is_not_recognised() {
        let ours = request("a");
        for text in [
            "my only notes",
            r#"{"id":"batch_req_b","custom_id":"a","response":{"status_code":200,"request_id":"a","body":{}},"error":null}"#,
            r#"{"id":"batch_req_a","custom_id":"a","response":{"status_code":200,"request_id":"x","body":{}},"error":null}"#,
            r#"{"id":"batch_req_a","custom_id":"a","response":{"status_code":200,"request_id":"a","body":{}},"error":1}"#,
            r#"{"id":"batch_req_a","custom_id":"a","response":null,"error":null}"#,
            r#"{"custom_id":"a","response":{}}"#,
            r#"{"custom_id":"a"#,
            r#"{"id":"batch_req_a","custom_id":"a","response":{"status_code":200,"mine"#,
            r#"{"id":"batch_req_a","custom_id":"a","response":{"status_code":hello"#,
        ] {
            assert_eq!(answered(text.as_bytes()), None, "{text}");
            assert!(text.contains("_b\"") || text.contains("\"x\"") || !ours.begins_answer(text.as_bytes()), "{text}");
        }
    }
}
