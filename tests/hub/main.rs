//! Downloads by hub id from a local server that speaks the hub's protocol.
#![cfg(feature = "hub")]

mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use burrstone::Error;
use burrstone::model::hub::Hub;
use burrstone::model::resolve;
use burrstone::model::source::{HubId, Progress};
use tempfile::TempDir;

use server::{COMMIT, ID, Server, blob};

const WEIGHTS: &str = "model.safetensors";

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i % 251) as u8).collect()
}

/// A hub with one model, and an empty cache.
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
    let hub = Hub {
        endpoint: server.endpoint.clone(),
        cache: cache.path().to_owned(),
        token: None,
        offline: false,
        symlinks: true,
        timeout: Duration::from_secs(10),
        lock_patience: Duration::from_secs(60),
    };
    (server, hub, cache)
}

fn id() -> HubId {
    HubId::parse(ID).unwrap()
}

fn model_folder(hub: &Hub) -> PathBuf {
    hub.cache.join("models--mill--stone")
}

/// The partial file of the weights.
fn partial(hub: &Hub) -> PathBuf {
    model_folder(hub).join("blobs").join(format!("{}.incomplete", blob(WEIGHTS)))
}

/// Leaves a partial file of the weights from an earlier run.
fn leave_partial(hub: &Hub, bytes: &[u8]) {
    std::fs::create_dir_all(model_folder(hub).join("blobs")).unwrap();
    std::fs::write(partial(hub), bytes).unwrap();
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = folder.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
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

/// Records progress and notices.
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
    assert_eq!(names_in(&folder), ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    // Python's layout: a relative link to the blob, and a ref with the commit.
    let link = std::fs::read_link(folder.join(WEIGHTS)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(blob(WEIGHTS)));
    assert_eq!(std::fs::read_to_string(model_folder(&hub).join("refs/main")).unwrap(), COMMIT);
    assert_eq!(model_folder(&hub).join("refs").read_dir().unwrap().count(), 1);

    let lengths: Vec<_> = record.files.iter().map(|(name, total, seen)| (name.as_str(), *total, *seen)).collect();
    assert!(lengths.contains(&(WEIGHTS, 300_000, 300_000)), "{lengths:?}");
    assert_eq!((record.finished, record.notices.len()), (4, 0));

    // A second call makes one request and downloads nothing.
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

    // A snapshot without one of its shards is incomplete.
    std::fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    let offline = Hub { offline: true, ..hub };
    assert_says(offline.snapshot(&id(), &mut ()), true, &[ID, "not complete in the cache", "offline"]);
}

#[test]
fn a_cut_download_resumes() {
    let (server, hub, _cache) = setup();
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![100_000, 50_000]);
    let mut record = Record::default();
    let folder = hub.snapshot(&id(), &mut record).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.starts(WEIGHTS), [0, 100_000, 150_000]);
    // A resumed file is reported once, and its bytes are counted once.
    let told: Vec<_> = record.files.iter().filter(|(name, ..)| name == WEIGHTS).collect();
    assert_eq!(told, [&(WEIGHTS.to_owned(), 300_000, 300_000)]);
}

#[test]
fn a_later_run_resumes_the_download() {
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
fn a_complete_partial_file_is_not_downloaded_again() {
    let (server, hub, _cache) = setup();
    leave_partial(&hub, &weights());
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.starts(WEIGHTS), [0; 0]);
}

#[test]
fn a_partial_file_that_is_too_long_is_downloaded_again() {
    let (server, hub, _cache) = setup();
    leave_partial(&hub, &[7; 300_001]);
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.starts(WEIGHTS), [0]);
}

#[test]
fn a_file_must_have_the_hash_in_its_etag() {
    // The hash of `weights()`.
    const SHA256: &str = "3c65ea93424a9c362fec0e3a69ea36031e8a358441479dd665cc6110eabe7b08";
    let (server, hub, _cache) = setup();
    server.state().etags.insert(WEIGHTS.to_owned(), format!("\"{SHA256}\""));
    // Other tools write partial files out of order: one of full length may have holes.
    for left in [vec![0; 300_000], weights()[..200_000].to_vec(), vec![1; 200_000]] {
        let blobs = model_folder(&hub).join("blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{SHA256}.incomplete")), left).unwrap();
        let folder = hub.snapshot(&id(), &mut ()).unwrap();
        assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
        std::fs::remove_dir_all(model_folder(&hub)).unwrap();
    }

    let wrong = "0".repeat(64);
    server.state().etags.insert(WEIGHTS.to_owned(), format!("\"{wrong}\""));
    assert_says(hub.snapshot(&id(), &mut ()), false, &["mill/stone/model.safetensors", "sha256", &wrong, SHA256]);
    assert!(!model_folder(&hub).join("blobs").join(wrong).exists());
}

#[test]
fn a_silent_connection_is_replaced() {
    let (server, hub, _cache) = setup();
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![100_000]);
    server.state().hangs = true;
    let hub = Hub { timeout: Duration::from_millis(500), ..hub };
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert_eq!(server.starts(WEIGHTS)[..2], [0, 100_000]);
}

#[test]
fn an_empty_file_is_a_file() {
    let (server, hub, _cache) = setup();
    server.state().files.insert("chat_template.jinja".to_owned(), Vec::new());
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join("chat_template.jinja")).unwrap(), b"");
}

#[test]
fn a_blob_of_another_revision_is_linked_and_not_downloaded() {
    for symlinks in [true, false] {
        let (server, hub, _cache) = setup();
        let old = hub.snapshot(&id(), &mut ()).unwrap();
        let commit = "f".repeat(40);
        server.state().commit = Some(commit.clone());
        server.take_log();
        let hub = Hub { symlinks, ..hub };
        let new = hub.snapshot(&id(), &mut ()).unwrap();
        assert!(new.ends_with(&commit));
        for folder in [&old, &new] {
            assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
        }
        assert_eq!(new.join(WEIGHTS).is_symlink(), symlinks);
        assert_eq!(server.starts(WEIGHTS), [0; 0]);
        assert_eq!(std::fs::read_to_string(model_folder(&hub).join("refs/main")).unwrap(), commit);
    }
}

#[test]
fn a_cache_without_links_holds_the_files() {
    let (server, hub, _cache) = setup();
    let hub = Hub { symlinks: false, ..hub };
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(names_in(&folder), ["config.json", "generation_config.json", WEIGHTS, "tokenizer.json"]);
    assert!(folder.join(WEIGHTS).metadata().unwrap().is_file() && !folder.join(WEIGHTS).is_symlink());
    assert_eq!(names_in(&model_folder(&hub).join("blobs")), [""; 0]);

    server.take_log();
    assert_eq!(hub.snapshot(&id(), &mut ()).unwrap(), folder);
    assert_eq!(server.take_log().len(), 1);
    let offline = Hub { offline: true, ..hub };
    assert_eq!(offline.snapshot(&id(), &mut ()).unwrap(), folder);
}

/// Makes a folder in which not even root can create files.
#[cfg(target_os = "linux")]
fn make_unwritable(path: &Path) {
    std::fs::remove_dir_all(path).unwrap();
    std::os::unix::fs::symlink("/sys/kernel", path).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_complete_read_only_cache_is_used() {
    let (_server, hub, _cache) = setup();
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    make_unwritable(&model_folder(&hub).join("refs"));
    let mut record = Record::default();
    assert_eq!(hub.snapshot(&id(), &mut record).unwrap(), folder);
    assert!(record.notices.len() == 1 && record.notices[0].contains("offline, main"), "{:?}", record.notices);
}

#[cfg(target_os = "linux")]
#[test]
fn an_outdated_read_only_cache_is_used_with_a_notice() {
    let (server, hub, _cache) = setup();
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    make_unwritable(&hub.cache.join(".locks"));
    let mut record = Record::default();
    assert_eq!(hub.snapshot(&id(), &mut record).unwrap(), folder);
    assert_eq!(record.notices, [""; 0]);
    server.state().commit = Some("f".repeat(40));
    assert_eq!(hub.snapshot(&id(), &mut record).unwrap(), folder);
    assert!(record.notices.len() == 1 && record.notices[0].contains("using the copy in"), "{:?}", record.notices);
}

#[test]
fn a_second_process_waits_for_the_first() {
    let (server, hub, _cache) = setup();
    server.state().paused = true;
    let (told, notices) = mpsc::channel();
    let spawn = || {
        let (hub, told) = (hub.clone(), told.clone());
        std::thread::spawn(move || hub.snapshot(&id(), &mut Tell(told)))
    };
    let threads = [spawn(), spawn()];
    // The second process says that it waits, and continues when the first is done.
    let notice = notices.iter().find(|notice| notice.contains(WEIGHTS)).unwrap();
    assert!(notice.contains("waiting for another process"), "{notice}");
    server.state().paused = false;
    for thread in threads {
        let folder = thread.join().unwrap().unwrap();
        assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    }
    assert_eq!(server.starts(WEIGHTS), [0]);
}

/// Sends notices to a channel.
struct Tell(mpsc::Sender<String>);

impl Progress for Tell {
    fn start(&mut self, _file: &str, _total: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}

    fn notice(&mut self, text: &str) {
        self.0.send(text.to_owned()).unwrap();
    }
}

#[test]
fn a_lock_without_progress_is_bypassed() {
    let (server, hub, _cache) = setup();
    // The lock that huggingface_hub takes.
    let locks = hub.cache.join(".locks/models--mill--stone");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = std::fs::File::create(locks.join(format!("{}.lock", blob(WEIGHTS)))).unwrap();
    lock.lock().unwrap();
    leave_partial(&hub, b"theirs");

    let hub = Hub { lock_patience: Duration::from_millis(200), ..hub };
    let mut record = Record::default();
    let folder = hub.snapshot(&id(), &mut record).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    assert!(record.notices.len() == 2 && record.notices[1].contains("a second time"), "{:?}", record.notices);
    assert_eq!(server.starts(WEIGHTS), [0]);
    // The holder's partial file is untouched, and no other is left.
    assert_eq!(std::fs::read(partial(&hub)).unwrap(), b"theirs");
    let names = names_in(&model_folder(&hub).join("blobs"));
    assert_eq!(names.iter().filter(|name| name.contains("incomplete")).count(), 1, "{names:?}");

    // A lock file that is not locked does not count.
    drop(lock);
    std::fs::remove_dir_all(model_folder(&hub)).unwrap();
    let mut record = Record::default();
    hub.snapshot(&id(), &mut record).unwrap();
    assert_eq!(record.notices, [""; 0]);
}

#[test]
fn a_failed_download_leaves_no_private_file() {
    let (server, hub, _cache) = setup();
    let locks = hub.cache.join(".locks/models--mill--stone");
    std::fs::create_dir_all(&locks).unwrap();
    let lock = std::fs::File::create(locks.join(format!("{}.lock", blob(WEIGHTS)))).unwrap();
    lock.lock().unwrap();
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![100, 0, 0, 0]);
    let hub = Hub { lock_patience: Duration::ZERO, ..hub };
    assert_says(hub.snapshot(&id(), &mut ()), false, &["mill/stone/model.safetensors"]);
    let names = names_in(&model_folder(&hub).join("blobs"));
    assert!(names.iter().all(|name| !name.contains("incomplete")), "{names:?}");
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    let long = "x".repeat(300);
    for etag in ["../../../../out", "..", "a/b", "a\\b", "/tmp/out", "", "W/", ".hidden", "c:out", "\u{e4}", &long] {
        for name in [WEIGHTS, "config.json"] {
            let (server, hub, cache) = setup();
            let hub = Hub { cache: cache.path().join("1/2/3/4/5"), ..hub };
            server.state().etags.insert(name.to_owned(), format!("\"{etag}\""));
            assert_says(hub.snapshot(&id(), &mut ()), false, &[&format!("mill/stone/{name}"), "ETag"]);
            for folder in hub.cache.ancestors().skip(1).take_while(|folder| *folder != cache.path().parent().unwrap()) {
                assert!(!folder.join("out").exists(), "{}", folder.display());
            }
            assert!(!model_folder(&hub).join("refs").exists());
        }
    }
}

#[test]
fn weak_etags_name_the_same_blob() {
    let (server, hub, _cache) = setup();
    server.state().etags.insert("config.json".to_owned(), "W/\"abc-1\"".to_owned());
    hub.snapshot(&id(), &mut ()).unwrap();
    assert!(model_folder(&hub).join("blobs/abc-1").exists());
}

#[test]
fn configurations_of_quantized_weights_are_downloaded() {
    let (server, hub, _cache) = setup();
    let names = ["hf_quant_config.json", "quant_config.json", "quantize_config.json"];
    for name in names {
        server.state().files.insert(name.to_owned(), b"{}".to_vec());
    }
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert!(names.iter().all(|name| folder.join(name).exists()));
}

#[test]
fn listed_names_that_leave_the_snapshot_are_ignored() {
    let (server, hub, _cache) = setup();
    server.state().files.remove(WEIGHTS);
    let names = ["../x.safetensors", "..\\y.safetensors", "/z.safetensors", "../tokenizer.json", "a/b.safetensors"];
    for name in names {
        server.state().files.insert(name.to_owned(), b"{}".to_vec());
    }
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "no safetensors"]);
    server.state().files.insert("one.safetensors".to_owned(), b"one".to_vec());
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(names_in(&folder), ["config.json", "generation_config.json", "one.safetensors", "tokenizer.json"]);

    // The index's file names are outside input too.
    let (server, hub, _cache) = setup();
    server.state().files.remove(WEIGHTS);
    server.state().files.insert("a.safetensors".to_owned(), b"a".to_vec());
    for name in ["../a.safetensors", "..\\a.safetensors"] {
        let index = serde_json::json!({"weight_map": {"x": name}}).to_string();
        server.state().files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
        let error = hub.snapshot(&id(), &mut ()).unwrap_err().to_string();
        assert!(error.contains("a.safetensors") && error.contains("file"), "{error}");
        std::fs::remove_dir_all(model_folder(&hub)).unwrap();
    }
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
fn the_token_is_sent_and_a_missing_one_explained() {
    let (server, hub, _cache) = setup();
    server.state().token = Some("secret".to_owned());
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "401", "the door is closed", "HF_TOKEN"]);
    let hub = Hub { token: Some("secret".to_owned()), ..hub };
    server.take_log();
    hub.snapshot(&id(), &mut ()).unwrap();
    let log = server.take_log();
    assert!(log.iter().all(|request| request.headers["authorization"] == "Bearer secret"), "{log:?}");
}

#[test]
fn the_token_does_not_follow_to_another_host() {
    let (server, hub, _cache) = setup();
    server.state().token = Some("secret".to_owned());
    let port = hub.endpoint.rsplit_once(':').unwrap().1;
    let cdn = format!("localhost:{port}");
    server.state().cdn = Some(cdn.clone());
    server.state().cuts.insert(WEIGHTS.to_owned(), vec![100_000]);
    let hub = Hub { token: Some("secret".to_owned()), ..hub };
    let folder = hub.snapshot(&id(), &mut ()).unwrap();
    assert_eq!(std::fs::read(folder.join(WEIGHTS)).unwrap(), weights());
    let (elsewhere, here): (Vec<_>, Vec<_>) =
        server.take_log().into_iter().partition(|request| request.headers["host"] == cdn);
    assert!(elsewhere.len() >= 3 && !here.is_empty());
    assert!(elsewhere.iter().all(|request| !request.headers.contains_key("authorization")), "{elsewhere:?}");
    assert!(here.iter().all(|request| request.headers["authorization"] == "Bearer secret"), "{here:?}");
}

#[test]
fn an_endpoint_that_is_no_url_is_refused() {
    let (_server, hub, _cache) = setup();
    for endpoint in ["hub.example", "ftp://hub.example", "http://", ""] {
        let hub = Hub { endpoint: endpoint.to_owned(), ..hub.clone() };
        assert_says(hub.snapshot(&id(), &mut ()), false, &[ID, "URL"]);
    }
}

#[test]
fn a_token_that_cannot_be_sent_is_refused() {
    let (_server, hub, _cache) = setup();
    let hub = Hub { token: Some("two\nlines".to_owned()), ..hub };
    assert_says(hub.snapshot(&id(), &mut ()), false, &[ID, "HF_TOKEN"]);
}

#[test]
fn files_that_the_hub_lacks_are_named() {
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
    // A commit needs no ref.
    let commit = HubId { revision: COMMIT.to_owned(), ..id };
    offline.snapshot(&commit, &mut ()).unwrap();
    assert_says(offline.snapshot(&self::id(), &mut ()), true, &["offline"]);
}

#[test]
fn offline_uses_pythons_cache_without_requests() {
    let (server, mut hub, _cache) = setup();
    hub.offline = true;
    assert_says(hub.snapshot(&id(), &mut ()), true, &[ID, "offline", &hub.cache.display().to_string()]);

    // The layout that huggingface_hub leaves.
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
fn ids_are_distinguished_from_paths() {
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
    assert_eq!((hub.symlinks, hub.timeout), (true, Duration::from_secs(10)));
    assert_eq!(hub.token.as_deref(), Some("from-file"));
    let hub = read(&[("HF_HOME", base), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN", "own"), ("HF_HUB_OFFLINE", "0")]).unwrap();
    assert_eq!((hub.cache, hub.token.as_deref(), hub.offline), (PathBuf::from("/c"), Some("own"), false));
    let hub =
        read(&[("HF_HOME", base), ("HF_HUB_DISABLE_SYMLINKS", "true"), ("HF_HUB_DOWNLOAD_TIMEOUT", "30")]).unwrap();
    assert_eq!((hub.symlinks, hub.timeout), (false, Duration::from_secs(30)));
    std::fs::write(at("other"), "elsewhere").unwrap();
    let hub = read(&[("HF_HOME", base), ("HF_TOKEN_PATH", at("other").to_str().unwrap())]).unwrap();
    assert_eq!(hub.token.as_deref(), Some("elsewhere"));
    assert_says(read(&[]), false, &["HF_HOME"]);
}

#[test]
#[ignore = "other tests run it in a process of their own"]
fn in_another_process() {
    match resolve(ID, false, &mut ()) {
        Ok(folder) => println!("\nfolder {}", folder.display()),
        Err(error) => println!("\nerror {} {error}", error.is_input()),
    }
}

/// Runs [`in_another_process`] after the shell commands `setup`; returns its result line.
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
fn a_full_disk_is_reported_and_the_next_run_resumes() {
    let (server, hub, _cache) = setup();
    // A limit on file sizes stands for a full disk: 128 blocks of 512 or 1024 bytes.
    let said = child("trap '' XFSZ; ulimit -f 128", &hub, &[]);
    assert!(said.starts_with("error false") && said.contains("mill/stone/model.safetensors"), "{said}");
    assert!(said.contains("too large") && said.contains("run again"), "{said}");
    let kept = partial(&hub).metadata().unwrap().len() as usize;
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
fn a_full_disk_is_reported_in_the_systems_words() {
    let (_server, hub, _cache) = setup();
    let blobs = model_folder(&hub).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::os::unix::fs::symlink("/dev/full", partial(&hub)).unwrap();
    let said = hub.snapshot(&id(), &mut ());
    assert_says(said, false, &["mill/stone/model.safetensors", "No space left on device", "run again"]);
}

#[cfg(unix)]
#[test]
fn downloads_use_the_environment() {
    let (server, hub, _cache) = setup();
    server.state().token = Some("secret".to_owned());
    let said = child("", &hub, &[("HF_TOKEN", "secret")]);
    assert!(said.starts_with("folder "), "{said}");
    server.take_log();
    let said = child("", &hub, &[("HF_HUB_OFFLINE", "1")]);
    assert!(said.starts_with("folder "), "{said}");
    assert_eq!(server.take_log().len(), 0);
}
