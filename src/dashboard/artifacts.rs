//! Pictures of inspections: files below the artifacts folder, and nothing else.

use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::api::ApiError;
use crate::limits;

/// An artifact's path is never used for other content, so a browser may keep it for a year.
const CACHE: &str = "private, max-age=31536000, immutable";

/// Of a placeholder's text, which is 320 px wide.
const PLACEHOLDER_LINE_BYTES: usize = 38;

/// One answer for everything that is not served: it must not tell a missing file from a forbidden one.
const MISSING: ApiError = ApiError::new(StatusCode::NOT_FOUND, "unknown_artifact", "there is no such artifact");

/// `GET /artifacts/{path}`
pub(super) async fn artifact(
    State(shared): State<Shared>,
    path: Result<UrlPath<String>, axum::extract::rejection::PathRejection>,
) -> Result<Response, ApiError> {
    let UrlPath(relative) = path.map_err(|_| MISSING)?;
    let relative = safe_path(&relative).ok_or(MISSING)?;
    let kind = content_type(&relative);
    let (root, gone) = (shared.artifacts_root.clone(), shared.state.gone.clone());
    let read = move || match (read_below(&root, &relative), gone) {
        (Some(bytes), _) => Ok(bytes),
        (None, Some(gone)) => Err(relative.to_str().and_then(|path| gone(path))),
        (None, None) => Err(None),
    };
    let bytes = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(Some(why))) => return Ok(placeholder(&why)),
        _ => return Err(MISSING),
    };
    Ok(match kind {
        Some(kind) => ([(CONTENT_TYPE, kind), (CACHE_CONTROL, CACHE)], bytes).into_response(),
        None => {
            let headers = [
                (CONTENT_TYPE, "application/octet-stream"),
                (CONTENT_DISPOSITION, "attachment"),
                (CACHE_CONTROL, CACHE),
            ];
            (headers, bytes).into_response()
        }
    })
}

/// A picture in place of one that is gone, which says why: 410, so that no program takes it for the real one.
fn placeholder(why: &str) -> Response {
    let mut lines: Vec<String> = vec![String::new()];
    for word in why.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < PLACEHOLDER_LINE_BYTES => line.extend([" ", word]),
            _ => lines.push(word.to_owned()),
        }
    }
    let escape = |text: &String| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let texts: String = lines
        .iter()
        .enumerate()
        .map(|(at, line)| format!("<text x=\"160\" y=\"{}\">{}</text>", 110 + 22 * at, escape(line)))
        .collect();
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 320 240\" width=\"320\" height=\"240\">\
         <rect width=\"320\" height=\"240\" fill=\"#e4e6e8\"/>\
         <g font-family=\"sans-serif\" font-size=\"14\" fill=\"#3c4349\" text-anchor=\"middle\">{texts}</g></svg>"
    );
    let headers = [(CONTENT_TYPE, "image/svg+xml"), (CACHE_CONTROL, "no-store")];
    (StatusCode::GONE, headers, svg).into_response()
}

/// A relative path of plain names; `None` for anything that climbs, hides or starts at the root.
fn safe_path(text: &str) -> Option<PathBuf> {
    if text.is_empty()
        || text.contains(['\\', '\0'])
        || text.split('/').any(|name| name.is_empty() || name.starts_with('.'))
    {
        return None;
    }
    let path = PathBuf::from(text);
    path.components().all(|component| matches!(component, Component::Normal(_))).then_some(path)
}

/// Read a file whose real place, links resolved, is below `root`.
fn read_below(root: &Path, relative: &Path) -> Option<Vec<u8>> {
    let path = root.join(relative).canonicalize().ok()?;
    if !path.starts_with(root) {
        tracing::warn!(path = %path.display(), "an artifact link leads out of the artifacts folder, not served");
        return None;
    }
    // Asked before opening: opening a FIFO or a device would hang or act.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    let file = std::fs::File::open(&path).ok()?;
    let mut bytes = Vec::new();
    let read = file.take(limits::IMAGE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (read as u64 <= limits::IMAGE_FILE_BYTES_MAX).then_some(bytes)
}

/// Type of the pictures that a browser may show; the rest is offered as a download. SVG can carry scripts and is not shown.
fn content_type(path: &Path) -> Option<&'static str> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => Some("image/jpeg"),
        "png" => Some("image/png"),
        "webp" => Some("image/webp"),
        "bmp" => Some("image/bmp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{content_type, read_below, safe_path};

    #[test]
    fn paths_that_climb_hide_or_start_at_the_root_are_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.hidden", "a\\..\\b", "a\0b", "a/"] {
            assert_eq!(safe_path(path), None, "{path:?}");
        }
        assert!(safe_path("2026/11/21/x.jpg").is_some());
    }

    #[test]
    fn a_link_out_of_the_folder_and_a_folder_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("artifacts").canonicalize().unwrap_or_else(|_| {
            std::fs::create_dir(folder.path().join("artifacts")).unwrap();
            folder.path().join("artifacts").canonicalize().unwrap()
        });
        std::fs::write(folder.path().join("secret.jpg"), b"s").unwrap();
        std::fs::write(root.join("ok.jpg"), b"ok").unwrap();
        std::fs::create_dir(root.join("folder.jpg")).unwrap();
        std::os::unix::fs::symlink("../secret.jpg", root.join("link.jpg")).unwrap();
        assert_eq!(read_below(&root, Path::new("ok.jpg")).unwrap(), b"ok");
        assert_eq!(read_below(&root, Path::new("link.jpg")), None);
        assert_eq!(read_below(&root, Path::new("folder.jpg")), None);
        assert_eq!(read_below(&root, Path::new("none.jpg")), None);
    }

    #[test]
    fn only_plain_pictures_are_shown() {
        assert_eq!(content_type(Path::new("a/B.JPG")), Some("image/jpeg"));
        assert_eq!(content_type(Path::new("a.svg")), None);
        assert_eq!(content_type(Path::new("a.html")), None);
        assert_eq!(content_type(Path::new("a")), None);
    }
}
