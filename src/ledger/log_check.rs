//! Whether the write-ahead log lost committed transactions: a check that SQLite does not make.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong and forgets the rest without a word: right for the
//! torn end of a power cut, and a silent loss where a byte in the middle has flipped. The difference can be seen: with
//! `synchronous=FULL` a commit is on disk before the next one begins, so behind a torn transaction stands at most its own
//! commit. Two or more commits that continue the chain of checksums behind a bad frame mean that a durable one is damaged.
//! Limits: a flipped byte in the very last transaction cannot be told from a torn one.
//! Format: <https://www.sqlite.org/fileformat2.html#walformat>.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _};
use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// Magic number of a log whose checksums are over little-endian words; the last bit says big-endian.
const MAGIC: u32 = 0x377f_0682;
/// Pages are 512 bytes to 64 KiB.
const PAGE_BYTES_MAX: usize = 65_536;

/// What is wrong with the log at `path`, in words; `None`: nothing that a power cut would not do.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn find_damage(path: &Path) -> std::io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let file_bytes = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; HEADER_BYTES];
    // A log without a frame holds no transaction.
    if file_bytes < (HEADER_BYTES + FRAME_HEADER_BYTES + 512) as u64 || reader.read_exact(&mut header).is_err() {
        return Ok(None);
    }
    let Some((mut chain, page_bytes)) = Chain::begin(&header) else {
        return Ok(Some("the header of its log is damaged, so nothing in the log can be read".to_owned()));
    };
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let mut first_bad = None;
    let mut commits_behind = 0;
    for number in 1_u64.. {
        if reader.read_exact(&mut frame).is_err() {
            break;
        }
        let is_good = chain.take(&frame);
        match first_bad {
            None if !is_good => first_bad = Some(number),
            None => {}
            // The checksum itself may have flipped: then the next frame looks bad as well. More than that is the end:
            // frames of an older log follow in the file.
            Some(bad) if !is_good && number > bad + 1 => break,
            Some(_) => commits_behind += u32::from(is_good && word(&frame, 4) != 0),
        }
    }
    Ok(first_bad
        .filter(|_| commits_behind >= 2)
        .map(|bad| format!("frame {bad} of its log is damaged, and {commits_behind} commits behind it would be lost")))
}

/// The running checksum of a log.
struct Chain {
    is_big_endian: bool,
    salts: [u8; 8],
    sums: (u32, u32),
}

impl Chain {
    fn begin(header: &[u8; HEADER_BYTES]) -> Option<(Self, usize)> {
        let magic = word(header, 0);
        if magic & !1 != MAGIC {
            return None;
        }
        let page_bytes =
            usize::try_from(word(header, 8)).ok().filter(|bytes| (512..=PAGE_BYTES_MAX).contains(bytes))?;
        let mut salts = [0; 8];
        salts.copy_from_slice(header.get(16..24)?);
        let mut chain = Self { is_big_endian: magic & 1 == 1, salts, sums: (0, 0) };
        chain.add(header.get(..24)?);
        (chain.sums == (word(header, 24), word(header, 28))).then_some((chain, page_bytes))
    }

    /// Add a frame; says whether its checksum is right. The chain goes on from what the frame says of itself.
    fn take(&mut self, frame: &[u8]) -> bool {
        self.add(frame.get(..8).unwrap_or_default());
        self.add(frame.get(FRAME_HEADER_BYTES..).unwrap_or_default());
        let said = (word(frame, 16), word(frame, 20));
        let is_good = self.sums == said && frame.get(8..16) == Some(&self.salts);
        self.sums = said;
        is_good
    }

    fn add(&mut self, bytes: &[u8]) {
        let (mut first, mut second) = self.sums;
        for pair in bytes.chunks_exact(8) {
            let (a, b) = if self.is_big_endian {
                (word(pair, 0), word(pair, 4))
            } else {
                (word(pair, 0).swap_bytes(), word(pair, 4).swap_bytes())
            };
            first = first.wrapping_add(a).wrapping_add(second);
            second = second.wrapping_add(b).wrapping_add(first);
        }
        self.sums = (first, second);
    }
}

/// The big-endian word at `at`; 0 beyond the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rusqlite::Connection;

    use super::{FRAME_HEADER_BYTES, HEADER_BYTES, find_damage};

    /// A log of ten commits, and the folder it is in.
    fn log() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x);")
            .unwrap();
        for number in 0..9 {
            connection.execute("INSERT INTO t VALUES (?1)", [format!("{number}").repeat(2_000)]).unwrap();
        }
        let log = path.with_extension("db-wal");
        let bytes = std::fs::read(&log).unwrap();
        (dir, log, bytes)
    }

    fn check(log: &std::path::Path, bytes: &[u8], words: Option<&str>) {
        std::fs::write(log, bytes).unwrap();
        let found = find_damage(log).unwrap();
        match words {
            None => assert_eq!(found, None),
            Some(words) => assert!(found.as_deref().is_some_and(|found| found.contains(words)), "{found:?}"),
        }
    }

    #[test]
    fn a_flipped_bit_before_later_commits_is_found_and_a_torn_end_is_not() {
        let (_dir, log, whole) = log();
        let frame = FRAME_HEADER_BYTES + 4096;
        let frames = (whole.len() - HEADER_BYTES) / frame;
        assert!(frames > 8 && (whole.len() - HEADER_BYTES).is_multiple_of(frame), "{frames} frames");
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            bytes
        };
        let at = |frame_index: usize, offset: usize| HEADER_BYTES + frame_index * frame + offset;
        check(&log, &whole, None);
        check(&log, &flipped(26), Some("header"));
        check(&log, &flipped(at(2, 1_000)), Some("frame 3 of its log"));
        check(&log, &flipped(at(2, 17)), Some("frame 3 of its log"));
        check(&log, &flipped(at(0, FRAME_HEADER_BYTES)), Some("frame 1 of its log"));
        // The last transaction: it might be torn.
        check(&log, &flipped(at(frames - 1, 100)), None);
        check(&log, &whole[..at(frames - 1, 100)], None);
        check(&log, &whole[..HEADER_BYTES + 3], None);
        check(&log, b"", None);
        // Pages of a log from before, behind this one's end.
        let mut stale = whole.clone();
        (frames / 2..frames).for_each(|frame_index| stale[at(frame_index, 8)] ^= 0xff);
        check(&log, &stale, None);
        check(&log, &flipped(at(2, 8)), Some("frame 3 of its log"));
    }
}
