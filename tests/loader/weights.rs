//! Weights: where they are found, what is checked, and what a damaged file says.

use std::path::Path;

use burrstone::DType;
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
