//! What a backup says of itself: a header at its start, a manifest at its end.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::{Digest, Timestamp};

/// Format that this program writes and reads.
pub const FORMAT: &str = "loupe-backup/1";
/// What every format of a backup begins with.
pub const FORMAT_FAMILY: &str = "loupe-backup/";

/// The first member, `loupe-backup.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: String,
    pub software_version: String,
    pub created_at: Timestamp,
    pub device_id: Uuid,
    /// The site the ledger reports to; `None` until it first reports.
    pub site_id: Option<Uuid>,
    pub epoch: u32,
    /// Version of the ledger's schema.
    pub ledger_schema: i32,
    /// Where the state folder was, absolute.
    pub state_dir: PathBuf,
    /// The daemon's configuration, absolute; `None` where the state alone was backed up.
    pub config: Option<PathBuf>,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    Header,
    Ledger,
    /// A picture below `artifacts/`.
    Picture,
    /// Another file of the state folder.
    State,
    /// Configuration, or what it names.
    File,
    Secrets,
}

/// One file of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Path in the tar.
    pub name: String,
    pub kind: MemberKind,
    pub size_bytes: u64,
    pub sha256: Digest,
    /// Permissions.
    pub mode: u32,
}

/// The last member but one, `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub header: Header,
    /// In the order of the tar, header first, manifest not among them.
    pub members: Vec<Member>,
    /// Pictures that the ledger names and that were gone or changed already when the backup was made.
    pub pictures_missing: Vec<String>,
    /// Files with secrets that were left out.
    pub secrets_left_out: Vec<PathBuf>,
    /// Files with secrets that are in `secrets.sealed`.
    pub secrets_sealed: Vec<PathBuf>,
    /// Whether the DSN was cut out of the configuration's copy.
    pub is_config_redacted: bool,
}

impl Manifest {
    /// Members of one kind, and their bytes.
    #[must_use]
    pub fn count(&self, kind: MemberKind) -> (u64, u64) {
        let of_kind = self.members.iter().filter(|member| member.kind == kind);
        of_kind.fold((0, 0), |(count, bytes), member| (count + 1, bytes + member.size_bytes))
    }
}
