//! `generate_tokenizers.py` wrote what is expected here.

use std::collections::BTreeMap;
use std::path::Path;

use burrstone::text::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
    r#continue: Vec<Continued>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    /// With what the tokenizer puts around a text.
    ids: Vec<u32>,
    plain: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
    text_without_special: String,
}

#[derive(Deserialize)]
struct Continued {
    prompt: Vec<u32>,
    ids: Vec<u32>,
    /// What `ids` add to the text of `prompt`, without special tokens.
    text: String,
}

fn tokenizers() -> impl Iterator<Item = (String, Tokenizer, Expected)> {
    let all: BTreeMap<String, Expected> = serde_json::from_str(include_str!("tokenizers.json")).unwrap();
    all.into_iter().map(|(name, expected)| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/tokenizers/{name}.json"));
        let tokenizer = Tokenizer::from_bytes(&file, &std::fs::read(&file).unwrap()).unwrap();
        (name, tokenizer, expected)
    })
}

#[test]
fn texts_become_the_same_ids() {
    for (name, tokenizer, expected) in tokenizers() {
        for Encoded { text, ids, plain } in expected.encode {
            assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode(&text, false).unwrap(), plain, "{name}: {text:?}");
        }
    }
}

#[test]
fn ids_become_the_same_text_at_once_and_token_by_token() {
    for (name, tokenizer, expected) in tokenizers() {
        for Decoded { ids, text, text_without_special } in expected.decode {
            for (skip_special, expected) in [(false, &text), (true, &text_without_special)] {
                assert_eq!(&tokenizer.decode(&ids, skip_special).unwrap(), expected, "{name}: {ids:?}");
                let mut stream = tokenizer.decode_stream(skip_special);
                let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
                pieces.push(stream.finish().unwrap());
                assert_eq!(&pieces.concat(), expected, "{name}: {ids:?} in pieces {pieces:?}");
            }
        }
    }
}

#[test]
fn what_follows_a_prompt_is_what_it_adds_to_its_text() {
    for (name, tokenizer, expected) in tokenizers() {
        assert!(!expected.r#continue.is_empty());
        for Continued { prompt, ids, text } in expected.r#continue {
            let mut stream = tokenizer.decode_stream(true).continuing(&prompt).unwrap();
            let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            pieces.push(stream.finish().unwrap());
            assert_eq!(pieces.concat(), text, "{name}: {ids:?} after {prompt:?} in pieces {pieces:?}");
        }
    }
}
