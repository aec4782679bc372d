use std::path::Path;
use std::sync::LazyLock;

use burrstone::text::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

fn load(definition: &Value) -> Tokenizer {
    Tokenizer::from_bytes(Path::new("tokenizer.json"), definition.to_string().as_bytes()).unwrap()
}

fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// Byte-level BPE: the built-in model's.
fn byte_level() -> Tokenizer {
    Tokenizer::from_bytes(Path::new("tokenizer.json"), include_bytes!("../../src/builtin/tokenizer.json")).unwrap()
}

/// BPE with byte fallback and a prefix space, as in Llama 2 and Mistral.
fn byte_fallback() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), vocab.len().into());
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for token in ["▁", "▁▁", "a", "b", "▁a", "▁b", "é", "▁a▁", "\u{fffd}", "ab"] {
        vocab.insert(token.to_owned(), vocab.len().into());
    }
    load(&json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": [["▁", "a"], ["▁", "b"]]},
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
    }))
}

/// Unigram with Metaspace, as converted from SentencePiece.
fn unigram() -> Tokenizer {
    let pieces = ["<unk>", "</s>", "▁", "▁a", "a", "b", "▁b", "▁▁", "é"];
    let vocab: Vec<_> = pieces.iter().enumerate().map(|(i, p)| json!([p, -(i as f64)])).collect();
    load(&json!({
        "version": "1.0", "added_tokens": [special(0, "<unk>"), special(1, "</s>")], "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    }))
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = tokenizer.decode_stream(skip_special);
    let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

fn check(tokenizer: &Tokenizer, ids: &[u32]) {
    for skip_special in [false, true] {
        let pieces = streamed(tokenizer, ids, skip_special);
        assert_eq!(pieces.concat(), tokenizer.decode(ids, skip_special).unwrap(), "{ids:?} in pieces {pieces:?}");
    }
}

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(byte_level);
static BYTE_FALLBACK: LazyLock<Tokenizer> = LazyLock::new(byte_fallback);
static UNIGRAM: LazyLock<Tokenizer> = LazyLock::new(unigram);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn byte_level_streams_add_up(ids in prop::collection::vec(prop_oneof![0..2048u32, 90..260u32], 0..40)) {
        check(&BYTE_LEVEL, &ids);
    }

    /// Mostly the test's tokens; some bytes that begin, continue and break characters.
    #[test]
    fn byte_fallback_streams_add_up(
        ids in prop::collection::vec(
            prop_oneof![3 => 259..269u32, 1 => 0..3u32, 1 => 3 + 0x80..3 + 0xC0u32, 1 => 3 + 0xC2..3 + 0xF5u32, 1 => Just(3 + 0x41u32)],
            0..40,
        )
    ) {
        check(&BYTE_FALLBACK, &ids);
    }

    #[test]
    fn unigram_streams_add_up(ids in prop::collection::vec(0..9u32, 0..30)) {
        check(&UNIGRAM, &ids);
    }

    #[test]
    fn text_survives_a_round_trip(text in "[ -~éß漢😀\n]{0,40}") {
        let tokenizer = &*BYTE_LEVEL;
        let ids = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        check(tokenizer, &ids);
    }
}

#[test]
fn text_appears_as_soon_as_it_is_certain() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("no 漢!", false).unwrap();
    let pieces = streamed(&tokenizer, &ids, true);
    let shown: Vec<_> = pieces.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    assert_eq!(*shown.last().unwrap(), "!");
    assert!(shown.contains(&"漢"), "{pieces:?}");
    assert_eq!(pieces.last().unwrap(), "", "text was left to flush");

    let tokenizer = byte_fallback();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let ids = [id("▁a"), id("<0xE6>"), id("<0xBC>"), id("<0xA2>"), id("▁b")];
    assert_eq!(streamed(&tokenizer, &ids, true), ["a", "", "", "漢", " b", ""]);
}

#[test]
fn a_character_that_never_ends_shows_as_replacement() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode("漢", false).unwrap();
    assert!(ids.len() > 1);
    assert_eq!(streamed(&tokenizer, &ids[..1], true).concat(), "\u{fffd}");
}

/// Bytes that never become a character are shown, not collected.
#[test]
fn invalid_bytes_are_not_held_back() {
    let tokenizer = byte_level();
    let bad = tokenizer.token_to_id("ÿ").unwrap();
    let mut stream = tokenizer.decode_stream(true);
    for _ in 0..1000 {
        assert_eq!(stream.push(bad).unwrap(), "\u{fffd}");
    }
}

#[test]
fn special_tokens_and_unknown_ids() {
    let tokenizer = byte_level();
    assert_eq!(tokenizer.decode(&[0], false).unwrap(), "<|endoftext|>");
    assert_eq!(tokenizer.decode(&[0], true).unwrap(), "");
    assert_eq!(tokenizer.encode("<|endoftext|>", false).unwrap(), [0]);
    assert_eq!(tokenizer.vocab_size(), 2048);
    assert_eq!((tokenizer.id_to_token(0).as_deref(), tokenizer.id_to_token(2048)), (Some("<|endoftext|>"), None));

    let error = tokenizer.decode(&[5, 2048], true).unwrap_err();
    assert_eq!(error.to_string(), "token_ids: expected ids of a vocabulary of 2048, found 2048");
    assert!(error.is_input());
    // A model's output may be padded beyond the vocabulary.
    assert_eq!(streamed(&tokenizer, &[2048, 5], true).concat(), tokenizer.decode(&[5], true).unwrap());
}

/// The begin-of-text token is added only on request; truncation and padding of the file are ignored.
#[test]
fn encodes_whole_texts() {
    let tokenizer = byte_fallback();
    let ids: Vec<_> = ["▁a", "▁b", "▁a", "▁b"].iter().map(|t| tokenizer.token_to_id(t).unwrap()).collect();
    assert_eq!(tokenizer.encode("a b a b", false).unwrap(), ids);
    assert_eq!(tokenizer.encode("a b a b", true).unwrap(), [&[1], ids.as_slice()].concat());
}

#[test]
fn a_bad_file_is_named_on_one_line() {
    for bytes in [&b"{"[..], b"{}", b"\xff", b"{\"version\": \"1.0\",\n \"model\": {\"type\": \"None\"}}"] {
        let error = Tokenizer::from_bytes(Path::new("some/tokenizer.json"), bytes).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("some/tokenizer.json: tokenizer: expected a tokenizer definition, found "));
        assert!(!message.contains('\n') && error.is_input(), "{message}");
    }
}
