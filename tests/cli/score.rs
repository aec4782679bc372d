use crate::support::{Checkpoint, comma, ids, run, tokenizer, with_input};

const TEXT: &str = "In the beginning God created the heaven and the earth.";

#[test]
fn json_is_aligned_with_the_tokens() {
    let report = run(&["score", "--text", TEXT, "--json"]).json();
    let keys: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["token_ids", "logprobs", "perplexity"]);
    let tokens = ids(&report["token_ids"]);
    assert_eq!(tokens, tokenizer().encode(TEXT, true).unwrap());
    let logprobs = report["logprobs"].as_array().unwrap();
    assert!(logprobs[0].is_null());
    let predicted: Vec<f64> = logprobs[1..].iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(predicted.len(), tokens.len() - 1);
    let perplexity = (-predicted.iter().sum::<f64>() / predicted.len() as f64).exp();
    assert!((report["perplexity"].as_f64().unwrap() / perplexity - 1.0).abs() < 1e-5);
    // The model was trained on this book; random text would have a perplexity near the vocabulary's size, 2048.
    assert!(perplexity < 100.0, "{perplexity}");
}

#[test]
fn texts_come_from_arguments_files_and_pipes() {
    let expected = run(&["score", "--text", TEXT, "--json"]).json();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text");
    std::fs::write(&file, TEXT).unwrap();
    assert_eq!(run(&["score", "--text-file", file.to_str().unwrap(), "--json"]).json(), expected);
    assert_eq!(with_input(&["score", "--text-file", "-", "--json"], TEXT).json(), expected);
    let list = comma(&ids(&expected["token_ids"]));
    assert_eq!(run(&["score", "--token-ids", &list, "--json"]).json(), expected);
    assert_eq!(run(&["score", "--token-ids", &list, "--json", "--threads", "3"]).json(), expected);
}

/// `generate` and `score` report the same log-probabilities of the same tokens.
#[test]
fn generate_and_score_agree() {
    let prompt = tokenizer().encode("And the LORD said", true).unwrap();
    let args =
        ["generate", "And the LORD said", "--json", "--temperature", "0", "--max-tokens", "20", "--dtype", "f32"];
    let generated = run(&args).json();
    let all = [prompt.clone(), ids(&generated["token_ids"])].concat();
    let scored = run(&["score", "--token-ids", &comma(&all), "--json", "--dtype", "f32"]).json();
    for (i, logprob) in generated["logprobs"].as_array().unwrap().iter().enumerate() {
        let (a, b) = (logprob.as_f64().unwrap(), scored["logprobs"][prompt.len() + i].as_f64().unwrap());
        assert!((a - b).abs() < 1e-4, "token {i}: {a} and {b}");
    }
}

#[test]
fn the_default_output_is_a_table() {
    let table = run(&["score", "--text", TEXT]).ok();
    let rows = tokenizer().encode(TEXT, true).unwrap().len();
    assert!(table.contains("\" heaven\"") && table.contains("perplexity"), "{table}");
    assert_eq!(table.lines().count(), rows + 3);

    let model = Checkpoint::golden("llama-gqa");
    let table = run(&["score", "--model", model.path(), "--token-ids", "1,2,3"]).ok();
    assert!(table.contains("over 2 predicted tokens"), "{table}");
}

#[test]
fn a_single_token_has_no_perplexity() {
    let report = run(&["score", "--token-ids", "5", "--json"]).json();
    assert_eq!(report, serde_json::json!({"token_ids": [5], "logprobs": [null], "perplexity": null}));
}

#[test]
fn one_text_exactly() {
    assert!(run(&["score"]).error(2).contains("--text"));
    run(&["score", "--text", "a", "--token-ids", "1"]).error(2);
    assert!(run(&["score", "--text", ""]).error(2).starts_with("text: expected"));
}
