//! generation_config.json: end tokens and sampling defaults.

use burrstone::Error;
use burrstone::model::GenerationConfig;
use serde_json::{Value, json};

use super::support::{Folder, assert_says, config};

/// What a checkpoint says with this generation_config.json, or none, and these end tokens in config.json.
fn read(generation: Option<Value>, eos: Value) -> Result<GenerationConfig, Error> {
    let folder = Folder::whole();
    let mut config = config();
    config["eos_token_id"] = eos;
    config["bos_token_id"] = json!(1);
    folder.json("config.json", &config);
    if let Some(generation) = generation {
        folder.json("generation_config.json", &generation);
    }
    folder.open().map(|checkpoint| checkpoint.generation_config().clone())
}

#[test]
fn end_tokens_are_those_of_both_files() {
    let eos = |generation: Option<Value>, eos| read(generation, eos).unwrap().eos;
    assert_eq!(eos(None, json!(2)), [2]);
    assert_eq!(eos(None, json!([7, 2])), [2, 7]);
    assert_eq!(eos(None, json!(null)), [0; 0]);
    assert_eq!(eos(Some(json!({"eos_token_id": [5, 3]})), json!(null)), [3, 5]);
    assert_eq!(eos(Some(json!({"eos_token_id": 3})), json!([2, 3])), [2, 3]);
    assert_eq!(eos(Some(json!({})), json!(2)), [2]);
    assert_eq!(read(Some(json!({"bos_token_id": 4})), json!(2)).unwrap().bos, Some(4));
    assert_eq!(read(Some(json!({})), json!(2)).unwrap().bos, Some(1));
}

#[test]
fn sampling_defaults_are_what_the_file_says_and_nothing_more() {
    let unset = GenerationConfig { eos: vec![2], bos: Some(1), ..GenerationConfig::default() };
    assert_eq!(read(None, json!(2)).unwrap(), unset);
    assert_eq!(read(Some(json!({"transformers_version": "5.0.0", "chat_format": "chatml"})), json!(2)).unwrap(), unset);
    let all = json!({
        "do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "repetition_penalty": 1.05,
        "num_beams": 1, "typical_p": 0.9, "no_repeat_ngram_size": 3, "max_new_tokens": 2048, "pad_token_id": 3,
        "suppress_tokens": null,
    });
    let set = GenerationConfig {
        do_sample: Some(true),
        temperature: Some(0.6),
        top_p: Some(0.95),
        top_k: Some(20),
        min_p: Some(0.0),
        typical_p: Some(0.9),
        repetition_penalty: Some(1.05),
        no_repeat_ngram_size: Some(3),
        ..unset
    };
    assert_eq!(read(Some(all), json!(2)).unwrap(), set);
}

#[test]
fn bad_values_name_file_and_field() {
    for (key, value, expected) in [
        ("temperature", json!(-1), "at least 0"),
        ("temperature", json!("hot"), "a finite number"),
        ("top_p", json!(1.5), "from 0 to 1"),
        ("top_p", json!(-0.5), "from 0 to 1"),
        ("min_p", json!(2), "from 0 to 1"),
        ("top_k", json!(-1), "a whole number"),
        ("top_k", json!(0.5), "a whole number"),
        ("repetition_penalty", json!(0), "above 0"),
        ("do_sample", json!("yes"), "true or false"),
        ("eos_token_id", json!(-1), "a token id"),
        ("eos_token_id", json!([1, "2"]), "a token id"),
        ("eos_token_id", json!(1u64 << 32), "a token id"),
        ("bos_token_id", json!({}), "a token id"),
        ("num_beams", json!(4), "1"),
        ("typical_p", json!(1.5), "from 0 to 1"),
        ("no_repeat_ngram_size", json!(-1), "a whole number"),
        ("suppress_tokens", json!([5]), "not supported"),
        ("bad_words_ids", json!([[5]]), "not supported"),
    ] {
        assert_says(read(Some(json!({key: value})), json!(2)), &["generation_config.json", key, expected]);
    }
    assert_says(read(Some(json!([])), json!(2)), &["generation_config.json", "a JSON object"]);
    assert_says(read(None, json!("</s>")), &["config.json", "eos_token_id", "</s>"]);
}
