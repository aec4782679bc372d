//! What a model is called, and how its download is reported.

/// Told about downloads, one file at a time.
pub trait Progress: Send {
    /// A file of `total` bytes begins. What an earlier run left behind is announced by [`Progress::advance`].
    fn start(&mut self, file: &str, total: u64);

    /// So many more bytes of the file are there.
    fn advance(&mut self, bytes: u64);

    /// The file is complete.
    fn finish(&mut self);

    /// Something that a user should know, in one line, which is no failure.
    fn notice(&mut self, text: &str);
}

/// Reports nothing.
impl Progress for () {
    fn start(&mut self, _file: &str, _total: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
    fn notice(&mut self, _text: &str) {}
}

/// A model of the hub: `name` or `organisation/name`, with `@revision` for another than `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl HubId {
    /// `None` where the text cannot be an id by the hub's rules.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let word = |part: &str, more: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !part.is_empty() && part.len() <= 96 && part.chars().all(allowed) && !part.contains("..")
        };
        let parts: Vec<&str> = name.split('/').collect();
        let named = parts.len() <= 2
            && parts.iter().all(|part| {
                word(part, "-_.")
                    && !part.starts_with(['-', '.'])
                    && !part.ends_with(['-', '.'])
                    && !part.contains("--")
            });
        let revised = word(revision, "-_./") && revision.split('/').all(|part| !part.is_empty() && part != ".");
        (named && revised).then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}
