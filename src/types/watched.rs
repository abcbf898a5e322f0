//! What was taken from a watched folder, so that the next start knows it.

/// A file as it was when it was taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchedFile {
    pub path: String,
    pub bytes: u64,
    /// When it was written last, nanoseconds since 1970; 0 where the file system does not say.
    pub modified_ns: i64,
}

/// What a frame says of the folder it is from; empty of one from anywhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderNote {
    /// The files it is made of, and others that need no frame any more.
    pub taken: Vec<WatchedFile>,
    /// Paths of files that were taken and have left the folder since.
    pub gone: Vec<String>,
}

impl FolderNote {
    pub fn append(&mut self, mut other: FolderNote) {
        self.taken.append(&mut other.taken);
        self.gone.append(&mut other.gone);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.gone.is_empty()
    }
}
