//! A temporary site, and functions that send requests to a [`ServeFiles`] that serves it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use tower::ServiceExt;
use uncopied_http::{FileStat, ServeFiles, ServeFilesBuilder};

/// A site in a temporary directory. The site's root is a subdirectory of that directory, so that
/// tests can create files outside the root.
pub(crate) struct TestSite {
    dir: tempfile::TempDir,
}

impl TestSite {
    /// Creates a site with these files, given as pairs of path and content.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(site.root()).unwrap();
        for (path, content) in files {
            site.write(path, content);
        }
        site
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn create_fifo(&self, path: &str) {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            self.path(path),
            rustix::fs::FileType::Fifo,
            0o644.into(),
            0,
        )
        .unwrap();
    }

    /// Replaces the file at `path` atomically, by renaming a new file over it.
    pub(crate) fn replace(&self, path: &str, content: &str) {
        self.write("new", content);
        std::fs::rename(self.path("new"), self.path(path)).unwrap();
    }

    /// Waits until any further change to the file at `path` is certain to change the file's
    /// timestamps (see [`FileStat::is_stable`]).
    pub(crate) fn wait_until_stable(&self, path: &str) {
        let file = std::fs::File::open(self.path(path)).unwrap();
        while !FileStat::of(&file).unwrap().is_stable(SystemTime::now()) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn serve(&self) -> ServeFiles {
        self.builder().build().unwrap()
    }

    pub(crate) fn builder(&self) -> ServeFilesBuilder {
        ServeFiles::builder(self.root())
    }
}

/// A response whose body has been read to its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TestResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl TestResponse {
    /// Returns the value of a header, or an empty string if the header is absent. Panics if the
    /// header is repeated.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map_or("", |value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} is repeated");
        value
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) async fn send(
    service: &ServeFiles,
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
) -> TestResponse {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let (parts, body) = service.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    TestResponse {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(crate) async fn get(service: &ServeFiles, uri: &str) -> TestResponse {
    send(service, Method::GET, uri, &[]).await
}

pub(crate) async fn get_with(
    service: &ServeFiles,
    uri: &str,
    headers: &[(&str, &str)],
) -> TestResponse {
    send(service, Method::GET, uri, headers).await
}
