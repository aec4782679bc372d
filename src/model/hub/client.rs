//! The hub's HTTP protocol: redirects, the headers that describe a file, and the token, which goes to the hub alone.

use std::io::Read;

use serde_json::Value;
use ureq::Body;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};

use super::Hub;
use super::cache::is_file_name;

/// Redirects of one request before giving up.
const MAX_REDIRECTS: usize = 10;
/// Bytes of the answer that lists a model's files. The largest known ones have a few MB.
const MAX_LISTING: u64 = 64 << 20;

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// Why a request, or the download that it belongs to, failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{server} answers {status}{message}")]
    Status { server: Origin, status: StatusCode, message: String },
    #[error("{server}: {source}")]
    Network { server: Origin, source: ureq::Error },
    /// The answer breaks the protocol.
    #[error("{0}")]
    Answer(String),
    /// The body is not the file that was announced: another attempt may bring it.
    #[error("{0}")]
    Body(String),
    #[error("{0}")]
    Disk(#[from] std::io::Error),
}

impl Failure {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error()
                    || [StatusCode::TOO_MANY_REQUESTS, StatusCode::RANGE_NOT_SATISFIABLE].contains(status)
            }
            Self::Network { source, .. } => match source {
                ureq::Error::Io(e) => is_transient(e),
                ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => true,
                _ => false,
            },
            Self::Body(_) => true,
            Self::Answer(_) | Self::Disk(_) => false,
        }
    }
}

fn is_transient(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::UnexpectedEof
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::BrokenPipe
            | Kind::TimedOut
            | Kind::Interrupted
    )
}

/// Scheme, host and port of a URL: what a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &Uri) -> Result<Self, Failure> {
        let scheme = url.scheme_str().unwrap_or_default();
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(Failure::Answer(format!("{url} is no URL of http or https"))),
        };
        let host = url.host().unwrap_or_default().to_ascii_lowercase();
        Ok(Self { scheme: scheme.to_owned(), host, port: url.port_u16().unwrap_or(default_port) })
    }

    fn is_plain(&self) -> bool {
        self.scheme == "http" && self.port == 80
    }

    /// Whether a token for this origin may be sent to `other`: to itself, or to its encrypted twin.
    fn trusts(&self, other: &Self) -> bool {
        let upgraded = self.is_plain() && other.scheme == "https" && other.port == 443;
        self == other || upgraded && self.host == other.host
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scheme, host, port } = self;
        match (scheme.as_str(), port) {
            ("http", 80) | ("https", 443) => write!(f, "{scheme}://{host}"),
            _ => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// What the hub says about one file.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// Name of the file's blob in the cache.
    pub etag: String,
    pub size: u64,
    /// Known for large files only.
    pub sha256: Option<String>,
}

/// A file's bytes from `start` on.
pub(super) struct Part {
    pub start: u64,
    pub reader: PartReader,
}

/// Reads a response body; its errors say which server failed.
pub(super) struct PartReader {
    server: Origin,
    body: ureq::BodyReader<'static>,
}

impl PartReader {
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        self.body.read(buffer).map_err(|e| Failure::Network { server: self.server.clone(), source: e.into() })
    }
}

/// Speaks to one hub.
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    hub: Origin,
    authorization: Option<HeaderValue>,
}

impl Client {
    pub fn new(hub: &Hub) -> Result<Self, Failure> {
        let endpoint = hub.endpoint.trim_end_matches('/').to_owned();
        let url = parse(&endpoint)?;
        let authorization = hub.token.as_ref().map(|token| {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            value.map_err(|_| Failure::Answer("the token (HF_TOKEN) has characters that no token has".to_owned()))
        });
        // Redirects are followed by `follow`, which knows whom to send the token.
        let agent = ureq::Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("burrstone/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(hub.timeout))
            .timeout_connect(Some(hub.timeout))
            .timeout_per_read(Some(hub.timeout))
            .build();
        let origin = Origin::of(&url)?;
        Ok(Self { agent: agent.into(), endpoint, hub: origin, authorization: authorization.transpose()? })
    }

    pub fn is_hub(&self, server: &Origin) -> bool {
        *server == self.hub
    }

    /// The commit of a revision and the names of its files.
    pub fn list(&self, model: &str, revision: &str) -> Result<(String, Vec<String>), Failure> {
        let url = format!("{}/api/models/{model}/revision/{}", self.endpoint, escape(revision));
        let (server, mut response) = self.follow(&url, None, |_| false)?;
        let body = response.body_mut().with_config().limit(MAX_LISTING).read_to_vec();
        let body = body.map_err(|source| Failure::Network { server: server.clone(), source })?;
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|e| Failure::Answer(format!("{server} lists the files in JSON that is broken: {e}")))?;
        let commit = answer["sha"].as_str().unwrap_or_default();
        if commit.len() > 64 || commit.is_empty() || !commit.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Failure::Answer(format!("{server} names the commit {commit:?}")));
        }
        let files = answer["siblings"].as_array().into_iter().flatten();
        let names = files.filter_map(|file| file["rfilename"].as_str()).map(str::to_owned);
        Ok((commit.to_owned(), names.collect()))
    }

    /// Name, length and hash of a file, without its bytes.
    pub fn describe(&self, model: &str, commit: &str, name: &str) -> Result<RemoteFile, Failure> {
        let url = self.file_url(model, commit, name);
        // One byte stands for the file: not every server that tells the length to GET tells it to HEAD.
        match self.read_headers(&url, commit, Some("bytes=0-0")) {
            // An empty file has no first byte.
            Err(Failure::Status { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) => {
                self.read_headers(&url, commit, None)
            }
            other => other,
        }
    }

    fn read_headers(&self, url: &str, commit: &str, range: Option<&str>) -> Result<RemoteFile, Failure> {
        let (mut etag, mut size, mut linked) = (None, None, false);
        let mut commits = Vec::new();
        self.follow(url, range, |hop| {
            commits.extend(text(hop.headers, &REPO_COMMIT));
            if etag.is_none() {
                etag = text(hop.headers, &LINKED_ETAG);
                linked = etag.is_some();
                // A redirect within the hub is not yet about the file.
                if !linked && !hop.stays {
                    etag = text(hop.headers, &ETAG);
                }
            }
            size = size.or_else(|| text(hop.headers, &LINKED_SIZE)?.parse().ok()).or_else(|| hop.length());
            etag.is_some() && size.is_some()
        })?;
        if let Some(other) = commits.first().filter(|other| *other != commit) {
            return Err(Failure::Answer(format!("asked for commit {commit}, found {other:?}")));
        }
        let raw = etag.ok_or_else(|| Failure::Answer(format!("{} sends no ETag", self.hub)))?;
        let etag = raw.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_file_name(&etag) {
            return Err(Failure::Answer(format!("expected an ETag that can name a file, found {raw:?}")));
        }
        let size = size.ok_or_else(|| Failure::Answer(format!("{} does not tell the length", self.hub)))?;
        // Of its own ETags the hub does not say how they are made.
        let is_sha256 = linked && etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let sha256 = is_sha256.then(|| etag.to_ascii_lowercase());
        Ok(RemoteFile { etag, size, sha256 })
    }

    /// The bytes of a file from `start` on, or from its beginning where the server ignores ranges.
    pub fn read_from(&self, model: &str, commit: &str, name: &str, start: u64) -> Result<Part, Failure> {
        let url = self.file_url(model, commit, name);
        let (server, response) = self.follow(&url, Some(&format!("bytes={start}-")), |_| false)?;
        let found = match response.status() {
            StatusCode::PARTIAL_CONTENT => text(response.headers(), &CONTENT_RANGE)
                .and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok())
                .filter(|found| *found == start),
            _ => Some(0),
        };
        let start = found.ok_or_else(|| Failure::Answer(format!("{server} sends another part than from {start}")))?;
        Ok(Part { start, reader: PartReader { server, body: response.into_body().into_reader() } })
    }

    fn file_url(&self, model: &str, commit: &str, name: &str) -> String {
        format!("{}/{model}/resolve/{commit}/{}", self.endpoint, escape(name))
    }

    /// The answer at the end of all redirects, or the first one of which `enough` says that it is enough.
    fn follow(
        &self,
        url: &str,
        range: Option<&str>,
        mut enough: impl FnMut(&Hop<'_>) -> bool,
    ) -> Result<(Origin, Response<Body>), Failure> {
        let mut url = parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let server = Origin::of(&url)?;
            let mut request = self.agent.get(&url).header(ACCEPT_ENCODING, "identity");
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let Some(authorization) = self.authorization.as_ref().filter(|_| self.hub.trusts(&server)) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.call().map_err(|source| Failure::Network { server: server.clone(), source })?;
            let (status, headers) = (response.status(), response.headers());
            if !status.is_success() && !status.is_redirection() {
                let message = text(headers, &ERROR_MESSAGE).map(|text| format!(": {text}")).unwrap_or_default();
                return Err(Failure::Status { server, status, message });
            }
            let next = match text(headers, &LOCATION) {
                Some(location) if status.is_redirection() => Some(join(&url, &location)?),
                None if status.is_redirection() => {
                    return Err(Failure::Answer(format!("{server} redirects to nowhere")));
                }
                _ => None,
            };
            let stays = next.as_ref().is_some_and(|next| Origin::of(next).is_ok_and(|next| next == server));
            if enough(&Hop { status, headers, stays }) {
                return Ok((server, response));
            }
            match next {
                Some(next) => url = next,
                None => return Ok((server, response)),
            }
        }
        Err(Failure::Answer(format!("{} redirects more than {MAX_REDIRECTS} times", self.hub)))
    }
}

/// One answer on the way to the last one.
struct Hop<'a> {
    status: StatusCode,
    headers: &'a HeaderMap,
    /// A redirect to the same origin.
    stays: bool,
}

impl Hop<'_> {
    /// Length of the whole file, if this is the answer that carries it.
    fn length(&self) -> Option<u64> {
        match self.status {
            StatusCode::PARTIAL_CONTENT => text(self.headers, &CONTENT_RANGE)?.rsplit_once('/')?.1.parse().ok(),
            StatusCode::OK => text(self.headers, &CONTENT_LENGTH)?.parse().ok(),
            _ => None,
        }
    }
}

/// A header's value; `None` also where it is not plain ASCII.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn parse(url: &str) -> Result<Uri, Failure> {
    url.parse().map_err(|e| Failure::Answer(format!("{url:?} is no URL: {e}")))
}

/// The URL that a redirect from `base` points to.
fn join(base: &Uri, location: &str) -> Result<Uri, Failure> {
    let scheme = base.scheme_str().unwrap_or_default();
    let server = base.authority().map_or("", |authority| authority.as_str());
    let before_path = location.split(['/', '?', '#']).next().unwrap_or_default();
    if before_path.contains(':') {
        parse(location)
    } else if location.starts_with("//") {
        parse(&format!("{scheme}:{location}"))
    } else if location.starts_with('/') {
        parse(&format!("{scheme}://{server}{location}"))
    } else if location.starts_with('?') {
        parse(&format!("{scheme}://{server}{}{location}", base.path()))
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        parse(&format!("{scheme}://{server}{folder}/{location}"))
    }
}

/// One segment of a URL's path.
fn escape(segment: &str) -> String {
    segment.bytes().fold(String::with_capacity(segment.len()), |mut escaped, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&parse(url).unwrap()).unwrap()
    }

    #[test]
    fn a_token_stays_with_its_origin() {
        let hub = origin("https://Hub.example");
        assert!(hub.trusts(&origin("https://hub.example:443/other")));
        for other in ["http://hub.example", "https://hub.example:8443", "https://cdn.hub.example", "https://example"] {
            assert!(!hub.trusts(&origin(other)), "{other}");
        }
        assert!(origin("http://hub.example").trusts(&origin("https://hub.example")));
        assert!(!origin("http://hub.example:8080").trusts(&origin("https://hub.example")));
        assert!(Origin::of(&parse("ftp://hub.example/x").unwrap()).is_err());
    }

    #[test]
    fn redirects_are_relative_to_their_page() {
        let base = parse("http://hub:8/a/b?c").unwrap();
        for (location, expected) in [
            ("https://cdn/x?y=1", "https://cdn/x?y=1"),
            ("//cdn/x", "http://cdn/x"),
            ("/x?u=http://y", "http://hub:8/x?u=http://y"),
            ("?x", "http://hub:8/a/b?x"),
            ("x/y", "http://hub:8/a/x/y"),
        ] {
            assert_eq!(join(&base, location).unwrap(), parse(expected).unwrap(), "{location}");
        }
        assert!(join(&base, "http://").is_err());
    }
}
