//! What the disk under the state folder says.

use std::path::Path;

/// Bytes a service may still write to the file system that holds `path`.
///
/// # Errors
/// When the file system does not answer.
pub fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_root_has_space_and_nowhere_has_none() {
        assert!(super::free_bytes("/".as_ref()).unwrap() > 0);
        assert!(super::free_bytes("/no/such/folder".as_ref()).is_err());
    }
}
