//! Conditional requests: the effect of preconditions on responses. The crate's unit tests cover the
//! complete table of preconditions.

use http::StatusCode;

use uncopied_http::{EntityTags, FileStat};

use crate::test_site::{TestSite, get, get_with};

const LONG_AGO: &str = "Thu, 01 Jan 1970 00:00:01 GMT";

#[tokio::test]
async fn each_precondition_gives_its_status() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    site.wait_until_stable("a.txt");
    let service = site.serve();
    let whole = get(&service, "/a.txt").await;
    let (etag, date) = (whole.header("etag"), whole.header("last-modified"));
    assert!(
        etag.starts_with('"'),
        "the tag of a stable file is strong: {etag}"
    );
    let weak = format!("W/{etag}");
    let some = ("range", "bytes=1-2");
    for (headers, status) in [
        (&[("if-match", etag)][..], 200),
        (&[("if-match", &weak)], 412),
        (&[("if-match", "\"x\""), ("if-none-match", etag), some], 412),
        (
            &[("if-match", etag), ("if-unmodified-since", LONG_AGO)],
            200,
        ),
        (&[("if-unmodified-since", date)], 200),
        (&[("if-unmodified-since", LONG_AGO)], 412),
        (
            &[("if-unmodified-since", LONG_AGO), ("if-none-match", etag)],
            412,
        ),
        (&[("if-none-match", etag)], 304),
        (&[("if-none-match", &weak)], 304),
        (&[("if-none-match", etag), some], 304),
        (
            &[("if-none-match", "\"x\""), ("if-modified-since", date)],
            200,
        ),
        (&[("if-modified-since", date)], 304),
        (&[("if-modified-since", LONG_AGO)], 200),
        (&[("if-modified-since", "not a date")], 200),
        (&[("if-match", etag), ("if-none-match", "\"x\""), some], 206),
        (&[("if-range", etag), some], 206),
        (&[("if-range", date), some], 206),
        (&[("if-range", &weak), some], 200),
        (&[("if-range", "\"x\""), some], 200),
        (&[("if-range", LONG_AGO), some], 200),
        (&[("if-range", "\"x\""), ("range", "bytes=9-")], 200),
        (&[("if-range", etag), ("range", "bytes=9-")], 416),
    ] {
        let response = get_with(&service, "/a.txt", headers).await;
        assert_eq!(response.status.as_u16(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_precondition_does_not_hide_that_a_file_is_missing() {
    let site = TestSite::new(&[]);
    let service = site.serve();
    let response = get_with(&service, "/no", &[("if-match", "*")]).await;
    assert_eq!(response.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_tag_is_weak_until_the_file_is_stable_and_then_changes() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    let service = site.serve();
    let moving = get(&service, "/a.txt").await;
    assert!(moving.header("etag").starts_with("W/\""));
    let some = ("range", "bytes=1-2");
    for validator in [moving.header("etag"), moving.header("last-modified")] {
        let response = get_with(&service, "/a.txt", &[("if-range", validator), some]).await;
        assert_eq!(response.status, StatusCode::OK, "{validator} is not strong");
    }

    site.wait_until_stable("a.txt");
    let stable = get(&service, "/a.txt").await;
    assert!(stable.header("etag").starts_with('"'));
    // The file could have changed after the weak tag was sent, but without a new timestamp. So the
    // weak tag must no longer match, and a client that sends it must get the whole file again.
    let response = get_with(
        &service,
        "/a.txt",
        &[("if-none-match", moving.header("etag"))],
    )
    .await;
    assert_eq!(response.status, StatusCode::OK);
}

#[tokio::test]
async fn a_change_that_sets_the_modification_time_back_gets_another_tag() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    let builder = site.builder().entity_tags(EntityTags::Strict);
    let service = builder.build().unwrap();
    let before = get(&service, "/a.txt").await;
    let modified = std::fs::metadata(site.path("a.txt"))
        .unwrap()
        .modified()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    site.write("a.txt", "HELLO");
    let file = std::fs::File::options()
        .write(true)
        .open(site.path("a.txt"))
        .unwrap();
    file.set_modified(modified).unwrap();
    let after = get(&service, "/a.txt").await;
    assert_eq!(after.text(), "HELLO");
    assert_eq!(
        after.header("last-modified"),
        before.header("last-modified")
    );
    assert_ne!(after.header("etag"), before.header("etag"));
}

/// Two servers of a fleet have copies of the same files, with the same modification times but with
/// other inodes, made at other times. A client may revalidate and resume at either.
#[tokio::test]
async fn two_servers_with_the_same_files_send_the_same_tags() {
    let files = [("a.txt", "hello"), ("a.txt.gz", "packed")];
    let sites = [TestSite::new(&files), TestSite::new(&files)];
    let modified = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    let touch = |site: &TestSite, name| {
        let file = std::fs::File::options().write(true).open(site.path(name));
        let file = file.unwrap();
        file.set_modified(modified).unwrap();
        FileStat::of(&file).unwrap().changed()
    };
    for (name, _) in files {
        let first = touch(&sites[0], name);
        // Repeat until the kernel's clock has ticked.
        while touch(&sites[1], name) == first {}
    }
    for site in &sites {
        site.wait_until_stable("a.txt.gz");
    }
    let tags = async |kind, accept| {
        let mut tags = Vec::new();
        for site in &sites {
            let service = site.builder().entity_tags(kind).build().unwrap();
            let headers = [("accept-encoding", accept)];
            let response = get_with(&service, "/a.txt", &headers).await;
            tags.push(response.header("etag").to_owned());
        }
        tags
    };
    for accept in ["identity", "gzip"] {
        let mtime = tags(EntityTags::default(), accept).await;
        assert_eq!(mtime[0], mtime[1]);
        assert!(mtime[0].starts_with("\"6553f100.75bcd15-"), "{mtime:?}");
        let strict = tags(EntityTags::Strict, accept).await;
        assert_ne!(
            strict[0], strict[1],
            "the time of the status change differs"
        );
        assert_eq!(tags(EntityTags::Off, accept).await, ["", ""]);
    }
}

#[tokio::test]
async fn without_tags_the_date_is_the_only_validator() {
    let site = TestSite::new(&[("a.txt", "hello")]);
    site.wait_until_stable("a.txt");
    let tag = get(&site.serve(), "/a.txt").await.header("etag").to_owned();
    let builder = site.builder().entity_tags(EntityTags::Off);
    let service = builder.build().unwrap();
    let whole = get(&service, "/a.txt").await;
    let date = whole.header("last-modified");
    let some = ("range", "bytes=1-2");
    for (headers, status) in [
        (&[("if-none-match", &*tag)][..], 200),
        (&[("if-none-match", &tag), ("if-modified-since", date)], 200),
        (&[("if-none-match", "*")], 304),
        (&[("if-modified-since", date)], 304),
        (&[("if-match", &tag)], 412),
        (&[("if-match", "*")], 200),
        (&[("if-unmodified-since", LONG_AGO)], 412),
        (&[("if-range", &tag), some], 200),
        (&[("if-range", date), some], 206),
        (&[some], 206),
    ] {
        let response = get_with(&service, "/a.txt", headers).await;
        assert_eq!(response.status.as_u16(), status, "{headers:?}");
        assert_eq!(response.header("etag"), "");
    }
}
