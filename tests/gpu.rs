//! Tests `tests/gpu/run`, which checks kernels on a GPU, with a stand-in: programs with planted failures, hangs and
//! crashes.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Stands in for all test programs. Lists the tests in `<program>.tests`, each a name and a behaviour, and runs one by
/// its behaviour: pass, fail, hang, crash, once (breaks the device the first time), `variants A=… B=…` (the variants'
/// behaviours, in order).
const PROGRAM: &str = r#"#!/usr/bin/env bash
program=$(basename "$0")
behave() {
    case $1 in
        pass) ;;
        fail) echo "assertion failed: planted"; exit 101 ;;
        hang) exec sleep 1000 ;;
        crash) kill -SEGV $$; sleep 10 ;;
        break) touch "$STAND_IN/broken"; kill -ABRT $$; sleep 10 ;;
        wait) while [ ! -e "$STAND_IN/go" ]; do sleep 0.05; done ;;
    esac
}
if [[ " $* " == *" --list "* ]]; then
    skipped=$(grep -oE -- '--skip [^ ]+' <<<"$*" | cut -d ' ' -f 2 | paste -sd '|')
    [ ! -e "$STAND_IN/$program.tests" ] || cut -d ' ' -f 1 "$STAND_IN/$program.tests" | grep -vE "$skipped" | sed 's/$/: test/'
    exit 0
fi
echo "$program $*" >>"$STAND_IN/runs"
[ ! -e "$STAND_IN/broken" ] || exit 101
if [ "$program" = bench ]; then
    [ "$BURRSTONE_BENCH_KERNELS" != matmul ] || echo '{"record":"figure","kernel":"matmul","case":"4096x4096/16","min_us":10.0,"median_us":11.5,"max_us":12.0,"gb_s":3000,"gflop_s":48000,"floor_percent":81,"data":"cold"}' >>"$BURRSTONE_BENCH_RECORD"
    exit 0
fi
while [ $# -gt 1 ] && [ "$1" != --exact ]; do shift; done
behaviour=$(sed -n "s/^$2 //p" "$STAND_IN/$program.tests" 2>/dev/null)
case $behaviour in
    variants*)
        for variant in ${behaviour#variants}; do
            [[ ",$BURRSTONE_TEST_WITHOUT," != *",${variant%=*},"* ]] || continue
            echo "variant: ${variant%=*}" >&2
            behave "${variant#*=}"
        done
        ;;
    *) behave "$behaviour" ;;
esac
exit 0
"#;

const NVIDIA_SMI: &str = r#"#!/usr/bin/env bash
case $* in
    *query-gpu=name*) echo 'NVIDIA Stand-In 200' ;;
    *) echo 1 ;;
esac
"#;

/// A packed folder whose programs are stand-ins.
struct Packed {
    folder: tempfile::TempDir,
}

impl Packed {
    fn new(tests: &[(&str, &str)]) -> Self {
        let packed = Self { folder: tempfile::tempdir().unwrap() };
        let programs = packed.path("pack/programs");
        fs::create_dir_all(&programs).unwrap();
        for program in ["device", "primitives", "kernels", "golden", "burrstone", "bench"] {
            executable(&programs.join(program), PROGRAM);
        }
        fs::create_dir_all(programs.join("specs")).unwrap();
        fs::write(programs.join("specs/long.toml"), "# a longer specification than the other\n").unwrap();
        fs::write(programs.join("specs/short.toml"), "\n").unwrap();
        executable(&packed.path("bin/nvidia-smi"), NVIDIA_SMI);
        fs::create_dir_all(packed.path("stand-in")).unwrap();
        for (program, tests) in tests {
            fs::write(packed.path(&format!("stand-in/{program}.tests")), tests).unwrap();
        }
        let run = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu/run");
        fs::copy(run, packed.path("pack/run")).unwrap();
        let pack = "cd pack && tar -C programs -czf programs.tar.gz . && rm -r programs &&
                    { echo commit 0123abcd; echo arch 90a; sha256sum run programs.tar.gz; } >manifest";
        assert!(packed.command("bash").args(["-c", pack]).status().unwrap().success());
        packed
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.folder.path().join(inside)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        command.current_dir(self.folder.path()).env("PATH", path).env("STAND_IN", self.path("stand-in"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command("bash").arg("pack/run").args(arguments).output().unwrap()
    }

    /// The only record with this extension.
    fn record(&self, extension: &str) -> String {
        let folder = self.path("pack/results/tuning/nvidia-stand-in-200/records");
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let found: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        let found: Vec<_> = found.iter().filter(|file| file.extension().is_some_and(|e| e == extension)).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        fs::read_to_string(found[0]).unwrap()
    }

    /// A test's tries from the record: each one's result, the variant it failed in, and the variants left out.
    fn tries(&self, name: &str) -> Vec<[String; 3]> {
        let lines = self.record("jsonl");
        let values = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
        let text = |value: &serde_json::Value, field: &str| value[field].as_str().unwrap().to_owned();
        let tests = values.filter(|value| value["record"] == "test" && value["name"] == name);
        tests.map(|value| ["result", "variant", "without"].map(|field| text(&value, field))).collect()
    }

    /// The number of program starts so far.
    fn runs(&self) -> usize {
        fs::read_to_string(self.path("stand-in/runs")).unwrap_or_default().lines().count()
    }
}

fn executable(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn the_other_tests_run_after_a_hang_a_crash_or_a_wrong_result() {
    let packed = Packed::new(&[
        ("device", "memory pass\n"),
        (
            "primitives",
            "mma::shapes pass\nwgmma::layouts hang\nfault::planted fail\nwarp::late_on_the_simulator fail\n",
        ),
        (
            "kernels",
            "long::on_the_device::shapes pass\nlong::on_the_device::wrong fail\nshort::on_the_device::crash crash\n\
             short::on_the_device::some variants a=pass b=hang c=pass d=fail e=pass\n",
        ),
        ("golden", "models::devices_agree pass\n"),
    ]);
    let output = packed.run(&["--limit", "1", "probes", "kernels", "golden", "generate", "measure"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let once = |name: &str, result: &str| {
        assert_eq!(packed.tries(name), [[result.to_owned(), String::new(), String::new()]], "{name}");
    };
    once("mma::shapes", "passed");
    once("wgmma::layouts", "timed out");
    once("long::on_the_device::wrong", "failed");
    once("long::on_the_device::shapes", "passed");
    once("short::on_the_device::crash", "crashed");
    once("models::devices_agree", "passed");
    once("latency", "passed");
    // A failing test is tried again without the failing variant, so that the others are tested.
    let tries = [["timed out", "b", ""], ["failed", "d", "b"], ["passed", "", "b,d"]];
    assert_eq!(packed.tries("short::on_the_device::some"), tries.map(|fields| fields.map(str::to_owned)));
    assert!(packed.tries("fault::planted").is_empty() && packed.tries("warp::late_on_the_simulator").is_empty());

    let summary = packed.record("md");
    for line in [
        "| probes | 3 | 2 | 1 | 0 |",
        "| kernels | 4 | 1 | 3 | 0 |",
        "| golden | 1 | 1 | 0 | 0 |",
        "| primitives wgmma::layouts | timed out |  | logs/probes-primitives-wgmma--layouts-1.txt |",
        "| kernels short::on_the_device::some | failed | d |",
        "| matmul/4096x4096/16 | 10.0 | 11.5 | 12.0 | 3000 | 48000 | 81 % | cold |",
        "- device: NVIDIA Stand-In 200",
        "- commit: 0123abcd",
    ] {
        assert!(summary.contains(line), "no {line:?} in\n{summary}");
    }
    // Families with short specifications come first.
    let record = packed.record("jsonl");
    let at = |name: &str| record.find(name).unwrap_or_else(|| panic!("no {name}"));
    assert!(at("short::on_the_device::crash") < at("long::on_the_device::shapes"));
    assert!(at("long::on_the_device::wrong") < at("models::devices_agree"));

    // A further call has nothing to do, unless `--again` asks for the failed tests.
    let runs = packed.runs();
    let output = packed.run(&["--limit", "1", "probes", "kernels", "golden", "generate", "measure"]);
    assert_eq!((output.status.code(), packed.runs()), (Some(1), runs), "{}", said(&output));
    fs::write(packed.path("stand-in/primitives.tests"), "mma::shapes pass\nwgmma::layouts pass\n").unwrap();
    let output = packed.run(&["--again", "probes"]);
    assert_eq!((output.status.code(), packed.runs()), (Some(0), runs + 1), "{}", said(&output));
    assert!(packed.record("md").contains("| probes | 3 | 3 | 0 | 0 |"));
    let mended = "long::on_the_device::shapes pass\nlong::on_the_device::wrong pass\nshort::on_the_device::crash pass\n\
                  short::on_the_device::some variants a=pass b=pass\n";
    fs::write(packed.path("stand-in/kernels.tests"), mended).unwrap();
    let output = packed.run(&["--again", "kernels"]);
    // All but the one that had passed.
    assert_eq!((output.status.code(), packed.runs()), (Some(0), runs + 4), "{}", said(&output));
}

#[test]
fn an_interrupted_test_is_run_again_after_the_others() {
    let packed = Packed::new(&[("primitives", "a::first pass\nb::long wait\nc::last pass\n")]);
    let mut run = packed.command("bash").args(["pack/run", "probes"]).spawn().unwrap();
    while packed.runs() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(run.try_wait().unwrap().is_none(), "the run ended before the signal");
    }
    // SIGTERM, as an outside time limit sends it.
    assert!(Command::new("kill").arg(run.id().to_string()).status().unwrap().success());
    assert_eq!(run.wait().unwrap().code(), Some(143));
    assert!(packed.tries("b::long").is_empty());
    fs::write(packed.path("stand-in/go"), "").unwrap();
    let output = packed.run(&["probes"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let runs = fs::read_to_string(packed.path("stand-in/runs")).unwrap();
    let names: Vec<_> = runs.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(names, ["a::first", "b::long", "c::last", "b::long"]);
}

#[test]
fn a_broken_device_ends_the_run() {
    let packed = Packed::new(&[("primitives", "a::first pass\nb::breaks break\nc::last pass\n")]);
    let output = packed.run(&["probes"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(packed.record("md").contains("| probes | 3 | 1 | 1 | 1 |"), "{}", packed.record("md"));
    // When the device works again, the remaining tests run.
    fs::remove_file(packed.path("stand-in/broken")).unwrap();
    let output = packed.run(&["probes"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(packed.record("md").contains("| probes | 3 | 2 | 1 | 0 |"), "{}", packed.record("md"));
}

#[test]
fn wrong_usage_and_changed_files_are_refused() {
    let packed = Packed::new(&[("primitives", "a::first pass\n")]);
    for arguments in [&["--minutes"][..], &["--minutes", "soon"], &["--limit", "0"], &["everything"]] {
        let output = packed.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
        assert!(said(&output).starts_with("run: "), "{}", said(&output));
    }
    let output = packed.run(&["--plan", "probes"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "probes 30 primitives a::first\n");
    assert!(!packed.path("pack/results").exists(), "a plan writes nothing");
    fs::remove_file(packed.path("bin/nvidia-smi")).unwrap();
    executable(&packed.path("bin/nvidia-smi"), "#!/bin/sh\nexit 9\n");
    assert_eq!(packed.run(&[]).status.code(), Some(3), "no GPU");
    fs::write(packed.path("pack/programs.tar.gz"), "").unwrap();
    let output = packed.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("the files are not those of its manifest"), "{}", said(&output));
}
