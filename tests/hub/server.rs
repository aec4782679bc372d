//! A server with the part of the hub's protocol that downloads need; it records the requests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const ID: &str = "mill/stone";

/// A request: its path, and its headers with names in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

/// The server's files and its faults.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Requests without this token get 401.
    pub token: Option<String>,
    /// File → bytes of each of the next downloads that arrive before the connection is cut.
    pub cuts: BTreeMap<String, Vec<usize>>,
    /// Instead of being cut, connections fall silent.
    pub hangs: bool,
    /// While true, only the first bytes of each file are sent.
    pub paused: bool,
    /// Host and port that downloads of weights are redirected to: this server under another name.
    pub cdn: Option<String>,
    /// ETags other than [`etag`]'s.
    pub etags: BTreeMap<String, String>,
    /// The commit of all revisions, if not [`COMMIT`].
    pub commit: Option<String>,
    /// Ignores ranges and sends whole files.
    pub ignores_ranges: bool,
    /// Every request fails with this status.
    pub status: Option<u16>,
    pub log: Vec<Request>,
}

pub struct Server {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, own) = (state.clone(), stop.clone(), endpoint.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (shared, own) = (shared.clone(), own.clone());
                // A client may disconnect early.
                std::thread::spawn(move || stream.and_then(|stream| answer(stream, &shared, &own)));
            }
        });
        Self { endpoint, state, stop }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }

    /// The byte at which each download of a file started, without requests for the length only.
    pub fn starts(&self, file: &str) -> Vec<usize> {
        let range = |request: &Request| request.headers.get("range").cloned().unwrap_or_default();
        let state = self.state();
        let served = state.log.iter().filter(|request| request.path == format!("/cdn/{file}"));
        let ranges = served.map(range).filter(|range| range != "bytes=0-0");
        ranges.map(|range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener, which then closes its socket.
        TcpStream::connect(self.endpoint.trim_start_matches("http://")).ok();
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>, endpoint: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let request = Request { path: path.clone(), headers };
    let shared = state;
    let mut state = shared.lock().unwrap();
    state.log.push(request.clone());
    let mut stream = reader.into_inner();

    if let Some(status) = state.status {
        return respond(&mut stream, status, "", b"");
    }
    let expected = state.token.as_ref().map(|token| format!("Bearer {token}"));
    // The other host does not check tokens.
    let own = request.headers.get("host").is_some_and(|host| endpoint.ends_with(host));
    if own && expected.is_some() && request.headers.get("authorization") != expected.as_ref() {
        return respond(&mut stream, 401, "X-Error-Message: the door is closed\r\n", b"");
    }
    let commit = state.commit.clone().unwrap_or_else(|| COMMIT.to_owned());
    if [format!("/api/models/{ID}/revision/main"), format!("/api/models/{ID}/revision/v1%2Fb")].contains(&path) {
        let siblings: Vec<_> = state.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"id": ID, "sha": commit, "siblings": siblings}).to_string();
        return respond(&mut stream, 200, "Content-Type: application/json\r\n", body.as_bytes());
    }
    if let Some(name) = path.strip_prefix(&format!("/{ID}/resolve/{commit}/")) {
        if !state.files.contains_key(name) {
            return respond(&mut stream, 404, "", b"");
        }
        // Weights are redirected to the other host, small files are sent directly.
        let etag = state.etags.get(name).cloned().unwrap_or_else(|| etag(name));
        let commit = format!("X-Repo-Commit: {commit}\r\n");
        return if name.ends_with(".safetensors") {
            let cdn = state.cdn.as_ref().map_or_else(|| endpoint.to_owned(), |cdn| format!("http://{cdn}"));
            let headers = format!("{commit}X-Linked-Etag: {etag}\r\nLocation: {cdn}/cdn/{name}\r\n");
            respond(&mut stream, 302, &headers, b"")
        } else {
            send(&mut stream, shared, state, name, &request, &format!("{commit}ETag: {etag}\r\n"))
        };
    }
    match path.strip_prefix("/cdn/") {
        Some(name) => send(&mut stream, shared, state, name, &request, ""),
        None => respond(&mut stream, 404, "", b""),
    }
}

pub fn etag(name: &str) -> String {
    format!("\"{}\"", blob(name))
}

/// Name of a file's blob in the cache.
pub fn blob(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn send(
    stream: &mut TcpStream,
    shared: &Mutex<State>,
    mut state: MutexGuard<'_, State>,
    name: &str,
    request: &Request,
    headers: &str,
) -> std::io::Result<()> {
    let file = state.files[name].clone();
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let (from, to) = range.and_then(|range| range.split_once('-')).unwrap_or_default();
    let from = from.parse().unwrap_or(0);
    let to = to.parse().map_or(file.len(), |last: usize| last + 1);
    if range.is_some() && from >= file.len() {
        return respond(stream, 416, "", b"");
    }
    let whole = range.is_none() || state.ignores_ranges && to == file.len();
    let part = if whole { &file[..] } else { &file[from..to] };
    let span = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, file.len());
    let (status, span) = if whole { (200, "") } else { (206, &span[..]) };
    let cuts = state.cuts.get_mut(name).filter(|cuts| to == file.len() && !cuts.is_empty());
    let end = cuts.map_or(part.len(), |cuts| cuts.remove(0));
    let hangs = state.hangs && end < part.len();
    drop(state);
    head(stream, status, &format!("{headers}{span}"), part.len())?;
    let (first, rest) = part[..end].split_at(end.min(1000));
    stream.write_all(first)?;
    while !rest.is_empty() && shared.lock().unwrap().paused {
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.write_all(rest)?;
    if hangs {
        // Until the client disconnects.
        std::io::Read::read(stream, &mut [0])?;
    }
    Ok(())
}

fn respond(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    head(stream, status, headers, body.len())?;
    stream.write_all(body)
}

fn head(stream: &mut TcpStream, status: u16, headers: &str, length: usize) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n")
}
