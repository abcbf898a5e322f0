//! A file mapped into memory read-only, and typed views of it.
//!
//! Invariants: a view lies within the file and is aligned for its type; the mapping lives as long as the value.
//! A mapped file must not be written or shortened while it is open: the kernel answers a read past its end with SIGBUS.
//! Generations are immutable and replaced by rename, which keeps the mapped inode whole.
//! Thread: any number at once. Overload: none; the kernel brings pages in as they are read and may drop them again.
#![expect(unsafe_code, reason = "mapping memory is a system call; each block says why it is sound")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};

#[cfg(target_endian = "big")]
compile_error!("the files of an index are little-endian and read in place");

/// A read-only mapping of a whole file.
pub struct Map {
    /// Dangling when the file is empty.
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is only read, and no thread owns it.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

/// Types of which every pattern of bits is a value, so that a file's bytes may be read as them.
///
/// # Safety
/// Implemented for plain numbers only.
pub unsafe trait Plain: Copy {}
// SAFETY: every pattern of bits is a value of a number.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

impl Map {
    /// Map the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), bytes });
        }
        // SAFETY: a fresh shared mapping of an open file, read-only, at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, bytes })
    }

    /// Size of the file when it was mapped.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.bytes
    }

    /// `count` values from `offset_bytes` on; `None` where they do not lie within the file or are not aligned.
    #[must_use]
    pub fn values<T: Plain>(&self, offset_bytes: usize, count: usize) -> Option<&[T]> {
        let end = count.checked_mul(size_of::<T>())?.checked_add(offset_bytes)?;
        if end > self.bytes || !offset_bytes.is_multiple_of(align_of::<T>()) {
            return None;
        }
        if count == 0 {
            return Some(&[]);
        }
        // SAFETY: the range lies within the mapping, which starts at a page and so is aligned where the offset is; `T` is
        // `Plain`, the memory is never written, and it lives as long as `self`.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(offset_bytes).cast::<T>(), count) })
    }

    /// Enter the pages into the process's page table, reading those that are not in memory: later searches then take no
    /// page faults. Kernels before 5.14 ignore it.
    pub fn populate(&self) {
        if self.bytes > 0 {
            // SAFETY: the range is this live mapping; the advice changes no content. What it answers does not matter: it is
            // a hint.
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_POPULATE_READ) };
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the range was mapped by this value, and no view of it outlives it.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Map;

    #[test]
    fn views_beyond_the_file_or_off_alignment_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [1_u8, 0, 0, 0, 2, 0, 0, 0, 3]).unwrap();
        let map = Map::open(&path).unwrap();
        assert_eq!(map.values::<u32>(0, 2), Some(&[1, 2][..]));
        assert_eq!(map.values::<u8>(8, 1), Some(&[3][..]));
        assert_eq!(map.values::<u32>(8, 1), None);
        assert_eq!(map.values::<u32>(2, 1), None);
        assert_eq!(map.values::<u32>(0, usize::MAX), None);
        assert_eq!(map.values::<u8>(9, 0), Some(&[][..]));
        assert_eq!(map.values::<u8>(10, 0), None);
        map.populate();
        std::fs::write(&path, []).unwrap();
        let empty = Map::open(&path).unwrap();
        empty.populate();
        assert_eq!((empty.byte_count(), empty.values::<f32>(0, 0)), (0, Some(&[][..])));
        assert!(Map::open(&dir.path().join("missing")).is_err());
    }
}
