//! Models by hub id, against a local server that speaks the hub's protocol.
#![cfg(feature = "hub")]

mod server;

use std::path::{Path, PathBuf};
use std::process::Command;

use burrstone::Error;
use burrstone::model::hub::Hub;
use burrstone::model::source::{HubId, Progress, resolve};
use tempfile::TempDir;

use server::{COMMIT, ID, Server, blob};

const WEIGHTS: &str = "model.safetensors";

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i % 251) as u8).collect()
}

/// A hub with a model, and an empty cache.
fn setup() -> (Server, Hub, TempDir) {
    let server = Server::new(&[
        ("README.md", b"stone"),
        ("config.json", b"{}"),
        ("generation_config.json", b"{ }"),
        (WEIGHTS, &weights()),
        ("original/params.json", b"{}"),
        ("pytorch_model.bin", b"bin"),
        ("tokenizer.json", b"{  }"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { endpoint: server.endpoint.clone(), cache: cache.path().to_owned(), token: None, offline: false };
    (server, hub, cache)
}

fn id() -> HubId {
    HubId::parse(ID).unwrap()
}

fn model_folder(hub: &Hub) -> PathBuf {
    hub.cache.join("models--mill--stone")
}

#[track_caller]
fn assert_says<T>(result: Result<T, Error>, input: bool, parts: &[&str]) {
    let Err(error) = result else { panic!("no error; expected one that says {parts:?}") };
    let text = error.to_string();
    assert_eq!(error.is_input(), input, "{text}");
    assert!(!text.contains('\n'), "more than one line: {text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

/// Writes down what it is told.
#[derive(Default)]
struct Record {
    files: Vec<(String, u64, u64)>,
    finished: usize,
    notices: Vec<String>,
}

impl Progress for Record {
    fn start(&mut self, file: &str, total: u64) {
        self.files.push((file.to_owned(), total, 0));
    }

    fn advance(&mut self, bytes: u64) {
        self.files.last_mut().unwrap().2 += bytes;
    }

    fn finish(&mut self) {
        self.finished += 1;
    }

    fn notice(&mut self, text: &str) {
        self.notices.push(text.to_owned());
    }
}

#[test]
fn downloads_what_is_needed_into_the_shared_layout() {
    let (server, hub, _cache) = setup();
    let mut record = Record::default();
    let folder = hub.snapshot(&id(), &mut record).unwrap();

    assert_eq!(folder, model_folder(&hub).join("snapshots").join(COMMIT));
    let mut names: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    // As Python lays it out: a relative link to the blob, and a ref with the commit.
    let link = std::fs::read_link(folder.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(blob(WEIGHTS)));
    assert_eq!(std::fs::read_to_string(model_folder(&hub).join("refs/main")).unwrap(), COMMIT);
    assert_eq!(model_folder(&hub).join("refs").read_dir().unwrap().count(), 1);

    let lengths: Vec<_> = record.files.iter().map(|(name, total, seen)| (name.as_str(), *total, *seen)).collect();
    assert!(lengths.contains(&(WEIGHTS, 300_000, 300_000)), "{lengths:?}");
    assert_eq!((record.finished, record.notices.len()), (4, 0));

    // The second time one question is asked, and nothing transferred.
    server.take_log();
    assert_eq!(hub.snapshot(&id(), &mut ()).unwrap(), folder);
    assert_eq!(server.take_log().len(), 1);
}

#[test]
fn shards_are_those_of_the_index() {
    let (server, hub, _cache) = setup();
    let index =
        br#"{"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors", "z": "model-1.safetensors"}}"#;
    server.state().files.remove(WEIGHTS);
    for (name, bytes) in [
        ("model.safetensors.index.json", &index[..]),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("consolidated.safetensors", b"not asked for"),
    ] {
        server.state().files.insert(name.to_owned(), bytes.to_vec());
    }
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join("model-2.safetensors")).unwrap(), b"two");
    assert!(folder.join("model-1.safetensors").exists());
    assert!(!folder.join("consolidated.safetensors").exists());

    // A copy that lacks a shard is no copy.
    std::fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    let offline = Hub { offline: true, ..hub };
    assert_says(offline.snapshot(&id(), &mut ()), true, &[ID, "not complete in the cache", "offline"]);
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let (server, hub, _cache) = setup();
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![100_000, 50_000]);
    let mut record = Record::default();
    let folder = hub.snapshot(&id(), &mut record).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.starts(WEIGHTS), [0, 100_000, 150_000]);
    // Told once, counted once.
    let told: Vec<_> = record.files.iter().filter(|(name, ..)| name == WEIGHTS).collect();
    assert_eq!(told, [&(WEIGHTS.to_owned(), 300_000, 300_000)]);
}

#[test]
fn a_later_run_goes_on_where_an_earlier_one_gave_up() {
    let (server, hub, _cache) = setup();
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![120_000, 0, 0, 0]);
    assert_says(hub.snapshot(&id(), &mut ()), false, &["mill/stone/model.safetensors"]);
    assert!(!model_folder(&hub).join("refs/main").exists());

    server.state().cuts.clear();
    server.take_log();
    let mut record = Record::default();
    let folder = hub.snapshot(&id(), &mut record).unwrap();
    assert_eq!(server.starts(WEIGHTS), [120_000]);
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(record.files, [(WEIGHTS.to_owned(), 300_000, 300_000)]);
}

#[test]
fn a_partial_file_that_is_whole_is_finished() {
    let (server, hub, _cache) = setup();
    let blobs = model_folder(&hub).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.part", blob(WEIGHTS))), weights()).unwrap();
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.starts(WEIGHTS), [300_000, 299_999]);
}

#[test]
fn a_server_without_ranges_does_not_spoil_the_file() {
    let (server, hub, _cache) = setup();
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![70_000]);
    server.state().ignores_ranges = true;
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
}

#[test]
fn the_token_is_sent_and_its_lack_explained() {
    let (server, hub, _cache) = setup();
    server.state().token = Some("secret".to_owned());
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "401", "HF_TOKEN"]);
    let hub = Hub { token: Some("secret".to_owned()), ..hub };
    server.take_log();
    hub.snapshot(&id(), &mut ()).unwrap();
    let log = server.take_log();
    assert!(log.iter().all(|request| request.headers["authorization"] == "Bearer secret"), "{log:?}");
}

#[test]
fn what_the_hub_has_not_is_said() {
    let (server, hub, _cache) = setup();
    let other = HubId::parse("mill/sieve").unwrap();
    assert_says(hub.snapshot(&other, &mut ()), true, &["mill/sieve", "no such folder", &hub.endpoint]);

    server.state().files.remove(WEIGHTS);
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "no safetensors"]);
    server.state().files.remove("config.json");
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "no config.json"]);
    assert!(!model_folder(&hub).join("snapshots").exists(), "something was downloaded");
}

#[test]
fn another_revision_has_its_own_ref() {
    let (_server, hub, _cache) = setup();
    let id = HubId::parse("mill/stone@v1/b").unwrap();
    hub.snapshot(&id, &mut ()).unwrap();
    assert_eq!(std::fs::read_to_string(model_folder(&hub).join("refs/v1/b")).unwrap(), COMMIT);
    let offline = Hub { offline: true, ..hub };
    offline.snapshot(&id, &mut ()).unwrap();
    // A commit is its own name.
    let commit = HubId { revision: COMMIT.to_owned(), ..id };
    offline.snapshot(&commit, &mut ()).unwrap();
    assert_says(offline.snapshot(&self::id(), &mut ()), true, &["offline"]);
}

#[test]
fn offline_uses_what_python_downloaded_and_asks_nobody() {
    let (server, mut hub, _cache) = setup();
    hub.offline = true;
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "offline", &hub.cache.display().to_string()]);

    // As huggingface_hub leaves it.
    let folder = model_folder(&hub);
    let snapshot = folder.join("snapshots").join(COMMIT);
    for part in [&snapshot, &folder.join("blobs"), &folder.join("refs")] {
        std::fs::create_dir_all(part).unwrap();
    }
    for name in ["config.json", WEIGHTS] {
        std::fs::write(folder.join("blobs").join(blob(name)), name).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob(name)), snapshot.join(name)).unwrap();
        #[cfg(not(unix))]
        std::fs::copy(folder.join("blobs").join(blob(name)), snapshot.join(name)).unwrap();
    }
    std::fs::write(folder.join("refs/main"), COMMIT).unwrap();
    assert_eq!(hub.snapshot(&id(), &mut ()).unwrap(), snapshot);
    assert_eq!(server.take_log().len(), 0);
}

#[test]
fn a_silent_hub_is_replaced_by_the_cache_with_a_notice() {
    let (server, hub, _cache) = setup();
    server.state().status = Some(503);
    assert_says(hub.snapshot(&id(), &mut ()), false, &[ID, "503"]);
    server.state().status = None;
    let folder = hub.snapshot(&id(), &mut ()).unwrap();

    server.state().status = Some(503);
    let mut record = Record::default();
    assert_eq!(hub.snapshot(&id(), &mut record).unwrap(), folder);
    assert_eq!(record.notices.len(), 1);
    assert!(record.notices[0].contains("503") && record.notices[0].contains(COMMIT), "{:?}", record.notices);

    drop(server);
    let mut record = Record::default();
    assert_eq!(hub.snapshot(&id(), &mut record).unwrap(), folder);
    assert_eq!(record.notices.len(), 1);
}

#[test]
fn ids_are_told_from_paths() {
    let id = |name: &str, revision: &str| Some(HubId { name: name.to_owned(), revision: revision.to_owned() });
    assert_eq!(HubId::parse("gpt2"), id("gpt2", "main"));
    assert_eq!(HubId::parse("Qwen/Qwen2.5-0.5B"), id("Qwen/Qwen2.5-0.5B", "main"));
    assert_eq!(HubId::parse("a/b@refs/pr/1"), id("a/b", "refs/pr/1"));
    let long = "x".repeat(97);
    for text in [
        "", "/", "/a", "a/", "./a", "../a", "~/a", "a/b/c", "a b", "a/..", "a@", "a@../b", "a@/b", "-a", "a--b", "ä",
        &long,
    ] {
        assert_eq!(HubId::parse(text), None, "{text}");
    }
}

#[test]
fn a_folder_wins_over_an_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(resolve(path, true, &mut ()).unwrap(), folder.path());
    assert_eq!(resolve("src/model", true, &mut ()).unwrap(), Path::new("src/model"));
    assert_says(resolve("Cargo.toml", true, &mut ()), true, &["Cargo.toml", "is a file"]);
    assert_says(resolve("./nowhere/at/all", true, &mut ()), true, &["./nowhere/at/all", "no such folder"]);
}

#[test]
fn the_environment_is_read_as_python_reads_it() {
    let home = tempfile::tempdir().unwrap();
    let at = |rest: &str| home.path().join(rest);
    let read = |variables: &[(&str, &str)]| {
        let lookup = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Hub::from_lookup(lookup)
    };
    let base = home.path().to_str().unwrap();

    let hub = read(&[("HOME", base)]).unwrap();
    assert_eq!(hub.endpoint, "https://huggingface.co");
    assert_eq!((hub.cache, hub.token, hub.offline), (at(".cache/huggingface/hub"), None, false));
    assert_eq!(read(&[("HOME", "/h"), ("XDG_CACHE_HOME", base)]).unwrap().cache, at("huggingface/hub"));

    std::fs::write(at("token"), "from-file\n").unwrap();
    let hub = read(&[("HF_HOME", base), ("HF_ENDPOINT", "http://mirror"), ("HF_HUB_OFFLINE", "1")]).unwrap();
    assert_eq!((hub.endpoint.as_str(), hub.cache, hub.offline), ("http://mirror", at("hub"), true));
    assert_eq!(hub.token.as_deref(), Some("from-file"));
    let hub = read(&[("HF_HOME", base), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "own"), ("HF_HUB_OFFLINE", "0")]).unwrap();
    assert_eq!((hub.cache, hub.token.as_deref(), hub.offline), (PathBuf::from("/c"), Some("own"), false));
    assert_says(read(&[]), false, &["HF_HOME"]);
}

#[test]
#[ignore = "others run it, in a process that they arrange"]
fn in_another_process() {
    match resolve(ID, false, &mut ()) {
        Ok(folder) => println!("\nfolder {}", folder.display()),
        Err(error) => println!("\nerror {} {error}", error.is_input()),
    }
}

/// Runs [`in_another_process`] after `setup`, lines of shell; what it says.
#[cfg(unix)]
fn child(setup: &str, hub: &Hub, extra: &[(&str, &str)]) -> String {
    let script = format!("{setup}\nexec \"$0\" --exact in_another_process --ignored --nocapture --test-threads 1");
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HUB_CACHE", &hub.cache)
        .env("HF_HOME", &hub.cache)
        .envs(extra.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("folder ") || line.starts_with("error "));
    line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_one_line_and_the_rest_comes_later() {
    let (server, hub, _cache) = setup();
    // A limit on the length of files stands for the end of the disk: 128 blocks of 512 bytes, or of 1024.
    let said = child("trap '' XFSZ; ulimit -f 128", &hub, &[]);
    assert!(said.starts_with("error false") && said.contains("mill/stone/model.safetensors"), "{said}");
    assert!(said.contains("too large") && said.contains("run again"), "{said}");
    let part = model_folder(&hub).join("blobs").join(format!("{}.part", blob(WEIGHTS)));
    let kept = part.metadata().unwrap().len() as usize;
    assert!([128 * 512, 128 * 1024].contains(&kept), "{kept}");

    server.take_log();
    let said = child("", &hub, &[]);
    assert!(said.starts_with("folder ") && said.ends_with(COMMIT), "{said}");
    assert_eq!(server.starts(WEIGHTS), [kept]);
    let folder = PathBuf::from(said.trim_start_matches("folder "));
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
}

#[cfg(target_os = "linux")]
#[test]
fn no_space_left_is_said_as_the_system_says_it() {
    let (_server, hub, _cache) = setup();
    let blobs = model_folder(&hub).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", blobs.join(format!("{}.part", blob(WEIGHTS)))).unwrap();
    let said = hub.snapshot(&id(), &mut ());
    assert_says(said, false, &["mill/stone/model.safetensors", "No space left on device", "run again"]);
}

#[cfg(unix)]
#[test]
fn the_environment_reaches_a_download() {
    let (server, hub, _cache) = setup();
    server.state().token = Some("secret".to_owned());
    let said = child("", &hub, &[("HF_TOKEN", "secret")]);
    assert!(said.starts_with("folder "), "{said}");
    server.take_log();
    let said = child("", &hub, &[("HF_HUB_OFFLINE", "1")]);
    assert!(said.starts_with("folder "), "{said}");
    assert_eq!(server.take_log().len(), 0);
}
