//! Conditional requests: the effect of preconditions on responses. The crate's unit tests cover the
//! complete table of preconditions.

use http::StatusCode;

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
    let service = site.serve();
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
