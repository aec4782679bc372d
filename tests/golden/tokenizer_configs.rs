//! `generate_tokenizer_configs.py` wrote what is expected here.

use std::collections::BTreeMap;
use std::path::Path;

use burrstone::text::{ChatTemplate, Message, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
struct Case {
    name: String,
    tokenizer: String,
    files: BTreeMap<String, Value>,
    encode: Vec<Encoded>,
    decode: Vec<Decoded>,
    chat: String,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Decoded {
    ids: Vec<u32>,
    text: String,
    text_without_special: String,
}

const TEMPLATE: &str =
    "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ image_token }}|{{ messages[0].content }}";

#[test]
fn folders_are_read_as_transformers_reads_them() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("tokenizer_configs.json")).unwrap();
    assert!(!cases.is_empty());
    for Case { name, tokenizer, files, encode, decode, chat } in cases {
        let folder = tempfile::tempdir().unwrap();
        let definition = format!("{}/tests/golden/tokenizers/{tokenizer}.json", env!("CARGO_MANIFEST_DIR"));
        std::fs::copy(definition, folder.path().join("tokenizer.json")).unwrap();
        for (file, contents) in files {
            std::fs::write(folder.path().join(file), contents.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::load(folder.path()).unwrap().unwrap();
        for Encoded { text, ids } in encode {
            assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{name}: {text:?}");
        }
        for Decoded { ids, text, text_without_special } in decode {
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text_without_special, "{name}: {ids:?}");
        }
        assert_eq!(rendered(folder.path()), chat, "{name}");
    }
}

fn rendered(folder: &Path) -> String {
    std::fs::write(folder.join("chat_template.jinja"), TEMPLATE).unwrap();
    ChatTemplate::load(folder, None).unwrap().render(&[Message::user("hi")], false, &Map::new()).unwrap()
}
