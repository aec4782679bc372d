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
    let harmless = json!({
        "transformers_version": "5.0.0", "_from_model_config": true, "pad_token_id": 3, "use_cache": true,
        "cache_implementation": "static", "output_scores": true, "return_dict_in_generate": true, "num_beams": 1,
        "length_penalty": 2.0, "early_stopping": true, "chat_format": "chatml", "epsilon_cutoff": 0.0, "top_h": null,
        "forced_eos_token_id": null, "bad_words_ids": [], "of_no_meaning": false,
    });
    assert_eq!(read(Some(harmless), json!(2)).unwrap(), unset);
    let all = json!({
        "do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0, "repetition_penalty": 1.05,
        "num_beams": 1, "typical_p": 0.9, "no_repeat_ngram_size": 3, "max_new_tokens": 2048, "pad_token_id": 3,
        "min_new_tokens": 2, "min_length": 0, "max_length": 4096, "stop_strings": "###",
        "suppress_tokens": [5, 4], "bad_words_ids": [[6], [2], [6, 2]], "begin_suppress_tokens": 7,
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
        max_new_tokens: Some(2048),
        max_length: Some(4096),
        min_new_tokens: Some(2),
        min_length: Some(0),
        stop_strings: vec!["###".to_owned()],
        // An end token is no bad word.
        suppress_tokens: vec![4, 5, 6],
        sequence_bias: vec![(vec![6, 2], f32::NEG_INFINITY)],
        begin_suppress_tokens: vec![7],
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
        ("suppress_tokens", json!([-5]), "a token id"),
        ("begin_suppress_tokens", json!("x"), "a token id"),
        ("bad_words_ids", json!([5]), "lists of token ids"),
        ("bad_words_ids", json!([[5, 6], []]), "none of them empty"),
        ("bad_words_ids", json!([[5, -6]]), "lists of token ids"),
        ("max_new_tokens", json!(0), "a whole number from 1"),
        ("min_new_tokens", json!(-1), "a whole number from 0"),
        ("stop_strings", json!([""]), "none of them empty"),
        ("stop_strings", json!(3), "a text or a list of texts"),
        ("top_h", json!(0.4), "not supported"),
        ("epsilon_cutoff", json!(0.1), "0, as others are not supported"),
        ("num_return_sequences", json!(2), "1, as others are not supported"),
        ("forced_bos_token_id", json!(0), "not supported"),
        ("forced_eos_token_id", json!(2), "not supported"),
        ("sequence_bias", json!([[5], 1.0]), "pairs of a list of token ids and a number"),
        ("sequence_bias", json!([[[], 1.0]]), "pairs of a list of token ids and a number"),
        ("sequence_bias", json!([[[5], "x"]]), "pairs of a list of token ids and a number"),
        ("sequence_bias", json!({"5": 1.0}), "pairs of a list of token ids and a number"),
        ("max_time", json!(1.5), "not supported"),
        ("token_healing", json!(true), "not supported"),
        ("unheard_of", json!("x"), "its meaning is not known"),
    ] {
        assert_says(read(Some(json!({key: value})), json!(2)), &["generation_config.json", key, expected]);
    }
    let biased = json!({"sequence_bias": [[[5, 6], -1], [[5, 6], 1.5], [[4], 2.0]], "repetition_penalty": 1.0});
    let biases = vec![(vec![4], 2.0), (vec![5, 6], 1.5)];
    assert_eq!(read(Some(biased), json!(2)).unwrap().sequence_bias, biases);
    let both = json!({"sequence_bias": [[[5], 1.0]], "repetition_penalty": 1.1});
    assert_says(read(Some(both), json!(2)), &["repetition_penalty", "1 beside a sequence_bias", "1.1"]);
    assert_says(read(Some(json!([])), json!(2)), &["generation_config.json", "a JSON object"]);
    assert_says(read(None, json!("</s>")), &["config.json", "eos_token_id", "</s>"]);
}
