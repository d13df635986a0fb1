//! Requests for directories: index files, redirects and listings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use http::StatusCode;

use crate::test_site::{TestSite, get, get_with};

#[tokio::test]
async fn the_first_index_that_exists_is_served() {
    let site = TestSite::new(&[("dir/b.html", "b"), ("dir/c.html", "c"), ("dir/file", "")]);
    std::fs::create_dir(site.path("dir/a.html")).unwrap();
    let service = site
        .builder()
        .index(["a.html", "b.html", "c.html"])
        .build()
        .unwrap();
    let response = get(&service, "/dir/").await;
    assert_eq!((response.status, response.text()), (StatusCode::OK, "b"));
    assert_eq!(response.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(
        get(&site.serve(), "/dir/").await.status,
        StatusCode::NOT_FOUND
    );
    let none = site.builder().index([] as [&str; 0]).build().unwrap();
    assert_eq!(get(&none, "/dir/").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_new_index_of_higher_precedence_is_served_at_once() {
    let site = TestSite::new(&[("b.html", "b")]);
    site.wait_until_stable("b.html");
    let service = site.builder().index(["a.html", "b.html"]).build().unwrap();
    for _ in 0..2 {
        assert_eq!(get(&service, "/").await.text(), "b");
    }
    site.write("a.html", "a");
    assert_eq!(get(&service, "/").await.text(), "a");
    std::fs::remove_file(site.path("a.html")).unwrap();
    assert_eq!(get(&service, "/").await.text(), "b");
}

#[tokio::test]
async fn a_directory_without_its_slash_is_redirected() {
    let site = TestSite::new(&[("dir/sub/index.html", "x"), ("bare/file", "")]);
    let service = site.serve();
    for (uri, location) in [
        ("/dir/sub", "./sub/"),
        ("/dir/sub?a=b&c=/d", "./sub/?a=b&c=/d"),
        ("/dir/%73ub", "./sub/"),
    ] {
        let response = get(&service, uri).await;
        assert_eq!(response.status, StatusCode::MOVED_PERMANENTLY, "{uri}");
        assert_eq!(response.header("location"), location);
        assert_eq!(response.header("content-length"), "0");
    }
    // `/bare/` would be a 404, because the directory has no index. So `/bare` must be a 404 as
    // well: a redirect would reveal that the directory exists.
    assert_eq!(get(&service, "/bare").await.status, StatusCode::NOT_FOUND);
    let listing = site.builder().listing(true).build().unwrap();
    assert_eq!(get(&listing, "/bare").await.header("location"), "./bare/");
}

#[tokio::test]
async fn no_redirect_leads_to_another_host() {
    let site = TestSite::new(&[("evil.example/index.html", ""), ("a:b/index.html", "")]);
    symlink("evil.example", site.path("\\evil.example")).unwrap();
    let service = site.serve();
    for (uri, location) in [
        ("//evil.example", "./evil.example/"),
        ("///evil.example", "./evil.example/"),
        ("/%5Cevil.example", "./%5Cevil.example/"),
        ("/a:b", "./a%3Ab/"),
    ] {
        let response = get(&service, uri).await;
        assert_eq!(response.status, StatusCode::MOVED_PERMANENTLY, "{uri}");
        assert_eq!(response.header("location"), location);
    }
}

#[tokio::test]
async fn listings_show_what_would_be_served() {
    let site = TestSite::new(&[("b.txt", "12345"), ("a/x", ""), ("z/x", ""), (".env", "")]);
    std::fs::write(site.root().join("../secret"), "").unwrap();
    symlink("../secret", site.path("outer")).unwrap();
    symlink("b.txt", site.path("inner")).unwrap();
    symlink("nowhere", site.path("dangling")).unwrap();
    site.create_fifo("fifo");
    let service = site.builder().listing(true).build().unwrap();

    let json = get_with(&service, "/", &[("accept", "application/json")]).await;
    assert_eq!(
        json.header("content-type"),
        "application/json; charset=utf-8"
    );
    assert_eq!(json.header("vary"), "accept");
    let names: Vec<_> = json
        .text()
        .split("\"name\":\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert_eq!(
        names,
        ["a", "z", "b.txt", "inner"],
        "directories first, then by name"
    );
    let modified = std::fs::metadata(site.path("b.txt"))
        .unwrap()
        .modified()
        .unwrap();
    let line = format!(
        "{{\"name\":\"b.txt\",\"type\":\"file\",\"mtime\":\"{}\",\"size\":5,\"href\":\"./b.txt\"}}",
        httpdate::fmt_http_date(modified)
    );
    assert!(json.text().contains(&line), "{}", json.text());

    let html = get(&service, "/").await;
    assert_eq!(html.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(html.header("content-length"), html.body.len().to_string());
    assert!(html.text().contains("<a href=\"./a/\">a/</a>"));
    assert!(
        html.text()
            .contains("<a href=\"./b.txt\">b.txt</a></td><td>5 B</td>")
    );
    for absent in ["../", ".env", "outer", "dangling", "fifo"] {
        assert!(!html.text().contains(absent), "{absent}");
    }
    assert!(
        get(&service, "/a/")
            .await
            .text()
            .contains("<a href=\"../\">")
    );
    let hidden = site.builder().listing(true).hidden(true).build().unwrap();
    assert!(get(&hidden, "/").await.text().contains(".env"));
}

#[tokio::test]
async fn listings_are_escaped_and_their_links_work() {
    let names: [&[u8]; 6] = [
        b"<script>alert(1)<",
        b"a\"b'&c",
        b"100%#?x",
        b"\xff\xfe",
        b"new\nline",
        b"c:d",
    ];
    let site = TestSite::new(&[]);
    for name in names {
        std::fs::write(site.root().join(OsStr::from_bytes(name)), name).unwrap();
    }
    std::fs::create_dir(site.path("<b>")).unwrap();
    let service = site.builder().listing(true).build().unwrap();
    let page = get(&service, "/").await;
    assert!(page.text().contains("&lt;script&gt;alert(1)&lt;"));
    assert!(!page.text().contains("<script") && !page.text().contains("<b>"));
    let links: Vec<_> = page.text().split("href=\".").skip(1).collect();
    assert_eq!(links.len(), names.len() + 1);
    for link in links {
        let response = get(&service, link.split('"').next().unwrap()).await;
        assert_eq!(response.status, StatusCode::OK, "{link}");
    }
    assert!(
        get(&service, "/%3Cb%3E/")
            .await
            .text()
            .contains("Index of /&lt;b&gt;/")
    );
    let json = get_with(&service, "/", &[("accept", "application/json")]).await;
    let links: Vec<_> = json.text().split("\"href\":\".").skip(1).collect();
    assert_eq!(links.len(), names.len() + 1);
    assert!(json.text().contains("\"./%FF%FE\"") && json.text().contains("\"./%3Cb%3E/\""));
    for link in links {
        let response = get(&service, link.split('"').next().unwrap()).await;
        assert_eq!(response.status, StatusCode::OK, "{link}");
    }
    assert!(json.text().contains("\"a\\\"b'&c\"") && json.text().contains("\"new\\u000aline\""));
}

#[tokio::test]
async fn an_index_takes_precedence_over_a_listing() {
    let site = TestSite::new(&[("index.html", "index")]);
    let service = site.builder().listing(true).build().unwrap();
    assert_eq!(get(&service, "/").await.text(), "index");
    assert_eq!(
        get(&service, "/index.html/").await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(get(&service, "/no/").await.status, StatusCode::NOT_FOUND);
}
