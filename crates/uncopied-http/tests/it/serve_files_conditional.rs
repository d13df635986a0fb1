//! Preconditions, as far as they show from outside. The whole table stands next to the pure code.

use http::StatusCode;

use crate::site::{Site, get, get_with};

const LONG_AGO: &str = "Thu, 01 Jan 1970 00:00:01 GMT";

#[tokio::test]
async fn each_step_gives_its_status() {
    let site = Site::new(&[("a.txt", "hello")]);
    site.settle("a.txt");
    let service = site.serve();
    let whole = get(&service, "/a.txt").await;
    let (etag, date) = (whole.header("etag"), whole.header("last-modified"));
    assert!(
        etag.starts_with('"'),
        "the tag of a settled file is strong: {etag}"
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
        let answer = get_with(&service, "/a.txt", headers).await;
        assert_eq!(answer.status.as_u16(), status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_missing_file_stays_missing() {
    let site = Site::new(&[]);
    let service = site.serve();
    let answer = get_with(&service, "/no", &[("if-match", "*")]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_tag_is_weak_until_the_file_has_settled_and_then_another() {
    let site = Site::new(&[("a.txt", "hello")]);
    let service = site.serve();
    let moving = get(&service, "/a.txt").await;
    assert!(moving.header("etag").starts_with("W/\""));
    let some = ("range", "bytes=1-2");
    for validator in [moving.header("etag"), moving.header("last-modified")] {
        let answer = get_with(&service, "/a.txt", &[("if-range", validator), some]).await;
        assert_eq!(answer.status, StatusCode::OK, "{validator} is not strong");
    }

    site.settle("a.txt");
    let settled = get(&service, "/a.txt").await;
    assert!(settled.header("etag").starts_with('"'));
    // What was got while the file may have been in motion is asked for once more.
    let answer = get_with(
        &service,
        "/a.txt",
        &[("if-none-match", moving.header("etag"))],
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_change_that_sets_the_time_back_has_another_tag() {
    let site = Site::new(&[("a.txt", "hello")]);
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
