//! Media types by file name extension.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use http::HeaderValue;

use crate::serve_files::request::negotiate::Coding;

/// The media type of a file.
#[derive(Clone, Debug)]
pub(crate) struct MediaType {
    /// The value of `Content-Type`.
    pub(crate) value: HeaderValue,
    /// Whether it is worthwhile to look for precompressed files. This is false for formats that are
    /// already compressed.
    pub(crate) is_compressible: bool,
    /// The content coding that the format implies, as `.svgz` is SVG that was compressed.
    pub(crate) coding: Option<Coding>,
}

/// Media types that the configuration assigns to extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfiguredTypes(Vec<(Vec<u8>, HeaderValue)>);

impl ConfiguredTypes {
    /// Assigns `value` to names that end with a dot and `extension`.
    pub(crate) fn add(&mut self, extension: &str, value: HeaderValue) {
        let extension = extension.trim_start_matches('.');
        self.0.push((format!(".{extension}").into(), value));
    }

    /// Returns a description of the first assignment that is malformed.
    pub(crate) fn malformed(&self) -> Option<String> {
        let is_malformed = |(suffix, value): &&(Vec<u8>, HeaderValue)| {
            let has_slash = value.as_bytes().contains(&b'/');
            suffix.len() < 2 || suffix.contains(&b'/') || !has_slash
        };
        let (suffix, value) = self.0.iter().find(is_malformed)?;
        let suffix = String::from_utf8_lossy(suffix);
        Some(format!("{suffix:?} and {value:?}"))
    }

    /// Returns the type of the longest extension that the name at the end of `path` has. Of two
    /// types for the same extension, the one that was added last applies.
    fn of(&self, path: &[u8]) -> Option<&HeaderValue> {
        let name = path.rsplit(|byte| *byte == b'/').next()?;
        let has = |suffix: &[u8]| {
            // A name like `.html` has no extension.
            let start = name.len().checked_sub(suffix.len()).filter(|len| *len > 0);
            start.is_some_and(|start| name[start..].eq_ignore_ascii_case(suffix))
        };
        let matching = self.0.iter().filter(|(suffix, _)| has(suffix));
        let longest = matching.max_by_key(|(suffix, _)| suffix.len());
        longest.map(|(_, value)| value)
    }
}

impl MediaType {
    /// Returns the media type for the extension of `path`.
    pub(crate) fn of(path: &[u8], configured: &ConfiguredTypes) -> Self {
        if let Some(value) = configured.of(path) {
            let essence = value.to_str().unwrap_or_default().split(';').next();
            let essence = essence.unwrap_or_default().trim().to_ascii_lowercase();
            return Self {
                is_compressible: is_compressible(&essence),
                value: value.clone(),
                coding: None,
            };
        }
        let path = Path::new(OsStr::from_bytes(path));
        let essence = mime_guess::from_path(path)
            .first_raw()
            .unwrap_or("application/octet-stream");
        // RFC 9239 makes this the only type for JavaScript, including modules (`.mjs`).
        let essence = match essence {
            "application/javascript" => "text/javascript",
            essence => essence,
        };
        let extension = path.extension().unwrap_or_default();
        let is_svgz = extension.eq_ignore_ascii_case("svgz");
        Self {
            value: with_charset(essence),
            is_compressible: is_compressible(essence) && !is_svgz,
            coding: is_svgz.then_some(Coding::Gzip),
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
            ("app.mjs", "text/javascript; charset=utf-8"),
            ("logo.svgz", "image/svg+xml; charset=utf-8"),
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
            let media_type = MediaType::of(path.as_bytes(), &ConfiguredTypes::default());
            assert_eq!(media_type.value, value, "{path}");
        }
    }

    #[test]
    fn the_longest_configured_extension_applies() {
        let mut types = ConfiguredTypes::default();
        for (extension, value) in [
            ("gz", "a/first"),
            ("gz", "a/gz"),
            (".tar.gz", "a/tgz"),
            ("SVGZ", "a/svgz"),
        ] {
            types.add(extension, HeaderValue::from_static(value));
        }
        for (path, value) in [
            ("x.gz", "a/gz"),
            ("d.tar.gz/x.GZ", "a/gz"),
            ("d/x.tar.gz", "a/tgz"),
            ("d/.tar.gz", "a/gz"),
            ("d/.gz", "application/octet-stream"),
            ("gz", "application/octet-stream"),
            ("x.svgz", "a/svgz"),
        ] {
            let media_type = MediaType::of(path.as_bytes(), &types);
            assert_eq!(media_type.value, value, "{path}");
            assert_eq!(media_type.coding, None);
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
            ("a.svgz", false),
        ] {
            assert_eq!(
                MediaType::of(path.as_bytes(), &ConfiguredTypes::default()).is_compressible,
                expected,
                "{path}"
            );
        }
    }
}
