//! Input and output files of `batch`: foreign files stay untouched, finished answers are never lost.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::batch::{Files, completion};
use crate::support::{command, run, with_input};

fn request(id: &str) -> Value {
    completion(id, json!({"prompt": "And", "max_tokens": 2, "temperature": 0}))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn batch(input: &Path, output: &Path) -> crate::support::Ran {
    run(&["batch", "--input", text(input), "--output", text(output), "--quiet"])
}

/// A file that is not an output of `batch` is refused unchanged, before a model is loaded.
#[test]
fn files_of_others_are_not_changed() {
    let files = Files::new(&[request("a"), request("b")]);
    files.run(&[]).ok();
    let whole = fs::read_to_string(files.output()).unwrap();
    let first = whole.lines().next().unwrap();
    let other = |from: &str, to: &str| whole.replacen(from, to, 1);
    for content in [
        "my only notes".to_owned(),
        "my only notes\n".to_owned(),
        "\n".to_owned(),
        "[1, 2]\n".to_owned(),
        format!("{whole}my notes"),
        format!("{whole}\n"),
        format!("{whole}{first}\n"),
        // All requests are answered, so the rest cannot be the start of an answer.
        format!("{whole}{}", &first[..40]),
        format!("{first}\n{{\"custom_id\":\"b\",\"note\":1"),
        other("\"error\":null", "\"error\":null,\"mine\":1"),
        other("batch_req_", "batch_"),
        other("\"request_id\":\"", "\"request_id\":\"x"),
        other("\"custom_id\":\"", "\"custom_id\":\"x"),
    ] {
        fs::write(files.output(), &content).unwrap();
        let ran = files.run(&["--model", "./no/such/model"]);
        assert!(ran.error(2).starts_with(text(&files.output())), "{ran:?}");
        assert_eq!(fs::read_to_string(files.output()).unwrap(), content);
    }
    // A truncated answer may be replaced, but not before the model has loaded.
    let cut = &whole[..whole.len() - 30];
    fs::write(files.output(), cut).unwrap();
    assert!(files.run(&["--model", "./no/such/model"]).error(2).contains("no/such/model"));
    assert_eq!(fs::read_to_string(files.output()).unwrap(), cut);
    files.run(&[]).ok();
    assert_eq!(files.answers().len(), 2);
    assert!(fs::read_to_string(files.output()).unwrap().starts_with(&format!("{first}\n")));
    // A new file is created only after the model has loaded.
    fs::remove_file(files.output()).unwrap();
    files.run(&["--model", "./no/such/model"]).error(2);
    assert!(!files.output().exists());
}

/// The input under the same name, another path, a symbolic or hard link, or a redirection.
#[test]
fn the_input_is_never_the_output() {
    let files = Files::new(&[request("a")]);
    let (folder, input) = (files.0.path(), files.input());
    symlink(&input, folder.join("symbolic")).unwrap();
    fs::hard_link(&input, folder.join("hard")).unwrap();
    fs::create_dir(folder.join("sub")).unwrap();
    let before = fs::read(&input).unwrap();
    for name in ["in.jsonl", "symbolic", "hard", "sub/../in.jsonl"] {
        let ran = batch(&input, &folder.join(name));
        assert!(ran.error(2).contains("the input itself"), "{name}: {ran:?}");
    }
    let appended = File::options().append(true).open(&input).unwrap();
    let ran = command(&["batch", "--input", text(&input), "--output", "-", "-q"]).stdout(appended).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    let ran = command(&["batch", "--input", "-", "--output", text(&input), "-q"])
        .stdin(File::open(&input).unwrap())
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert_eq!(fs::read(&input).unwrap(), before);
    // The same with an empty input.
    fs::write(&input, "").unwrap();
    batch(&input, &folder.join("hard")).error(2);
}

#[test]
fn two_runs_cannot_write_one_output() {
    let many: Vec<Value> = (0..20).map(|i| request(&format!("r{i}"))).collect();
    let files = Files::new(&many);
    let (input, output) = (files.input(), files.output());
    let other = File::create(&output).unwrap();
    other.lock().unwrap();
    let ran = files.run(&["--model", "/nowhere"]);
    assert!(ran.error(2).starts_with(text(&output)) && ran.err.contains("another run"), "{ran:?}");
    drop(other);
    fs::remove_file(&output).unwrap();
    // Neither run finds an output when it starts.
    let args = files.args(text(&input), text(&output));
    let [mut first, mut second] = [(); 2].map(|()| command(&args).spawn().unwrap());
    let codes = [first.wait().unwrap().code(), second.wait().unwrap().code()];
    assert!(codes.contains(&Some(0)) && codes.iter().all(|code| [Some(0), Some(2)].contains(code)), "{codes:?}");
    assert_eq!(files.answers().len(), 20);
    files.run(&["--model", "/nowhere"]).ok();
}

#[test]
fn folders_devices_and_missing_folders_are_refused_by_name() {
    let files = Files::new(&[request("a")]);
    let (folder, input) = (files.0.path(), files.input());
    let refused = |input: &Path, output: &Path, parts: &[&str]| {
        let ran = batch(input, output);
        let message = ran.error(2);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    refused(&input, folder, &[text(folder), "a folder"]);
    refused(&input, &folder.join("none/out.jsonl"), &["none/out.jsonl", "none"]);
    refused(&input, &input.join("out.jsonl"), &["in.jsonl/out.jsonl"]);
    refused(folder, &files.output(), &[text(folder), "a folder"]);
    refused(&folder.join("none"), &files.output(), &["none", "no such file"]);
    refused(Path::new("/dev/zero"), &files.output(), &["/dev/zero", "a device"]);
    fs::write(files.output(), "").unwrap();
    let mut permissions = fs::metadata(files.output()).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(files.output(), permissions).unwrap();
    refused(&input, &files.output(), &["out.jsonl", "read-only"]);
    // Devices may be the output.
    batch(&input, Path::new("/dev/null")).ok();
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn requests_and_answers_go_through_pipes() {
    let files = Files::new(&[request("a"), request("b")]);
    let folder = files.0.path();
    let lines = fs::read_to_string(files.input()).unwrap();
    let answers = |text: &str| text.lines().filter(|line| line.contains("\"status_code\":200")).count();
    // Standard streams.
    let ran = with_input(&["batch", "--input", "-", "--output", "-", "--quiet"], &lines);
    assert_eq!(answers(&ran.ok()), 2);
    // Named pipes.
    let (into, from) = (folder.join("into"), folder.join("from"));
    fifo(&into);
    fifo(&from);
    let mut child = command(&["batch", "--input", text(&into), "--output", text(&from), "--quiet"]).spawn().unwrap();
    File::options().write(true).open(&into).unwrap().write_all(lines.as_bytes()).unwrap();
    let mut text = String::new();
    File::open(&from).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((answers(&text), child.wait().unwrap().success()), (2, true));
}

/// If the output's reader closes the pipe, the run ends silently, as with other commands.
#[test]
fn a_closed_pipe_ends_the_run() {
    let files = Files::new(&(0..20).map(|i| request(&format!("r{i}"))).collect::<Vec<_>>());
    let mut child = command(&["batch", "--input", text(&files.input()), "--output", "-", "-q"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = child.wait_with_output().unwrap();
    assert_eq!((ran.status.code(), ran.stderr), (Some(0), Vec::new()));
}

/// A bad line is answered with an error that has its number; the other lines are answered.
#[test]
fn lines_that_are_not_requests_do_not_stop_the_others() {
    let good = request("a").to_string();
    let mut bytes = format!("\u{feff}{good}\r\n\n \t\r\n").into_bytes();
    bytes.extend_from_slice(b"{\"custom_id\":\"Gr\xfc\xdfe\"}\n");
    bytes.extend_from_slice(b"{\"url\":\"/v1/completions\"}\n{\"custom_id\n");
    bytes.extend_from_slice(format!("{good}\n{}", request("b")).as_bytes());
    let files = Files::new(&[]);
    fs::write(files.input(), bytes).unwrap();
    for _ in 0..2 {
        let ran = files.run(&[]);
        let errors: Vec<&str> = ran.err.lines().collect();
        assert_eq!((ran.code, errors.len()), (Some(2), 4), "{ran:?}");
        for (error, part) in errors.iter().zip([
            "line 4: expected UTF-8 text, found byte 0xfc at column 17",
            "line 5: expected a request",
            "line 6: expected a request",
            "line 7: expected a custom_id of its own, found \"a\", as in line 1",
        ]) {
            assert!(error.starts_with("error: ") && error.contains(part), "{error}");
        }
        assert_eq!(files.answers().len(), 2);
    }
    fs::write(files.input(), "not a request\n".repeat(100)).unwrap();
    fs::remove_file(files.output()).unwrap();
    let ran = files.run(&["--model", "/nowhere"]);
    assert_eq!((ran.code, ran.err.lines().count()), (Some(2), 11), "{ran:?}");
    assert!(ran.err.contains("90 more lines"), "{ran:?}");
    let method = Files::new(&[json!({"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}})]);
    assert!(method.run(&[]).error(2).contains("GET"));
}
