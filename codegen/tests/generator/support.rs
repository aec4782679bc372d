//! A copy of the small repository in `tests/tree` that a test may change. Its CMake project is the real one.

use std::path::{Path, PathBuf};

use burrstone_codegen::Tree;

pub struct Copy {
    root: tempfile::TempDir,
}

impl Copy {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let codegen = Path::new(env!("CARGO_MANIFEST_DIR"));
        copy(&codegen.join("tests/tree"), root.path());
        let project = "csrc/CMakeLists.txt";
        std::fs::copy(codegen.join("..").join(project), root.path().join(project)).unwrap();
        Self { root }
    }

    pub fn tree(&self) -> Tree {
        Tree::at(self.root.path())
    }

    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.path().join(inside)
    }

    pub fn replace(&self, inside: &str, old: &str, new: &str) {
        let path = self.path(inside);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(old), "{inside} lacks {old:?}");
        std::fs::write(path, text.replace(old, new)).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}
