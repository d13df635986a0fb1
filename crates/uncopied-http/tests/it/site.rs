//! A directory of files, and requests to a [`ServeFiles`] that serves it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use tower::ServiceExt;
use uncopied_http::{Facts, ServeFiles, ServeFilesBuilder};

/// A directory that goes away with it. The root is one below, so that there is an outside.
pub(crate) struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// A site with these files: path and content.
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

    /// Puts a new file in the place of `path`, as careful deployments do.
    pub(crate) fn replace(&self, path: &str, content: &str) {
        self.write("new", content);
        std::fs::rename(self.path("new"), self.path(path)).unwrap();
    }

    /// Waits until a further change of `path` is sure to show.
    pub(crate) fn settle(&self, path: &str) {
        let file = std::fs::File::open(self.path(path)).unwrap();
        while !Facts::of(&file).unwrap().settled(SystemTime::now()) {
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

/// An answer, read to its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header that is there at most once, empty if it is not.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map_or("", |value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} is there more than once");
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
) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let (parts, body) = service.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body,
    }
}

pub(crate) async fn get(service: &ServeFiles, uri: &str) -> Answer {
    send(service, Method::GET, uri, &[]).await
}

pub(crate) async fn get_with(service: &ServeFiles, uri: &str, headers: &[(&str, &str)]) -> Answer {
    send(service, Method::GET, uri, headers).await
}
