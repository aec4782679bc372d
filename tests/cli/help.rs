use crate::support::run;

#[test]
fn every_command_explains_itself_with_examples() {
    let commands: [&[&str]; 12] = [
        &[],
        &["generate"],
        &["score"],
        &["chat"],
        &["inspect"],
        &["batch"],
        &["bench"],
        &["bench", "latency"],
        &["bench", "throughput"],
        &["simulate"],
        &["simulate", "kernels"],
        &["completions"],
    ];
    for command in commands {
        let help = run(&[command, &["--help"]].concat()).ok();
        let example = format!("  burrstone {}", command.join(" "));
        let examples = help.split_once("Examples:").unwrap_or_else(|| panic!("{command:?}: {help}")).1;
        assert!(examples.contains(example.trim_end()), "{command:?}: {help}");
        // Every command in the help is tested here.
        for listed in ["generate", "score", "chat", "inspect", "batch", "bench", "simulate", "completions"] {
            assert!(!command.is_empty() || help.contains(listed));
        }
    }
}

#[test]
fn the_version_is_the_crates() {
    assert_eq!(run(&["--version"]).ok(), concat!("burrstone ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).ok();
        assert!(script.contains("generate") && script.contains("repetition-penalty"), "{shell}");
    }
}
