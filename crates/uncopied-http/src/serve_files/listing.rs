//! Directory listings, as HTML or JSON.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use http::header::{CONTENT_TYPE, VARY};
use http::{HeaderName, HeaderValue};
use rustix::fs::{AtFlags, Dir, FileType};

use super::cache::headers::MAX_HTTP_DATE_SECONDS;
use super::resolve::path::{RequestPath, is_visible, percent_encode_name};
use super::resolve::root::Root;
use crate::file_stat::FileStat;
use crate::open_file::DiskAccess;

/// The maximum number of entries in a listing, so that a directory with millions of files does not
/// exhaust the memory.
const MAX_LISTED_NAMES: usize = 100_000;

/// The header that marks an incomplete listing. Its value is the number of entries in the listing.
const TRUNCATED_HEADER: HeaderName = HeaderName::from_static("x-listing-truncated");

/// A listing, rendered as HTML or JSON.
#[derive(Debug)]
pub(super) struct Listing {
    text: String,
    json: bool,
    truncated: bool,
}

impl Listing {
    /// Returns the listing's response headers and its text.
    pub(super) fn into_parts(
        self,
    ) -> (impl IntoIterator<Item = (HeaderName, HeaderValue)>, String) {
        let media_type = match self.json {
            true => "application/json; charset=utf-8",
            false => "text/html; charset=utf-8",
        };
        let fields = [
            Some((CONTENT_TYPE, HeaderValue::from_static(media_type))),
            Some((VARY, HeaderValue::from_static("accept"))),
            self.truncated
                .then(|| (TRUNCATED_HEADER, MAX_LISTED_NAMES.into())),
        ];
        (fields.into_iter().flatten(), self.text)
    }
}

/// One file or directory in a listing.
#[derive(Debug)]
struct ListingEntry {
    name: Vec<u8>,
    is_directory: bool,
    len: u64,
    modified: i64,
}

/// Lists `dir`, the open directory at `path`. May wait for the disk.
pub(super) fn list(
    root: &Root,
    path: &RequestPath,
    dir: File,
    hidden: bool,
    json: bool,
) -> io::Result<Listing> {
    let (mut entries, truncated) = read_entries(root, path, dir, hidden)?;
    entries.sort_unstable_by(|a, b| (!a.is_directory, &a.name).cmp(&(!b.is_directory, &b.name)));
    let text = match json {
        true => to_json(&entries),
        false => to_html(path, &entries, truncated),
    };
    Ok(Listing {
        text,
        json,
        truncated,
    })
}

/// Returns at most [`MAX_LISTED_NAMES`] of the directory's entries that requests can reach, and
/// whether there are more of them.
fn read_entries(
    root: &Root,
    path: &RequestPath,
    dir: File,
    hidden: bool,
) -> io::Result<(Vec<ListingEntry>, bool)> {
    let mut entries = Vec::new();
    for dir_entry in Dir::read_from(&dir)? {
        let dir_entry = dir_entry?;
        let name = dir_entry.file_name().to_bytes();
        if name == b"." || name == b".." || !(hidden || is_visible(name, path.is_root())) {
            continue;
        }
        // Get the entry's metadata. `None` leaves the entry out of the listing: it is a special
        // file, a link that requests cannot follow, or was deleted while the directory was being
        // read.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = match dir_entry.file_type() {
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => None,
            FileType::Symlink => follow_link(root, path, name),
            _ => match FileStat::at(&dir, dir_entry.file_name(), flags) {
                // This may still be a symbolic link, because not every file system reports the file
                // type along with the name.
                Ok(stat) if !stat.is_regular() && !stat.is_directory() => {
                    follow_link(root, path, name)
                }
                stat => stat.ok(),
            },
        };
        let Some(stat) = stat.filter(|stat| stat.is_regular() || stat.is_directory()) else {
            continue;
        };
        if entries.len() == MAX_LISTED_NAMES {
            return Ok((entries, true));
        }
        entries.push(ListingEntry {
            name: name.to_vec(),
            is_directory: stat.is_directory(),
            len: stat.len(),
            modified: stat.modified().0,
        });
    }
    Ok((entries, false))
}

/// Returns the metadata of a link's target, if a request for the link would be served.
fn follow_link(root: &Root, path: &RequestPath, name: &[u8]) -> Option<FileStat> {
    let file = root
        .open(&path.child(name).ok()?, DiskAccess::MayBlock)
        .ok()?;
    FileStat::of(&file).ok()
}

fn to_html(path: &RequestPath, entries: &[ListingEntry], truncated: bool) -> String {
    let slash = if path.is_root() { "" } else { "/" };
    let title = escape_html(&format!(
        "/{}{slash}",
        String::from_utf8_lossy(path.relative())
    ));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Index of {title}</title>\n\
         <style>body{{font-family:sans-serif;margin:2em}}td{{padding:0 2em 0 0}}\
         td+td{{white-space:nowrap}}</style>\n</head>\n<body>\n<h1>Index of {title}</h1>\n<table>\n"
    );
    if !path.is_root() {
        page.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n");
    }
    for entry in entries {
        let slash = if entry.is_directory { "/" } else { "" };
        let name = escape_html(&String::from_utf8_lossy(&entry.name));
        let size = if entry.is_directory {
            String::new()
        } else {
            size(entry.len)
        };
        let date = date(entry.modified).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "<tr><td><a href=\"./{}{slash}\">{name}{slash}</a></td><td>{size}</td><td>{date}</td></tr>",
            percent_encode_name(&entry.name)
        );
    }
    page.push_str("</table>\n");
    if truncated {
        let _ = writeln!(
            page,
            "<p>Only {MAX_LISTED_NAMES} of the names are shown.</p>"
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Renders the entries in the format of nginx's `autoindex_format json`, with one more member:
/// `href` is the reference to the entry, relative to the listing. A name that is not UTF-8 cannot
/// be written in JSON, so a client could not make a URL of `name`.
fn to_json(entries: &[ListingEntry]) -> String {
    let mut text = String::from("[");
    for (at, entry) in entries.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let kind = if entry.is_directory {
            "directory"
        } else {
            "file"
        };
        let name = escape_json(&String::from_utf8_lossy(&entry.name));
        let date = date(entry.modified).map_or("null".to_owned(), |date| format!("\"{date}\""));
        let _ = write!(
            text,
            "{comma}\n{{\"name\":{name},\"type\":\"{kind}\",\"mtime\":{date}"
        );
        if !entry.is_directory {
            let _ = write!(text, ",\"size\":{}", entry.len);
        }
        let slash = if entry.is_directory { "/" } else { "" };
        let href = percent_encode_name(&entry.name);
        let _ = write!(text, ",\"href\":\"./{href}{slash}\"}}");
    }
    text.push_str("\n]\n");
    text
}

fn date(seconds: i64) -> Option<String> {
    let seconds = u64::try_from(seconds)
        .ok()
        .filter(|at| *at <= MAX_HTTP_DATE_SECONDS)?;
    Some(httpdate::fmt_http_date(
        UNIX_EPOCH + Duration::from_secs(seconds),
    ))
}

/// Formats a length for humans: the exact number of bytes if there are fewer than 1024, and
/// otherwise a number with one decimal place and a binary unit.
fn size(len: u64) -> String {
    let mut scaled = len as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if scaled < 1024.0 {
            break;
        }
        scaled /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{len} B")
    } else {
        format!("{scaled:.1} {unit}")
    }
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn escape_json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 2);
    escaped.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped.push('"');
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_special_characters_are_escaped() {
        assert_eq!(
            escape_html("<a href=\"x\">'&"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;"
        );
    }

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(
            escape_json("a\"b\\c\n\u{7f}é"),
            "\"a\\\"b\\\\c\\u000a\\u007fé\""
        );
    }

    #[test]
    fn small_sizes_are_exact() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn dates_that_http_cannot_express_are_left_out() {
        assert_eq!(date(0).as_deref(), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!(date(-1), None);
        assert!(date(253_402_300_799).is_some());
        assert_eq!(date(253_402_300_800), None);
        assert_eq!(date(i64::MAX), None);
    }
}
