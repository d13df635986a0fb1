//! The path of the root leads to another directory, or to none, while the service runs.

use std::fs::{create_dir, create_dir_all, read_dir, read_link, remove_dir_all, remove_file};
use std::fs::{rename, write};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use uncopied_http::{RequestTarget, RootChange, ServeFiles};

use crate::test_site::{get, get_with, send};

/// Two releases of a site, and a link `cur` to one of them.
struct Releases {
    dir: tempfile::TempDir,
}

impl Releases {
    /// Creates the releases `one` and `two`. Each has files whose content is the release's name.
    fn new() -> Self {
        let releases = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in ["one", "two"] {
            let release = releases.path(name);
            create_dir_all(release.join("sub")).unwrap();
            for file in ["index.html", "page.html", "sub/a.txt"] {
                write(release.join(file), name).unwrap();
            }
            write(release.join("big"), name.repeat(100_000)).unwrap();
        }
        symlink("one", releases.path("cur")).unwrap();
        releases
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `cur` a link to `target`, atomically.
    fn switch(&self, target: &str) {
        symlink(target, self.path("new")).unwrap();
        rename(self.path("new"), self.path("cur")).unwrap();
    }
}

/// Returns how many descriptors of this process refer to `dir` or to files in it.
fn count_open(dir: &Path) -> usize {
    let links = read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|link| read_link(link.unwrap().path()).ok())
        .filter(|link| link.starts_with(dir))
        .count()
}

async fn status(service: &ServeFiles, uri: &str) -> u16 {
    get(service, uri).await.status.as_u16()
}

#[tokio::test]
async fn a_switched_link_is_followed_and_the_old_release_is_closed() {
    let releases = Releases::new();
    let builder = ServeFiles::builder(releases.path("cur"));
    let service = builder.in_memory_max_bytes(0).build().unwrap();
    let clone = service.clone();
    for uri in ["/", "/big", "/sub/a.txt"] {
        assert!(get(&service, uri).await.text().starts_with("one"), "{uri}");
    }
    assert_eq!(service.follow_root().unwrap(), RootChange::None);
    assert_eq!(count_open(&releases.path("one")), 4);

    let in_progress = service.respond(http::Request::get("/big").body(()).unwrap());
    releases.switch("two");
    assert_eq!(service.follow_root().unwrap(), RootChange::Followed);
    assert_eq!(clone.follow_root().unwrap(), RootChange::None);
    drop(in_progress);
    assert_eq!(count_open(&releases.path("one")), 0);
    for uri in ["/", "/big", "/sub/a.txt"] {
        assert!(get(&clone, uri).await.text().starts_with("two"), "{uri}");
    }
    drop((service, clone));
    assert_eq!(count_open(releases.dir.path()), 0);
}

#[tokio::test]
async fn a_directory_that_is_renamed_over_the_root_is_followed() {
    let releases = Releases::new();
    let service = ServeFiles::new(releases.path("one")).unwrap();
    assert_eq!(get(&service, "/").await.text(), "one");
    rename(releases.path("one"), releases.path("old")).unwrap();
    rename(releases.path("two"), releases.path("one")).unwrap();
    assert_eq!(service.follow_root().unwrap(), RootChange::Followed);
    assert_eq!(get(&service, "/").await.text(), "two");
}

#[tokio::test]
async fn a_missing_root_is_503_until_it_is_back() {
    let releases = Releases::new();
    let service = ServeFiles::builder(releases.path("cur"))
        .listing(true)
        .fallback("page.html")
        .error_page(StatusCode::SERVICE_UNAVAILABLE, "page.html")
        .build()
        .unwrap();
    let uris = ["/", "/sub/", "/sub", "/sub/a.txt", "/big", "/missing"];
    let gzip = [("accept-encoding", "gzip")];
    for uri in uris {
        assert!(status(&service, uri).await < 400, "{uri}");
    }
    remove_file(releases.path("cur")).unwrap();
    for _ in 0..2 {
        let error = service.follow_root().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        for uri in uris {
            let response = get_with(&service, uri, &gzip).await;
            assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE, "{uri}");
            assert_eq!(response.header("retry-after"), "1");
            assert_eq!(response.text(), "503 Service Unavailable\n");
        }
    }
    assert_eq!(count_open(releases.dir.path()), 0, "nothing is pinned");
    let options = send(&service, Method::OPTIONS, "/", &[]).await;
    assert_eq!(options.status, StatusCode::NO_CONTENT);
    assert_eq!(status(&service, "/%00").await, 400);

    write(releases.path("cur"), "not a directory").unwrap();
    let error = service.follow_root().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotADirectory);
    assert_eq!(status(&service, "/").await, 503);
    remove_file(releases.path("cur")).unwrap();
    releases.switch("two");
    assert_eq!(service.follow_root().unwrap(), RootChange::Followed);
    for uri in ["/", "/sub/a.txt", "/nowhere"] {
        assert_eq!(get(&service, uri).await.text(), "two", "{uri}");
    }
}

#[tokio::test]
async fn a_removed_directory_is_not_an_empty_listing() {
    let releases = Releases::new();
    let one = releases.path("one");
    let service = ServeFiles::builder(&one).listing(true).build().unwrap();
    assert_eq!(status(&service, "/").await, 200);
    remove_dir_all(&one).unwrap();
    assert!(service.follow_root().is_err());
    assert_eq!(status(&service, "/").await, 503);
    create_dir(&one).unwrap();
    assert_eq!(service.follow_root().unwrap(), RootChange::Followed);
    assert!(get(&service, "/").await.text().contains("Index of /"));
}

#[tokio::test]
async fn a_single_file_is_followed_with_its_directory() {
    let releases = Releases::new();
    let service = ServeFiles::new(releases.path("cur/page.html")).unwrap();
    assert_eq!(get(&service, "/").await.text(), "one");
    releases.switch("two");
    assert_eq!(service.follow_root().unwrap(), RootChange::Followed);
    assert_eq!(get(&service, "/page.html").await.text(), "two");
    assert_eq!(status(&service, "/index.html").await, 404);
    remove_file(releases.path("two/page.html")).unwrap();
    assert_eq!(service.follow_root().unwrap(), RootChange::None);
    assert_eq!(status(&service, "/").await, 404);
}

/// A file that was looked up for a request is not used once another root is served.
#[tokio::test]
async fn a_file_of_the_previous_root_is_not_used() {
    let releases = Releases::new();
    let service = ServeFiles::new(releases.path("cur")).unwrap();
    let target = RequestTarget::new("GET", "/page.html", None);
    let file = loop {
        assert_eq!(get(&service, "/page.html").await.text(), "one");
        // Small files are cached once they are stable.
        if let Some(file) = service.cached(target) {
            break file;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    releases.switch("two");
    service.follow_root().unwrap();
    assert_eq!(get(&service, "/page.html").await.text(), "two");
    let response = service.try_respond(target, &http::HeaderMap::new(), Some(file));
    let body = response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "two");
}
