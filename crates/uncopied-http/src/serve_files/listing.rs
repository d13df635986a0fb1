//! Lists of a directory's files, as HTML or JSON.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use http::header::{CONTENT_TYPE, VARY};
use http::{HeaderName, HeaderValue};
use rustix::fs::{AtFlags, Dir, FileType};

use super::cache::headers::LAST_SECOND;
use super::resolve::path::{Asked, escape, visible};
use super::resolve::root::Root;
use crate::file_stat::Facts;
use crate::open_file::Wait;

/// The most names that are listed: a directory of millions must not fill the memory.
const MAX_ITEMS: usize = 100_000;

/// Says that names were left out, and after how many.
const TRUNCATED: HeaderName = HeaderName::from_static("x-listing-truncated");

/// A directory's files, written out.
#[derive(Debug)]
pub(super) struct Listing {
    text: String,
    json: bool,
    truncated: bool,
}

impl Listing {
    /// The headers that belong to it, and its text.
    pub(super) fn into_parts(
        self,
    ) -> (impl IntoIterator<Item = (HeaderName, HeaderValue)>, String) {
        let media = match self.json {
            true => "application/json; charset=utf-8",
            false => "text/html; charset=utf-8",
        };
        let fields = [
            Some((CONTENT_TYPE, HeaderValue::from_static(media))),
            Some((VARY, HeaderValue::from_static("accept"))),
            self.truncated.then(|| (TRUNCATED, MAX_ITEMS.into())),
        ];
        (fields.into_iter().flatten(), self.text)
    }
}

/// One file or directory.
#[derive(Debug)]
struct Item {
    name: Vec<u8>,
    directory: bool,
    len: u64,
    modified: i64,
}

/// Lists `dir`, which is the directory that was asked for. May wait for the disk.
pub(super) fn make(
    root: &Root,
    asked: &Asked,
    dir: File,
    hidden: bool,
    json: bool,
) -> io::Result<Listing> {
    let (mut items, truncated) = read(root, asked, dir, hidden)?;
    items.sort_unstable_by(|a, b| (!a.directory, &a.name).cmp(&(!b.directory, &b.name)));
    let text = match json {
        true => to_json(&items),
        false => to_html(asked, &items, truncated),
    };
    Ok(Listing {
        text,
        json,
        truncated,
    })
}

/// What would be served of a directory, and whether more was left out.
fn read(root: &Root, asked: &Asked, dir: File, hidden: bool) -> io::Result<(Vec<Item>, bool)> {
    let mut items = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." || !(hidden || visible(name, asked.is_root())) {
            continue;
        }
        // A file that vanishes while the directory is read is simply not there.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let facts = match entry.file_type() {
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => None,
            FileType::Symlink => follow(root, asked, name),
            _ => match Facts::at(&dir, entry.file_name(), flags) {
                // Not every file system tells the kind with the name.
                Ok(facts) if !facts.is_regular() && !facts.is_directory() => {
                    follow(root, asked, name)
                }
                facts => facts.ok(),
            },
        };
        let Some(facts) = facts.filter(|facts| facts.is_regular() || facts.is_directory()) else {
            continue;
        };
        if items.len() == MAX_ITEMS {
            return Ok((items, true));
        }
        items.push(Item {
            name: name.to_vec(),
            directory: facts.is_directory(),
            len: facts.len(),
            modified: facts.modified().0,
        });
    }
    Ok((items, false))
}

/// What a link leads to, if a request for it would be answered.
fn follow(root: &Root, asked: &Asked, name: &[u8]) -> Option<Facts> {
    let file = root.open(&asked.child(name).ok()?, Wait::ForDisk).ok()?;
    Facts::of(&file).ok()
}

fn to_html(asked: &Asked, items: &[Item], truncated: bool) -> String {
    let slash = if asked.is_root() { "" } else { "/" };
    let title = html(&format!(
        "/{}{slash}",
        String::from_utf8_lossy(asked.relative())
    ));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Index of {title}</title>\n\
         <style>body{{font-family:sans-serif;margin:2em}}td{{padding:0 2em 0 0}}\
         td+td{{white-space:nowrap}}</style>\n</head>\n<body>\n<h1>Index of {title}</h1>\n<table>\n"
    );
    if !asked.is_root() {
        page.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n");
    }
    for item in items {
        let slash = if item.directory { "/" } else { "" };
        let name = html(&String::from_utf8_lossy(&item.name));
        let size = if item.directory {
            String::new()
        } else {
            size(item.len)
        };
        let date = date(item.modified).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "<tr><td><a href=\"./{}{slash}\">{name}{slash}</a></td><td>{size}</td><td>{date}</td></tr>",
            escape(&item.name)
        );
    }
    page.push_str("</table>\n");
    if truncated {
        let _ = writeln!(page, "<p>Only {MAX_ITEMS} of the names are shown.</p>");
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// The shape of nginx's `autoindex_format json`.
fn to_json(items: &[Item]) -> String {
    let mut text = String::from("[");
    for (at, item) in items.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let kind = if item.directory { "directory" } else { "file" };
        let name = json(&String::from_utf8_lossy(&item.name));
        let date = date(item.modified).map_or("null".to_owned(), |date| format!("\"{date}\""));
        let _ = write!(
            text,
            "{comma}\n{{\"name\":{name},\"type\":\"{kind}\",\"mtime\":{date}"
        );
        if !item.directory {
            let _ = write!(text, ",\"size\":{}", item.len);
        }
        text.push('}');
    }
    text.push_str("\n]\n");
    text
}

fn date(seconds: i64) -> Option<String> {
    let seconds = u64::try_from(seconds)
        .ok()
        .filter(|at| *at <= LAST_SECOND)?;
    Some(httpdate::fmt_http_date(
        UNIX_EPOCH + Duration::from_secs(seconds),
    ))
}

/// A length for people: the exact bytes up to 1023, else three or four digits and a unit.
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

fn html(text: &str) -> String {
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

fn json(text: &str) -> String {
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
    fn html_has_no_live_character_left() {
        assert_eq!(
            html("<a href=\"x\">'&"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;"
        );
    }

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(json("a\"b\\c\n\u{7f}é"), "\"a\\\"b\\\\c\\u000a\\u007fé\"");
    }

    #[test]
    fn sizes_are_exact_when_small() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn dates_that_http_cannot_write_are_left_out() {
        assert_eq!(date(0).as_deref(), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!(date(-1), None);
        assert!(date(253_402_300_799).is_some());
        assert_eq!(date(253_402_300_800), None);
        assert_eq!(date(i64::MAX), None);
    }
}
