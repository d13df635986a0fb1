//! The paths that a request may reach, and those that it must not reach.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use http::StatusCode;

use crate::test_site::{TestSite, get, get_with};

async fn status(service: &uncopied_http::ServeFiles, uri: &str) -> u16 {
    get(service, uri).await.status.as_u16()
}

fn site() -> TestSite {
    let site = TestSite::new(&[
        ("a b/é.txt", "spaced"),
        ("100%.txt", "percent"),
        ("back\\slash", "back"),
        (".env", "secret"),
        (".git/config", "secret"),
        (".well-known/acme", "token"),
        ("dir/inside.txt", "inside"),
    ]);
    std::fs::write(site.root().join("../secret"), "secret").unwrap();
    symlink("dir/inside.txt", site.path("inner")).unwrap();
    symlink("dir", site.path("inner-dir")).unwrap();
    symlink("../secret", site.path("outer")).unwrap();
    symlink("/etc", site.path("etc")).unwrap();
    symlink("loop", site.path("loop")).unwrap();
    site
}

#[tokio::test]
async fn names_are_decoded_once() {
    let site = site();
    let service = site.serve();
    assert_eq!(get(&service, "/a%20b/%C3%A9.txt").await.text(), "spaced");
    assert_eq!(get(&service, "/100%25.txt").await.text(), "percent");
    assert_eq!(get(&service, "/back%5Cslash").await.text(), "back");
    assert_eq!(
        get(&service, "/%64ir/insid%65.txt?query#part").await.text(),
        "inside"
    );
    assert_eq!(get(&service, "//dir//inside.txt").await.text(), "inside");
    assert_eq!(status(&service, "/%2564ir/inside.txt").await, 404);
}

#[tokio::test]
async fn no_path_outside_the_root_is_reached() {
    let site = site();
    for hidden in [false, true] {
        let service = site.builder().hidden(hidden).build().unwrap();
        for uri in [
            "/../secret",
            "/dir/../../secret",
            "/%2e%2e/secret",
            "/.%2E/secret",
            "/dir/..",
        ] {
            assert_eq!(status(&service, uri).await, 404, "{uri}");
        }
        for uri in [
            "/..%2fsecret",
            "/..%2Fsecret",
            "/%2e%2e%2fsecret",
            "/%00",
            "/inner%00",
            "/%zz",
        ] {
            assert_eq!(status(&service, uri).await, 400, "{uri}");
        }
        for uri in [
            "/%252e%252e/secret",
            "/..%5csecret",
            "/..\\secret",
            "/etc/passwd",
            "/outer",
        ] {
            assert_eq!(status(&service, uri).await, 404, "{uri}");
        }
    }
}

#[tokio::test]
async fn hidden_names_are_not_found_unless_allowed() {
    let site = site();
    let service = site.serve();
    assert_eq!(status(&service, "/.env").await, 404);
    assert_eq!(status(&service, "/%2eenv").await, 404);
    assert_eq!(status(&service, "/.git/config").await, 404);
    assert_eq!(get(&service, "/.well-known/acme").await.text(), "token");
    let service = site.builder().hidden(true).build().unwrap();
    assert_eq!(get(&service, "/.git/config").await.text(), "secret");
}

#[tokio::test]
async fn links_are_followed_within_the_root_only() {
    let site = site();
    let service = site.serve();
    assert_eq!(get(&service, "/inner").await.text(), "inside");
    assert_eq!(
        get(&service, "/inner-dir/inside.txt").await.text(),
        "inside"
    );
    for uri in ["/outer", "/etc/passwd", "/loop"] {
        assert_eq!(status(&service, uri).await, 404, "{uri}");
    }
    let service = site.builder().follow_links(true).build().unwrap();
    assert_eq!(get(&service, "/outer").await.text(), "secret");
    assert_eq!(status(&service, "/loop").await, 404);
}

#[tokio::test]
async fn the_cache_does_not_follow_a_link_that_is_replaced_by_a_link_out_of_the_root() {
    let site = site();
    let service = site.serve();
    site.wait_until_stable("dir/inside.txt");
    for _ in 0..2 {
        assert_eq!(get(&service, "/inner").await.text(), "inside");
    }
    std::fs::remove_file(site.path("inner")).unwrap();
    symlink("../secret", site.path("inner")).unwrap();
    assert_eq!(status(&service, "/inner").await, 404);
}

/// A directory that is moved out of the root, with a link to it in its place, still leads to the
/// same file with the same metadata. But the file is outside now.
#[tokio::test]
async fn the_cache_does_not_follow_a_link_that_takes_the_place_of_a_directory() {
    let long = "long".repeat(10_000);
    for name in ["inside.txt", "long", "index.html", "sub/deep.txt"] {
        let site = site();
        let path = format!("dir/{name}");
        site.write(&path, &long);
        site.write("dir/packed.txt", "plain");
        site.write("dir/packed.txt.gz", "packed");
        site.wait_until_stable(&path);
        site.wait_until_stable("dir/packed.txt.gz");
        let service = site.serve();
        let uri = format!("/{path}").replace("index.html", "");
        let gzip = [("accept-encoding", "gzip")];
        for _ in 0..2 {
            assert_eq!(get(&service, &uri).await.text(), long);
            let packed = get_with(&service, "/dir/packed.txt", &gzip).await;
            assert_eq!(packed.text(), "packed");
        }
        std::fs::rename(site.path("dir"), site.root().join("../moved")).unwrap();
        symlink("../moved", site.path("dir")).unwrap();
        assert_eq!(status(&service, &uri).await, 404, "{uri}");
        assert_eq!(
            status(&service, &format!("/{uri}")).await,
            404,
            "not cached"
        );
        let packed = get_with(&service, "/dir/packed.txt", &gzip).await;
        assert_eq!(packed.status, StatusCode::NOT_FOUND);
        let service = site.builder().follow_links(true).build().unwrap();
        for _ in 0..2 {
            assert_eq!(status(&service, &uri).await, 200, "links are followed");
        }
    }
}

/// The same for a precompressed file and for an index file, each behind a link that stays beneath
/// the root until its target's directory is moved.
#[tokio::test]
async fn the_cache_does_not_follow_a_link_behind_which_a_directory_is_moved() {
    let site = TestSite::new(&[
        ("a.txt", "plain"),
        ("packs/a.gz", "packed"),
        ("packs/index", "index"),
    ]);
    symlink("packs/a.gz", site.path("a.txt.gz")).unwrap();
    symlink("packs/index", site.path("index.html")).unwrap();
    site.wait_until_stable("packs/index");
    let service = site.serve();
    let gzip = [("accept-encoding", "gzip")];
    for _ in 0..2 {
        let response = get_with(&service, "/a.txt", &gzip).await;
        assert_eq!(response.text(), "packed");
        assert_eq!(get(&service, "/").await.text(), "index");
    }
    std::fs::rename(site.path("packs"), site.root().join("../moved")).unwrap();
    symlink("../moved", site.path("packs")).unwrap();
    let response = get_with(&service, "/a.txt", &gzip).await;
    assert_eq!(response.text(), "plain");
    assert_eq!(status(&service, "/").await, 404);
}

#[tokio::test]
async fn special_files_are_not_found_and_do_not_block() {
    let site = site();
    site.create_fifo("fifo");
    let _listener = std::os::unix::net::UnixListener::bind(site.path("socket")).unwrap();
    symlink("/dev/zero", site.path("zero")).unwrap();
    symlink("/proc/self/fd/0", site.path("magic")).unwrap();
    let service = site.builder().follow_links(true).build().unwrap();
    for uri in ["/fifo", "/socket", "/zero", "/magic"] {
        let response = tokio::time::timeout(Duration::from_secs(5), get(&service, uri));
        assert_eq!(
            response.await.unwrap().status,
            StatusCode::NOT_FOUND,
            "{uri}"
        );
    }
}

#[tokio::test]
async fn names_that_no_file_can_have_are_not_found() {
    let site = site();
    let service = site.serve();
    assert_eq!(
        status(&service, &format!("/{}", "x".repeat(300))).await,
        404
    );
    assert_eq!(
        status(&service, &format!("/{}x", "x/".repeat(5000))).await,
        404
    );
    assert_eq!(status(&service, "/dir/inside.txt/").await, 404);
    assert_eq!(status(&service, "/dir/inside.txt/more").await, 404);
}

#[tokio::test]
async fn a_file_that_may_not_be_read_is_forbidden() {
    let site = site();
    let path = site.path("dir/inside.txt");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // Expect the file to be served if this test runs as a user who may read it regardless of its
    // mode, such as root, because the service leaves the permission check to the kernel.
    let expected = if std::fs::File::open(&path).is_ok() {
        200
    } else {
        403
    };
    assert_eq!(status(&site.serve(), "/dir/inside.txt").await, expected);
}

/// The kernel makes the content of such files when they are read. procfs reports a length of 0 for
/// them, and sysfs one page.
#[tokio::test]
async fn generated_files_are_not_found_but_empty_ones_are() {
    for path in ["/proc/version", "/sys/kernel/uevent_seqnum"] {
        let path = std::path::Path::new(path);
        if !path.exists() {
            println!("SKIP generated_files: {} does not exist", path.display());
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        for limit in [0, 16 << 10] {
            let builder = uncopied_http::ServeFiles::builder(path.parent().unwrap());
            let service = builder.in_memory_max_bytes(limit).build().unwrap();
            for _ in 0..2 {
                assert_eq!(status(&service, &format!("/{name}")).await, 404, "{name}");
            }
        }
    }
    let page = "x".repeat(rustix::param::page_size());
    let site = TestSite::new(&[("empty", ""), ("page", &page)]);
    for limit in [0, 16 << 10] {
        let service = site.builder().in_memory_max_bytes(limit).build().unwrap();
        assert_eq!(get(&service, "/empty").await.text(), "");
        assert_eq!(get(&service, "/page").await.text(), page);
        assert_eq!(status(&service, "/empty").await, 200);
    }
}
