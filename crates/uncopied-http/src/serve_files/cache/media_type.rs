//! Media types by file name extension.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use http::HeaderValue;

/// The media type of a file.
#[derive(Clone, Debug)]
pub(crate) struct MediaType {
    /// The value of `Content-Type`.
    pub(crate) value: HeaderValue,
    /// Whether it is worthwhile to look for precompressed files. This is false for formats that are
    /// already compressed.
    pub(crate) is_compressible: bool,
}

impl MediaType {
    /// Returns the media type for the extension of `path`.
    pub(crate) fn of(path: &[u8]) -> Self {
        let path = Path::new(OsStr::from_bytes(path));
        let essence = mime_guess::from_path(path)
            .first_raw()
            .unwrap_or("application/octet-stream");
        Self {
            value: with_charset(essence),
            is_compressible: is_compressible(essence),
        }
    }
}

/// Adds `charset=utf-8` to text types. Common types have static values, because cloning a static
/// value does not modify a reference count that is shared between threads.
fn with_charset(essence: &'static str) -> HeaderValue {
    let common = match essence {
        "text/html" => "text/html; charset=utf-8",
        "text/css" => "text/css; charset=utf-8",
        "text/plain" => "text/plain; charset=utf-8",
        "text/javascript" => "text/javascript; charset=utf-8",
        "text/xml" => "text/xml; charset=utf-8",
        "application/json" => "application/json; charset=utf-8",
        "image/svg+xml" => "image/svg+xml; charset=utf-8",
        _ if !is_text(essence) => essence,
        _ => {
            return HeaderValue::try_from(format!("{essence}; charset=utf-8"))
                .unwrap_or(HeaderValue::from_static(essence));
        }
    };
    HeaderValue::from_static(common)
}

fn is_text(essence: &str) -> bool {
    essence.starts_with("text/")
        || essence.ends_with("+xml")
        || essence.ends_with("+json")
        || matches!(
            essence,
            "application/javascript" | "application/json" | "application/xml"
        )
}

fn is_compressible(essence: &str) -> bool {
    match essence.split_once('/') {
        Some(("image", kind)) => {
            matches!(kind, "svg+xml" | "bmp" | "x-icon" | "vnd.microsoft.icon")
        }
        Some(("audio" | "video", _)) => false,
        Some(("font", kind)) => !matches!(kind, "woff" | "woff2"),
        Some(("application", kind)) => !matches!(
            kind,
            "font-woff"
                | "font-woff2"
                | "gzip"
                | "java-archive"
                | "vnd.rar"
                | "x-7z-compressed"
                | "x-bzip2"
                | "x-gzip"
                | "x-rar-compressed"
                | "x-xz"
                | "zip"
                | "zstd"
        ),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_determines_the_type() {
        for (path, value) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/style.CSS", "text/css; charset=utf-8"),
            ("app.js", "text/javascript; charset=utf-8"),
            ("data.json", "application/json; charset=utf-8"),
            ("feed.xml", "text/xml; charset=utf-8"),
            ("logo.svg", "image/svg+xml; charset=utf-8"),
            ("table.csv", "text/csv; charset=utf-8"),
            (
                "site.webmanifest",
                "application/manifest+json; charset=utf-8",
            ),
            ("photo.png", "image/png"),
            ("code.wasm", "application/wasm"),
            ("noextension", "application/octet-stream"),
            ("odd.zzzz", "application/octet-stream"),
        ] {
            assert_eq!(MediaType::of(path.as_bytes()).value, value, "{path}");
        }
    }

    #[test]
    fn compressed_formats_are_not_compressible() {
        for (path, expected) in [
            ("a.html", true),
            ("a.svg", true),
            ("a.wasm", true),
            ("a.tar", true),
            ("unknown", true),
            ("a.png", false),
            ("a.mp4", false),
            ("a.woff2", false),
            ("a.zip", false),
            ("a.gz", false),
        ] {
            assert_eq!(
                MediaType::of(path.as_bytes()).is_compressible,
                expected,
                "{path}"
            );
        }
    }
}
