//! Weights: where they are found, what is checked, and what a damaged file says.

use burrstone::DType;
#[cfg(feature = "builtin-model")]
use burrstone::model::Checkpoint;
use safetensors::Dtype;
use serde_json::json;

use super::support::{Folder, SHAPES, Tensor, Tensors, assert_says, config, safetensors, tensors};

#[test]
fn one_file_opens() {
    let folder = Folder::whole();
    let checkpoint = folder.load().unwrap();
    assert_eq!(checkpoint.tensors().count(), SHAPES.len());
    let table = checkpoint.tensor("model.embed_tokens.weight", &[8, 4]).unwrap();
    assert_eq!(
        (table.dtype, &table.shape[..], &table.data[..4]),
        (DType::BF16, &[8, 4][..], &[0x80, 0x3f, 0x80, 0x3f][..])
    );
    let info = checkpoint.tensors().find(|t| t.name == "model.norm.weight").unwrap();
    assert_eq!((info.stored.as_str(), info.dtype, info.shape, info.bytes), ("BF16", Some(DType::BF16), vec![4], 8));
    assert_eq!(info.file, folder.file("model.safetensors"));
}

#[test]
fn shards_open_by_their_index_and_a_lone_file_by_itself() {
    let sharded = Folder::sharded(|_| ());
    let checkpoint = sharded.load().unwrap();
    let up = checkpoint.tensors().find(|t| t.name == "model.layers.0.mlp.up_proj.weight").unwrap();
    assert_eq!(up.file, sharded.file("b.safetensors"));

    let folder = Folder::whole();
    std::fs::rename(folder.file("model.safetensors"), folder.file("weights.safetensors")).unwrap();
    folder.load().unwrap();
}

#[cfg(feature = "builtin-model")]
#[test]
fn the_builtin_model_is_a_checkpoint_like_others() {
    let checkpoint = Checkpoint::builtin().unwrap();
    let spec = checkpoint.spec();
    assert_eq!((spec.layers, spec.hidden_size, spec.vocab_size), (5, 256, 2048));
    assert!(checkpoint.tied_embeddings());
    assert_eq!(checkpoint.generation_config().eos, [0]);
    let table = checkpoint.tensor("model.embed_tokens.weight", &[2048, 256]).unwrap();
    assert_eq!((table.dtype, table.data.len()), (DType::BF16, 2048 * 256 * 2));
    checkpoint.check_finite().unwrap();
    assert!(checkpoint.file("tokenizer.json").unwrap().unwrap().starts_with(b"{"));
    assert!(checkpoint.file("absent.json").unwrap().is_none());
}

#[test]
fn names_without_the_model_prefix_are_the_same_tensors() {
    let bare = tensors().into_iter().map(|(name, t)| (name.strip_prefix("model.").unwrap().to_owned(), t)).collect();
    Folder::with(&config(), &bare).load().unwrap();

    let mut both = tensors();
    both.insert("norm.weight".to_owned(), Tensor::ones(&[4]));
    assert_says(Folder::with(&config(), &both).open(), &["model.safetensors", "norm.weight", "one tensor", "another"]);
}

/// Replaces the header of a safetensors file, whose text `change` rewrites.
fn rewrite(file: &[u8], change: impl FnOnce(String) -> String) -> Vec<u8> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(file[8..8 + length].to_vec()).unwrap());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &file[8 + length..]].concat()
}

#[track_caller]
fn refused(weights: &[u8], parts: &[&str]) {
    let folder = Folder::whole();
    folder.write("model.safetensors", weights);
    assert_says(folder.open(), &[&["model.safetensors"], parts].concat());
}

#[test]
fn a_cut_file_names_the_tensor_that_is_lost() {
    let whole = safetensors(&tensors());
    for missing in 1..8 {
        // The last in the file is the norm.
        refused(&whole[..whole.len() - missing], &["model.norm.weight", "cut short"]);
    }
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    refused(&whole[..8 + header], &["cut short", "found 0 bytes"]);
    refused(&whole[..7 + header], &["header length", &format!("at most {}", header - 1), &format!("found {header}")]);
    refused(&whole[..8], &["header length", "at most 0"]);
    refused(&whole[..7], &["header length", "8 bytes", "found 7 bytes"]);
    refused(&[], &["header length", "found 0 bytes"]);
    refused(&[whole, vec![0; 3]].concat(), &["tensor data", "bytes"]);
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    for length in [u64::MAX, u64::MAX - 7, 1 << 63, 100_000_001, 1 << 40] {
        let mut file = safetensors(&tensors());
        file[..8].copy_from_slice(&length.to_le_bytes());
        refused(&file, &["header length", "at most", &length.to_string()]);
    }
    let mut short = safetensors(&tensors());
    short[..8].copy_from_slice(&10u64.to_le_bytes());
    refused(&short, &["header", "a safetensors header"]);
}

#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let file = safetensors(&tensors());
    let with = |from: &str, to: &str| {
        rewrite(&file, |header| {
            assert!(header.contains(from), "{header}");
            header.replace(from, to)
        })
    };
    // The embedding lies at bytes 0 to 64, and a norm behind it.
    refused(&with("[64,72]", "[56,64]"), &["input_layernorm", "data_offsets that start at 64", "[56, 64]"]);
    refused(&with("[0,64]", "[0,72]"), &["model.embed_tokens.weight", "64 bytes", "found 72 bytes"]);
    refused(&with("[0,64]", "[8,64]"), &["model.embed_tokens.weight", "start at 0", "[8, 64]"]);
    refused(&with("[0,64]", "[64,0]"), &["data_offsets"]);
    refused(&with("[0,64]", "[0,18446744073709551615]"), &["model.embed_tokens.weight", "cut short"]);
    refused(&with("\"shape\":[8,4]", "\"shape\":[8,5]"), &["model.embed_tokens.weight", "80 bytes", "64 bytes"]);
    let huge = format!("\"shape\":[{0},{0},{0}]", 1u64 << 40);
    refused(&with("\"shape\":[8,4]", &huge), &["model.embed_tokens.weight", "fits into memory"]);
    refused(&with("\"shape\":[8,4]", "\"shape\":[-8,4]"), &["header", "model.embed_tokens.weight", "-8"]);
    refused(&with("BF16", "B17"), &["header", "B17"]);
    refused(&with("\"model.norm.weight\"", "\"model.embed_tokens.weight\""), &["header", "twice"]);
    refused(&with("\"data_offsets\"", "\"data_offset\""), &["header", "data_offset"]);
    refused(&rewrite(&file, |_| "[]".to_owned()), &["header", "an object of tensors"]);
    refused(&rewrite(&file, |_| "{".to_owned()), &["header"]);
    refused(&rewrite(&file, |header| header.replacen('{', "{\u{1}", 1)), &["header"]);
}

#[test]
fn tensors_must_be_what_the_architecture_needs() {
    let load = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors();
        change(&mut tensors);
        Folder::with(&config(), &tensors).load()
    };
    let norm = "model.norm.weight";
    let set = |tensor: Tensor| load(&move |tensors| _ = tensors.insert(norm.to_owned(), tensor.clone()));
    assert_says(load(&|tensors| _ = tensors.remove(norm)), &["model.safetensors", norm, "shape [4]", "no such tensor"]);
    assert_says(set(Tensor::ones(&[5])), &["model.safetensors", norm, "shape [4]", "found [5]"]);
    assert_says(set(Tensor::ones(&[4, 1])), &[norm, "shape [4]", "found [4, 1]"]);
    let bytes = Tensor { dtype: Dtype::I8, shape: vec![4], data: vec![0; 4] };
    assert_says(set(bytes), &[norm, "BF16, F16 or F32", "found I8"]);

    let add = |name: &'static str| load(&move |tensors| _ = tensors.insert(name.to_owned(), Tensor::ones(&[2])));
    let extra = "model.layers.0.self_attn.q_norm.weight";
    assert_says(add(extra), &["model.safetensors", extra, "no such tensor in a llama model", "BF16 [2]"]);
    assert_says(add("model.layers.1.mlp.up_proj.weight"), &["model.layers.1.mlp.up_proj.weight"]);
    add("model.layers.0.self_attn.rotary_emb.inv_freq").unwrap();
}

#[test]
fn indices_and_shards_must_agree() {
    let name = "model.norm.weight";
    let move_norm = |to: &'static str| Folder::sharded(move |index| index["weight_map"][name] = to.into()).load();
    assert_says(move_norm("b.safetensors"), &["b.safetensors", name, "index", "no such tensor"]);
    assert_says(move_norm("c.safetensors"), &["index.json", "weight_map", "c.safetensors", "no such file"]);
    for outside in ["../a.safetensors", "/etc/passwd", "", ".", "..", "x/a.safetensors"] {
        assert_says(move_norm(outside), &["index.json", "weight_map.model.norm.weight", "beside the index"]);
    }
    assert_says(
        Folder::sharded(|index| index["weight_map"][name] = 7.into()).load(),
        &["index.json", "weight_map.model.norm.weight", "found 7"],
    );
    for map in [json!(null), json!({}), json!([]), json!("a.safetensors")] {
        assert_says(Folder::sharded(|index| index["weight_map"] = map).load(), &["index.json", "weight_map"]);
    }
    let folder = Folder::sharded(|_| ());
    folder.write("model.safetensors.index.json", b"nonsense");
    assert_says(folder.load(), &["index.json", "valid JSON"]);

    let folder = Folder::sharded(|_| ());
    let twice: Tensors = tensors().into_iter().filter(|(key, _)| key.contains(".mlp.") || key == name).collect();
    folder.write("b.safetensors", &safetensors(&twice));
    assert_says(folder.load(), &["b.safetensors", "norm.weight", "one tensor", "a.safetensors"]);

    let folder = Folder::sharded(|_| ());
    let shard = std::fs::read(folder.file("b.safetensors")).unwrap();
    folder.write("b.safetensors", &shard[..shard.len() - 1]);
    assert_says(folder.load(), &["b.safetensors", "cut short"]);
}

#[test]
fn folders_without_usable_weights_say_what_they_have() {
    let folder = Folder::empty();
    assert_says(folder.open(), &["config.json", "no such file"]);
    folder.json("config.json", &config());
    assert_says(folder.open(), &["weights", "model.safetensors", "neither"]);
    for other in ["pytorch_model.bin", "model-q4.gguf"] {
        folder.write(other, b"weights");
        assert_says(folder.open(), &["safetensors", other]);
        std::fs::remove_file(folder.file(other)).unwrap();
    }
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        folder.write(shard, &safetensors(&tensors()));
    }
    assert_says(folder.open(), &["weights", "index.json", "2 files", "model-00001-of-00002.safetensors first"]);

    let nowhere = folder.file("nowhere");
    assert_says(burrstone::model::Checkpoint::open(&nowhere), &["nowhere", "no such folder"]);
    let folder = Folder::empty();
    folder.json("config.json", &config());
    std::fs::create_dir(folder.file("model.safetensors")).unwrap();
    assert_says(folder.open(), &["model.safetensors", "a file"]);
}

#[test]
fn a_tied_table_may_be_kept_under_either_name_or_both() {
    let (table, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let load = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors();
        change(&mut tensors);
        Folder::with(&config(), &tensors).load()
    };
    assert!(load(&|_| ()).unwrap().tied_embeddings());
    let moved = load(&|tensors| {
        let tensor = tensors.remove(table).unwrap();
        tensors.insert(head.to_owned(), tensor);
    });
    assert!(moved.unwrap().tied_embeddings());
    let both = load(&|tensors| _ = tensors.insert(head.to_owned(), tensors[table].clone()));
    assert!(both.unwrap().tied_embeddings());

    // Weights that differ are believed more than the configuration; then the head is a tensor like others.
    let mut other = tensors();
    other.insert(head.to_owned(), Tensor::f32(&[8, 4], &[0.5; 32]));
    let folder = Folder::with(&config(), &other);
    let checkpoint = folder.open().unwrap();
    assert!(!checkpoint.tied_embeddings());
    assert_eq!(checkpoint.tensor(head, &[8, 4]).unwrap().dtype, DType::F32);
    assert_says(folder.load(), &[head]);

    let mut untied = config();
    untied["tie_word_embeddings"] = false.into();
    let checkpoint = Folder::with(&untied, &tensors()).open().unwrap();
    assert!(!checkpoint.tied_embeddings());
    assert_says(checkpoint.tensor(head, &[8, 4]), &[head, "no such tensor"]);
}

#[test]
fn the_dtype_is_that_of_the_weights_where_the_configuration_is_silent() {
    let mut silent = config();
    silent["torch_dtype"] = json!(null);
    assert_eq!(Folder::with(&silent, &tensors()).open().unwrap().spec().dtype, DType::BF16);
    let mut mixed = tensors();
    mixed.insert("model.embed_tokens.weight".to_owned(), Tensor::f32(&[8, 4], &[1.0; 32]));
    assert_eq!(Folder::with(&silent, &mixed).open().unwrap().spec().dtype, DType::F32);
    assert_eq!(Folder::with(&config(), &mixed).open().unwrap().spec().dtype, DType::BF16);
}

#[test]
fn a_weight_that_is_no_number_is_found_by_name_and_index() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let check = |tensor: Tensor| {
        let mut tensors = tensors();
        tensors.insert(name.to_owned(), tensor);
        Folder::with(&config(), &tensors).load()?.check_finite()
    };
    check(Tensor::ones(&[6, 4])).unwrap();
    let put = |dtype, size: usize, bits: &[u8]| {
        let mut data = vec![0; 24 * size];
        data[13 * size..14 * size].copy_from_slice(bits);
        Tensor { dtype, shape: vec![6, 4], data }
    };
    for (dtype, bits, said) in [
        (Dtype::BF16, &[0xc0, 0x7f][..], "NaN"),
        (Dtype::BF16, &[0x80, 0xff], "-inf"),
        (Dtype::F16, &[0x00, 0x7c], "inf"),
        (Dtype::F16, &[0x01, 0xfc], "NaN"),
        (Dtype::F32, &[0x00, 0x00, 0x80, 0x7f], "inf"),
        (Dtype::F32, &[0x01, 0x00, 0x80, 0xff], "NaN"),
    ] {
        let result = check(put(dtype, bits.len(), bits));
        assert_says(result, &["model.safetensors", &format!("{name}[3, 1]"), "a finite number", said]);
    }
    for (dtype, bits) in
        [(Dtype::BF16, &[0x7f, 0x7f][..]), (Dtype::F16, &[0xff, 0xfb]), (Dtype::F32, &[0xff, 0xff, 0x7f, 0x7f])]
    {
        check(put(dtype, bits.len(), bits)).unwrap();
    }

    // Far inside a tensor that is not a multiple of any block.
    let mut values = vec![1.0; 3 * 5001];
    values[2 * 5001 + 4999] = f32::NAN;
    let mut large = tensors();
    large.insert("large".to_owned(), Tensor::f32(&[3, 5001], &values));
    let checkpoint = Folder::with(&config(), &large).open().unwrap();
    assert_says(checkpoint.check_finite(), &["large[2, 4999]", "NaN"]);
}
