//! Range requests: the bytes and headers of the responses. The crate's unit tests cover the syntax
//! of the `Range` header.

use http::StatusCode;

use crate::test_site::{TestResponse, TestSite, get, get_with};

const TEXT: &str = "abcdefghijklmnopqrstuvwxyz";

async fn range(value: &str) -> TestResponse {
    let site = TestSite::new(&[("a.txt", TEXT)]);
    let service = site.serve();
    get_with(&service, "/a.txt", &[("range", value)]).await
}

#[tokio::test]
async fn a_single_range_is_partial_content() {
    for (value, content, content_range) in [
        ("bytes=0-0", "a", "bytes 0-0/26"),
        ("bytes=2-4", "cde", "bytes 2-4/26"),
        ("bytes=23-", "xyz", "bytes 23-25/26"),
        ("bytes=23-99", "xyz", "bytes 23-25/26"),
        ("bytes=-2", "yz", "bytes 24-25/26"),
        ("bytes=-99", TEXT, "bytes 0-25/26"),
        ("bytes=3-5,4-8", "defghi", "bytes 3-8/26"),
    ] {
        let response = range(value).await;
        assert_eq!(response.status, StatusCode::PARTIAL_CONTENT, "{value}");
        assert_eq!(response.text(), content, "{value}");
        assert_eq!(response.header("content-range"), content_range);
        assert_eq!(response.header("content-length"), content.len().to_string());
        assert_eq!(response.header("content-type"), "text/plain; charset=utf-8");
    }
}

#[tokio::test]
async fn an_unsatisfiable_range_gets_the_length_of_the_file() {
    for value in ["bytes=26-", "bytes=-0", "bytes=99999999999999999999-"] {
        let response = range(value).await;
        assert_eq!(
            response.status,
            StatusCode::RANGE_NOT_SATISFIABLE,
            "{value}"
        );
        assert_eq!(response.header("content-range"), "bytes */26");
    }
}

#[tokio::test]
async fn an_invalid_range_gets_the_whole_file() {
    let too_many = format!("bytes={}", ["0-0"; 17].join(","));
    for value in [
        "lines=0-1",
        "bytes=5-4",
        "bytes=x",
        "bytes=0-,0-,0-",
        &too_many,
    ] {
        let response = range(value).await;
        assert_eq!(
            (response.status, response.text()),
            (StatusCode::OK, TEXT),
            "{value}"
        );
        assert_eq!(response.header("content-range"), "");
    }
    let site = TestSite::new(&[("a.txt", TEXT), ("empty", "")]);
    let service = site.serve();
    let twice = [("range", "bytes=0-0"), ("range", "bytes=1-1")];
    assert_eq!(
        get_with(&service, "/a.txt", &twice).await.status,
        StatusCode::OK
    );
    let empty = get_with(&service, "/empty", &[("range", "bytes=0-")]).await;
    assert_eq!((empty.status, empty.body.len()), (StatusCode::OK, 0));
}

#[tokio::test]
async fn several_ranges_are_sent_as_multipart() {
    let response = range("bytes=20-21,0-2,-1").await;
    assert_eq!(response.status, StatusCode::PARTIAL_CONTENT);
    let media = response.header("content-type");
    let boundary = media
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    assert_eq!(boundary.len(), 32);
    let part = |range: &str, content: &str| {
        format!(
            "--{boundary}\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-range: bytes {range}/26\r\n\r\n{content}\r\n"
        )
    };
    let parts = [part("20-21", "uv"), part("0-2", "abc"), part("25-25", "z")].concat();
    assert_eq!(response.text(), format!("{parts}--{boundary}--\r\n"));
    assert_eq!(
        response.header("content-length"),
        response.body.len().to_string()
    );
    assert_eq!(response.header("content-range"), "");
}

#[tokio::test]
async fn no_two_responses_share_a_boundary() {
    let boundaries = [range("bytes=0-0,2-2").await, range("bytes=0-0,2-2").await];
    assert_ne!(
        boundaries[0].header("content-type"),
        boundaries[1].header("content-type")
    );
}

#[tokio::test]
async fn ranges_may_lie_beyond_four_gib() {
    let site = TestSite::new(&[("huge", "")]);
    let len = (5_u64 << 30) + 7;
    let file = std::fs::File::options()
        .write(true)
        .open(site.path("huge"))
        .unwrap();
    file.set_len(len).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"the end", len - 7).unwrap();
    let service = site.serve();
    let response = get_with(&service, "/huge", &[("range", "bytes=-7")]).await;
    assert_eq!(response.text(), "the end");
    let expected = format!("bytes {}-{}/{len}", len - 7, len - 1);
    assert_eq!(response.header("content-range"), expected);
    let several = get_with(
        &service,
        "/huge",
        &[("range", "bytes=0-0,4294967296-4294967297")],
    )
    .await;
    assert!(
        several
            .text()
            .contains("content-range: bytes 4294967296-4294967297/5368709127")
    );
    assert_eq!(
        several.header("content-length"),
        several.body.len().to_string()
    );
}

#[tokio::test]
async fn ranges_apply_to_the_negotiated_representation() {
    let site = TestSite::new(&[("a.txt", TEXT), ("a.txt.gz", "PACKED")]);
    let service = site.serve();
    let headers = [("range", "bytes=1-2"), ("accept-encoding", "gzip")];
    let response = get_with(&service, "/a.txt", &headers).await;
    assert_eq!(
        (response.text(), response.header("content-range")),
        ("AC", "bytes 1-2/6")
    );
    assert_eq!(response.header("content-encoding"), "gzip");
    assert_eq!(get(&service, "/a.txt").await.text(), TEXT);
}
