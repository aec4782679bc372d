//! The text of generations: what is shown when, and what ends it.

use std::path::Path;

use burrstone::{Constraint, Engine, Error, FinishReason, Request};
use serde_json::{Value, json};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The built-in model with another tokenizer and more files.
fn folder(tokenizer: Option<&str>, files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(ROOT).join("src/builtin").join(file), folder.path().join(file)).unwrap();
    }
    if let Some(tokenizer) = tokenizer {
        let file = format!("{ROOT}/tests/golden/tokenizers/{tokenizer}.json");
        std::fs::copy(file, folder.path().join("tokenizer.json")).unwrap();
    }
    for (name, contents) in files {
        std::fs::write(folder.path().join(name), contents.to_string()).unwrap();
    }
    folder
}

fn build(folder: &TempDir) -> Result<Engine, Error> {
    Engine::builder(folder.path().to_str().unwrap()).threads(1).build()
}

fn engine(tokenizer: &str, files: &[(&str, Value)]) -> Engine {
    build(&folder(Some(tokenizer), files)).unwrap()
}

fn id(engine: &Engine, token: &str) -> u32 {
    engine.tokenizer().unwrap().token_to_id(token).unwrap_or_else(|| panic!("no token {token}"))
}

/// A request that generates `script`, unless it ends before.
fn scripted(request: Request, script: Vec<u32>) -> Request {
    request.max_tokens(script.len()).logits_processor(move |context, logits| {
        logits.fill(f32::NEG_INFINITY);
        logits[script[context.tokens.len() - context.prompt_len] as usize] = 0.0;
        Ok(())
    })
}

/// The text of each token, and the finish reason.
fn pieces(engine: &Engine, request: Request) -> (Vec<String>, FinishReason) {
    let mut generation = engine.generate(request).unwrap();
    let pieces = generation.by_ref().map(|token| token.unwrap().text).collect();
    (pieces, generation.finish_reason().unwrap())
}

fn refused<T>(result: Result<T, Error>) -> String {
    let error = result.err().expect("the request is refused");
    assert!(error.is_input(), "{error}");
    error.to_string()
}

#[test]
fn bytes_are_shown_and_matched_as_soon_as_they_are_characters() {
    for tokenizer in ["sentencepiece", "gemma"] {
        let engine = engine(tokenizer, &[]);
        let byte = |byte: u8| id(&engine, &format!("<0x{byte:02X}>"));
        let emoji: Vec<u32> = "😀".bytes().map(byte).collect();
        let script = [&emoji[..], &emoji, &emoji[..2]].concat();
        let (text, finish) = pieces(&engine, scripted(Request::tokens(vec![1, 300]), script));
        assert_eq!(text, ["", "", "", "😀", "", "", "", "😀", "", "\u{fffd}\u{fffd}"], "{tokenizer}");
        assert_eq!(finish, FinishReason::Length);

        let request = scripted(Request::tokens(vec![1, 300]), vec![byte(b'\n'); 200]);
        let (text, finish) = pieces(&engine, request.clone().stop("\n\n"));
        assert_eq!((text.concat().as_str(), text.len(), finish), ("", 2, FinishReason::Stop), "{tokenizer}");
        assert_eq!(pieces(&engine, request.stop("x")).0, vec!["\n"; 200]);

        // A stray byte and an unfinished character, each followed by a token.
        let script = vec![byte(0xFF), emoji[0], emoji[1], id(&engine, "e"), emoji[0]];
        let (text, _) = pieces(&engine, scripted(Request::tokens(vec![1, 300]), script));
        assert_eq!(text, ["\u{fffd}", "", "", "\u{fffd}\u{fffd}e", "\u{fffd}"], "{tokenizer}");
    }
}

#[test]
fn a_continuation_keeps_its_leading_space() {
    for tokenizer in ["sentencepiece", "metaspace", "gemma", "unigram", "byte-level"] {
        let engine = engine(tokenizer, &[]);
        let tokenizer = engine.tokenizer().unwrap();
        let whole = tokenizer.encode("The stone", false).unwrap();
        let prompt = tokenizer.encode("The", false).unwrap();
        assert_eq!(whole[..prompt.len()], prompt);
        let rest = whole[prompt.len()..].to_vec();
        let request = scripted(Request::tokens(prompt.clone()), rest.clone());
        assert_eq!(pieces(&engine, request.clone()).0.concat(), " stone", "{tokenizer:?}");
        assert_eq!(pieces(&engine, request.stop(" st")).0.concat(), "", "{tokenizer:?}");
        // After a prompt without text the decoder strips the leading space, as in transformers.
        let begun = tokenizer.decode(&rest, true).unwrap();
        let request = scripted(Request::tokens(vec![1]), rest);
        assert_eq!(pieces(&engine, request).0.concat(), begun, "{tokenizer:?}");

        for prompt in [prompt, vec![1]] {
            let constraint = Constraint::Regex(" (on|in)".to_owned());
            let request = Request::tokens(prompt).max_tokens(8).temperature(0.0).constraint(constraint);
            let (text, finish) = pieces(&engine, request);
            assert!([" on", " in"].contains(&text.concat().as_str()), "{tokenizer:?}: {text:?}");
            assert_eq!(finish, FinishReason::Stop);
        }
    }
}

#[test]
fn a_character_begun_in_the_prompt_is_completed() {
    let engine = engine("sentencepiece", &[]);
    let bytes: Vec<u32> = "é".bytes().map(|byte| id(&engine, &format!("<0x{byte:02X}>"))).collect();
    let after = |last: &[u32]| {
        let script = [last, &[id(&engine, "e")]].concat();
        pieces(&engine, scripted(Request::tokens(vec![1, 300, bytes[0]]), script)).0.concat()
    };
    assert_eq!(after(&bytes[1..]), "ée");
    // A broken character of the prompt does not show in the continuation.
    assert_eq!(after(&[]), "e");
}

#[test]
fn stop_texts_match_the_special_tokens_that_they_spell() {
    let engine = engine("byte-level", &[]);
    let (end, e) = (id(&engine, "<|end|>"), id(&engine, "e"));
    let request = || scripted(Request::tokens(vec![1, 300]), vec![e, e, end, e, e]);
    let ended = |request: Request| {
        let (text, finish) = pieces(&engine, request);
        (text.len(), text.concat(), finish)
    };
    assert_eq!(ended(request()), (5, "eeee".to_owned(), FinishReason::Length));
    assert_eq!(ended(request().stop("<|end|>")), (3, "ee".to_owned(), FinishReason::Stop));
    assert_eq!(ended(request().stop("e<|end|>e")), (4, "e".to_owned(), FinishReason::Stop));
    assert_eq!(ended(request().stop("e<|end|>x")), (5, "eeee".to_owned(), FinishReason::Length));
    // The name of a special token is not text, and text continues across it.
    assert_eq!(ended(request().stop("|end|")), (5, "eeee".to_owned(), FinishReason::Length));
    assert_eq!(ended(request().stop("eee")), (4, String::new(), FinishReason::Stop));
}

#[test]
fn stop_tokens_end_the_text_before_them() {
    let engine = engine("byte-level", &[]);
    let [e, a, n] = ["e", "a", "n"].map(|token| id(&engine, token));
    let request = || scripted(Request::tokens(vec![1, 300]), vec![e, a, n, e]);
    for request in [request().stop_token(n), request().stop_token(n).stop_token(7).ignore_eos(true)] {
        let (text, finish) = pieces(&engine, request);
        assert_eq!((text.concat().as_str(), text.len(), finish), ("ea", 3, FinishReason::Stop));
    }
    let wrong = refused(engine.generate(request().stop_token(2048)));
    assert_eq!(wrong, "stop_token_ids: expected token ids below 2048, the vocabulary's size, found 2048");
    // The stop token does not come before `min_tokens`.
    let free: Vec<u32> = engine
        .generate(Request::tokens(vec![1, 300]).temperature(0.0).max_tokens(8))
        .unwrap()
        .map(|token| token.unwrap().id)
        .collect();
    let request = Request::tokens(vec![1, 300]).temperature(0.0).max_tokens(8).stop_token(free[2]).min_tokens(5);
    let held: Vec<u32> = engine.generate(request).unwrap().map(|token| token.unwrap().id).collect();
    assert!(held.len() >= 5 && !held[..5].contains(&free[2]), "{held:?}");
}

#[test]
fn the_generation_config_gives_the_defaults_of_lengths_and_ends() {
    let prompt = || Request::tokens(vec![1, 300]).temperature(0.0);
    let tokens = |engine: &Engine, request: Request| -> Vec<u32> {
        engine.generate(request).unwrap().map(|token| token.unwrap().id).collect()
    };
    let with = |config: Value| engine("byte-level", &[("generation_config.json", config)]);
    let free = tokens(&with(json!({"max_new_tokens": 8})), prompt());
    assert_eq!(free.len(), 8);
    assert_eq!(tokens(&with(json!({"max_length": 7})), prompt()), free[..5]);
    assert_eq!(tokens(&with(json!({"max_length": 7, "max_new_tokens": 6})), prompt()), free[..6]);
    let short = with(json!({"max_length": 2}));
    assert!(refused(short.generate(prompt())).contains("max_length of generation_config.json"));
    assert_eq!(tokens(&short, prompt().max_tokens(3)), free[..3]);

    // The first token is an end token, but not before the minimum length.
    let first = json!([free[0]]);
    let least = |config: Value, request: Request| {
        let found = tokens(&with(config), request.max_tokens(12));
        assert!(found[..found.len() - 1].iter().all(|token| *token != free[0]), "{found:?}");
        found.len()
    };
    assert_eq!(least(json!({"eos_token_id": first}), prompt()), 1);
    assert!(least(json!({"eos_token_id": first, "min_new_tokens": 4}), prompt()) > 4);
    assert!(least(json!({"eos_token_id": first, "min_length": 6}), prompt()) > 4);
    assert_eq!(least(json!({"eos_token_id": first, "min_length": 60}), prompt()), 12);
    assert_eq!(least(json!({"eos_token_id": first, "min_new_tokens": 4}), prompt().min_tokens(0)), 1);

    let suppressed = tokens(&with(json!({"suppress_tokens": [free[1], 999_999]})), prompt().max_tokens(8));
    assert!(suppressed[0] == free[0] && !suppressed.contains(&free[1]), "{suppressed:?}");
    let bad = tokens(&with(json!({"bad_words_ids": [[free[1]]]})), prompt().max_tokens(8));
    assert_eq!(bad, suppressed);
    // After the first token the second may not come, after the last token of the prompt the first may not.
    let pairs = with(json!({"bad_words_ids": [[free[0], free[1]]]}));
    let paired = tokens(&pairs, prompt().max_tokens(8));
    assert!(paired[0] == free[0] && paired[1] == suppressed[1], "{paired:?}");
    let biased = tokens(&with(json!({"sequence_bias": [[[300, free[0]], -1000.0]]})), prompt().max_tokens(8));
    assert_ne!(biased[0], free[0]);
    let own = prompt().max_tokens(8).logit_bias(free[1], 0.0);
    assert_eq!(tokens(&with(json!({"suppress_tokens": free[1]})), own), free);
    let not_first = tokens(&with(json!({"begin_suppress_tokens": [free[0]]})), prompt().max_tokens(8));
    assert_ne!(not_first[0], free[0]);

    let stopping = with(json!({"stop_strings": ["an", "e"]}));
    let [e, a, n] = ["e", "a", "n"].map(|token| id(&stopping, token));
    let request = || scripted(prompt(), vec![a, a, n, e]);
    assert_eq!(pieces(&stopping, request()), (vec!["".to_owned(), "a".to_owned(), String::new()], FinishReason::Stop));
    assert_eq!(pieces(&stopping, request().stop("x")).1, FinishReason::Length);
    let mute = folder(None, &[("generation_config.json", json!({"stop_strings": "x"}))]);
    assert!(refused(build(&mute)).contains("generation_config.json: stop_strings: expected null"));
}

#[test]
fn tokens_of_the_files_around_the_tokenizer_are_read_or_refused() {
    let token = |special: bool| json!({"content": "<tool>", "special": special, "normalized": false});
    let config = |id: u32, special: bool| {
        ("tokenizer_config.json", json!({"added_tokens_decoder": {id.to_string(): token(special)}}))
    };
    for (special, expected) in [(false, "e<tool>e"), (true, "ee")] {
        let engine = engine("byte-level", &[config(480, special)]);
        let e = id(&engine, "e");
        assert_eq!(engine.tokenizer().unwrap().encode("e<tool>e", false).unwrap(), [e, 480, e]);
        let (text, _) = pieces(&engine, scripted(Request::tokens(vec![1, 300]), vec![e, 480, e]));
        assert_eq!(text.concat(), expected);
    }
    for (file, field) in [
        (
            config(481, false),
            "token \"<tool>\": expected an id that follows from tokenizer.json, which is 480, found 481",
        ),
        (("added_tokens.json", json!({"<s>": 9})), "token \"<s>\""),
        (("added_tokens.json", json!({"<tool>": -1})), "token \"<tool>\": expected a token id"),
        (("added_tokens.json", json!([])), "contents: expected a JSON object"),
        (("tokenizer_config.json", json!({"added_tokens_decoder": {"x": token(false)}})), "added_tokens_decoder"),
        (("tokenizer_config.json", json!({"added_tokens_decoder": {"480": "<tool>"}})), "added_tokens_decoder"),
        (
            ("tokenizer_config.json", json!({"added_tokens_decoder": {"480": {"special": true}}})),
            "added_tokens_decoder.480.content",
        ),
        (("tokenizer_config.json", json!({"eos_token": 2})), "eos_token: expected a token, found a number"),
        (("special_tokens_map.json", json!({"additional_special_tokens": [1]})), "additional_special_tokens"),
    ] {
        let name = file.0;
        let line = refused(build(&folder(Some("byte-level"), &[file])));
        assert!(line.contains(name) && line.contains(field), "{line}");
    }
}
