//! Tests with the clients that people use: curl, wget, aria2, ab, Python, and a browser.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::data::{test_bytes, wait_until_files_are_stable};
use crate::server::{Server, clean};
use crate::skip::skip;

/// The names and lengths of the files: names that need escaping, and lengths around the limits at
/// which the server changes its behaviour.
const FILES: [(&str, usize); 11] = [
    ("empty", 0),
    ("one", 1),
    ("page-less-one", 4095),
    ("small.txt", 16_384),
    ("small-and-one", 16_385),
    ("mebibyte.bin", 1 << 20),
    ("with spaces", 5000),
    ("ünïcödé-文件-🦀", 70_000),
    ("100%25 & more", 300),
    ("a+b=c", 20_000),
    ("deep/er/file#1?", 3000),
];

fn site() -> TempDir {
    let site = tempfile::tempdir().unwrap();
    fs::create_dir_all(site.path().join("deep/er")).unwrap();
    for (name, len) in FILES {
        fs::write(site.path().join(name), test_bytes(len)).unwrap();
    }
    site
}

/// Escapes a path for a URL.
fn url_path(name: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'/' | b'-' | b'.' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).into(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(escaped).collect()
}

/// Whether a program is installed. If not, reports that the test `name` is skipped.
fn is_installed(program: &str, name: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    let is_installed = version.is_ok_and(|output| output.status.success());
    if !is_installed {
        skip(
            name,
            &format!("{program} is not installed (apt-get install {program})"),
        );
    }
    is_installed
}

/// Returns a client command that ignores the configuration of the user who runs the test.
fn client(program: &str) -> Command {
    let mut command = clean(Command::new(program));
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(variable);
    }
    match program {
        "curl" => command.args(["-q", "--silent", "--show-error", "--max-time", "60"]),
        "wget" => command.args(["--no-config", "--no-verbose", "--tries=1", "--timeout=60"]),
        _ => &mut command,
    };
    command
}

/// Runs a client until it exits. Returns its standard output.
fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    output.stdout
}

fn curl(arguments: &[&str]) -> Vec<u8> {
    output(client("curl").args(arguments))
}

fn curl_text(arguments: &[&str]) -> String {
    String::from_utf8(curl(arguments)).unwrap()
}

fn url(server: &Server, name: &str) -> String {
    format!("{}{}", server.urls[0], url_path(name))
}

#[test]
fn curl_gets_every_file() {
    if !is_installed("curl", "curl_gets_every_file") {
        return;
    }
    let site = site();
    for mechanism in ["auto", "splice", "mmap_write", "copy"] {
        let server = Server::start(site.path(), &["--mechanism", mechanism]);
        for (name, len) in FILES {
            let body = curl(&["--fail", &url(&server, name)]);
            assert!(body == test_bytes(len), "{mechanism}: {name}");
        }
        // Get all files once more, over a single connection.
        let urls: Vec<_> = FILES.iter().map(|(name, _)| url(&server, name)).collect();
        let urls: Vec<_> = urls.iter().map(String::as_str).collect();
        let bodies = curl(&[&["--fail"], &urls[..]].concat());
        let all: Vec<_> = FILES.iter().flat_map(|(_, len)| test_bytes(*len)).collect();
        assert!(bodies == all, "{mechanism}: all over one connection");
    }
}

#[test]
fn wget_mirrors_the_directory() {
    if !is_installed("wget", "wget_mirrors_the_directory") {
        return;
    }
    let site = site();
    let server = Server::start(site.path(), &["--list"]);
    let copy = tempfile::tempdir().unwrap();
    // `--recursive` makes wget find the files through the listing.
    let options = ["--recursive", "--no-parent", "--no-host-directories"];
    let escapes = "--restrict-file-names=nocontrol";
    output(
        client("wget")
            .args(options)
            .arg(escapes)
            .arg(&server.urls[0])
            .current_dir(copy.path()),
    );
    for (name, len) in FILES {
        // wget decodes the name twice when it creates the file, so "%25" becomes "%".
        let got = fs::read(copy.path().join(name.replace("%25", "%")));
        let got = got.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(got == test_bytes(len), "{name}");
    }
}

#[test]
fn curl_requests_ranges_and_resumes_downloads() {
    if !is_installed("curl", "curl_requests_ranges_and_resumes_downloads") {
        return;
    }
    let site = site();
    let server = Server::start(site.path(), &[]);
    let url = url(&server, "mebibyte.bin");
    let bytes = test_bytes(1 << 20);
    for (range, expected) in [
        ("0-0", 0..1),
        ("1000-70000", 1000..70_001),
        ("1048575-", 1_048_575..1_048_576),
        ("-5000", 1_043_576..1_048_576),
        ("1048000-9999999", 1_048_000..1_048_576),
    ] {
        let body = curl(&["--fail", "-r", range, &url]);
        assert!(body == bytes[expected], "{range}");
    }
    let parts = curl(&["--fail", "--include", "-r", "0-9,5000-5019", &url]);
    let contains = |part: &[u8]| parts.windows(part.len()).any(|window| window == part);
    assert!(contains(b"content-type: multipart/byteranges"));
    assert!(contains(&bytes[..10]) && contains(&bytes[5000..5020]));

    let part = site.path().join("part");
    let target = part.display().to_string();
    for received in [0, 1, 65_536, 1_048_575] {
        fs::write(&part, &bytes[..received]).unwrap();
        curl(&["--fail", "-C", "-", "-o", &target, &url]);
        assert!(fs::read(&part).unwrap() == bytes, "resumed at {received}");
    }
}

#[test]
fn curl_sends_head_requests_and_conditions() {
    if !is_installed("curl", "curl_sends_head_requests_and_conditions") {
        return;
    }
    let site = site();
    let server = Server::start(site.path(), &[]);
    let url = url(&server, "mebibyte.bin");
    let head = curl_text(&["--head", &url]);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("content-length: 1048576\r\n"), "{head}");

    let saved = |name: &str| site.path().join(name).display().to_string();
    let (tag, body) = (saved("tag"), saved("body"));
    // Wait until the file is stable. Before that, the server would send a weak entity tag.
    wait_until_files_are_stable();
    let code = ["-w", "%{http_code} %{size_download}", "-o", &body];
    let code = |more: &[&str]| curl_text(&[&code[..], more, &[&url]].concat());
    assert_eq!(code(&["--etag-save", &tag]), "200 1048576");
    assert!(fs::read_to_string(&tag).unwrap().starts_with('"'));
    assert_eq!(code(&["--etag-compare", &tag]), "304 0");
    assert_eq!(code(&["-z", &saved("mebibyte.bin")]), "304 0");
    assert_eq!(code(&["-z", "1 Jan 2001"]), "200 1048576");
    assert_eq!(code(&["-z", "-1 Jan 2001"]), "412 24");
    fs::write(site.path().join("mebibyte.bin"), "new").unwrap();
    assert_eq!(code(&["--etag-compare", &tag]), "200 3");
}

#[test]
fn curl_uses_a_unix_socket() {
    if !is_installed("curl", "curl_uses_a_unix_socket") {
        return;
    }
    let site = site();
    let socket = site.path().join("socket").display().to_string();
    let listen = format!("unix:{socket}");
    let server = Server::start(site.path(), &["--listen", &listen]);
    for (name, len) in FILES {
        let url = format!("http://localhost/{}", url_path(name));
        let body = curl(&["--fail", "--unix-socket", &socket, &url]);
        assert!(body == test_bytes(len), "{name}");
    }
    assert!(server.stop().totals().sendfile > 1 << 20);
}

#[test]
fn curl_receives_precompressed_files() {
    if !is_installed("curl", "curl_receives_precompressed_files") {
        return;
    }
    if !is_installed("gzip", "curl_receives_precompressed_files") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let page = site.path().join("page.html");
    let text: String = (0..20_000).map(|n| format!("<p>{n}</p>\n")).collect();
    fs::write(&page, &text).unwrap();
    output(Command::new("gzip").arg("--keep").arg(&page));
    let compressed_bytes = fs::metadata(page.with_extension("html.gz")).unwrap().len();
    let server = Server::start(site.path(), &[]);
    let url = url(&server, "page.html");
    assert!(curl(&["--fail", "--compressed", &url]) == text.as_bytes());
    let size = ["-w", "%{size_download}", "-o", "/dev/null"];
    let sent = curl_text(&[&size[..], &["--compressed", &url]].concat());
    assert_eq!(sent, compressed_bytes.to_string());
    let sent = curl_text(&[&size[..], &[&url]].concat());
    assert_eq!(sent, text.len().to_string());
}

/// Creates a sparse file of 5 GiB, which takes almost no space, and returns its length. The file
/// contains marks at its start and end, and around each multiple of 1 GiB, because mapped windows
/// of the file meet there, and 32-bit offsets overflow at some of them.
fn huge(path: &Path) -> u64 {
    let length = 5 << 30;
    let file = File::create(path).unwrap();
    file.set_len(length).unwrap();
    for at in marks(length) {
        file.write_all_at(format!("mark {at:011}").as_bytes(), at)
            .unwrap();
    }
    length
}

fn marks(length: u64) -> Vec<u64> {
    let around = [1 << 30, 1 << 31, 3 << 30, 1 << 32];
    let mut marks: Vec<_> = around.iter().flat_map(|at| [at - 8, at + 100]).collect();
    marks.extend([0, 12_345, length - 16]);
    marks
}

#[test]
fn curl_gets_five_gibibytes() {
    if !is_installed("curl", "curl_gets_five_gibibytes") {
        return;
    }
    // Use an in-memory file system if there is one. It uses the same page for all holes of a file,
    // so reading the holes is much faster.
    let memory = Path::new("/dev/shm");
    let site = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let site = site.unwrap();
    let path = site.path().join("huge");
    let length = huge(&path);
    let server = Server::start(site.path(), &[]);
    let url = url(&server, "huge");
    let size = ["--fail", "-w", "%{size_download}", "-o", "/dev/null", &url];
    assert_eq!(curl_text(&size), length.to_string());
    // Compare every byte around the 4 GiB boundary, where a 32-bit count would wrap around.
    let start = (1_u64 << 32) - (100 << 20);
    let end = (1_u64 << 32) + (100 << 20);
    let mut curl = client("curl")
        .args(["--fail", "-r", &format!("{start}-{}", end - 1), &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let compared = clean(Command::new("cmp"))
        .args(["--bytes", &(end - start).to_string()])
        .arg(format!("--ignore-initial=0:{start}"))
        .arg("-")
        .arg(&path)
        .stdin(curl.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(compared.status.success(), "{compared:?}");
    assert!(curl.wait().unwrap().success());
    for at in marks(length) {
        let range = format!("{at}-{}", at + 15);
        let mark = curl_text(&["--fail", "-r", &range, &url]);
        assert_eq!(mark, format!("mark {at:011}"));
    }
    let totals = server.stop().totals();
    assert!(totals.sendfile >= length + (end - start), "{totals:?}");
}

#[test]
fn aria2_downloads_a_file_over_eight_connections() {
    if !is_installed("aria2c", "aria2_downloads_a_file_over_eight_connections") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let bytes = test_bytes(20 << 20);
    fs::write(site.path().join("file"), &bytes).unwrap();
    let server = Server::start(site.path(), &[]);
    let target = tempfile::tempdir().unwrap();
    let mut aria2 = client("aria2c");
    aria2.args(["--quiet", "-x8", "-s8", "-k1M", "--no-conf", "--dir"]);
    output(aria2.arg(target.path()).arg(url(&server, "file")));
    assert!(fs::read(target.path().join("file")).unwrap() == bytes);
    assert!(server.stop().totals().requests >= 8);
}

/// ab speaks HTTP/1.0, with and without `Connection: keep-alive`.
#[test]
fn ab_completes_all_requests() {
    let version = Command::new("ab").arg("-V").output();
    if !version.is_ok_and(|output| output.status.success()) {
        skip(
            "ab_completes_all_requests",
            "ab is not installed (apt-get install apache2-utils)",
        );
        return;
    }
    let site = site();
    let server = Server::start(site.path(), &[]);
    for flags in [&["-k"][..], &[]] {
        for (name, len) in [("small.txt", 16_384), ("mebibyte.bin", 1 << 20)] {
            let mut ab = client("ab");
            ab.args(["-q", "-n", "400", "-c", "16"]).args(flags);
            let report = output(ab.arg(url(&server, name)));
            let report = String::from_utf8(report).unwrap();
            let has = |title: &str, value: &str| {
                let line = report.lines().find(|line| line.starts_with(title));
                line.is_some_and(|line| line[title.len()..].trim().starts_with(value))
            };
            assert!(has("Complete requests:", "400"), "{report}");
            assert!(has("Failed requests:", "0"), "{report}");
            let sent = format!("{} bytes", 400 * len);
            assert!(has("HTML transferred:", &sent), "{report}");
            assert!(!report.contains("Non-2xx"), "{report}");
            let kept = has("Keep-Alive requests:", "400");
            assert_eq!(kept, !flags.is_empty(), "{report}");
        }
    }
}

/// Gets every file over one connection, and then seeks in a file as the video element of a browser
/// does: it begins to read from some position, and closes the connection when it seeks.
#[test]
fn python_keeps_a_connection_and_seeks() {
    const PROGRAM: &str = "
import http.client, json, sys
host, names = sys.argv[1], json.loads(sys.argv[2])
connection = http.client.HTTPConnection(host)
for name, length in names:
    connection.request('GET', '/' + name)
    response = connection.getresponse()
    assert response.status == 200 and len(response.read()) == length, name
connection.request('GET', '/mebibyte.bin')
whole = connection.getresponse().read()
connection.request('HEAD', '/mebibyte.bin')
head = connection.getresponse()
head.read()
for start in [0, 700_000, 12, 1_048_575, 300_000]:
    seeking = http.client.HTTPConnection(host)
    headers = {'Range': f'bytes={start}-', 'If-Range': head.headers['ETag']}
    seeking.request('GET', '/mebibyte.bin', headers=headers)
    response = seeking.getresponse()
    expected = f'bytes {start}-1048575/1048576'
    assert response.status == 206 and response.headers['Content-Range'] == expected
    part = response.read(100_000)
    assert part == whole[start:start + len(part)], start
    seeking.close()
print('done', end='')
";
    if !is_installed("python3", "python_keeps_a_connection_and_seeks") {
        return;
    }
    let site = site();
    wait_until_files_are_stable();
    let server = Server::start(site.path(), &[]);
    let names = FILES.map(|(name, len)| format!("[\"{}\", {len}]", url_path(name)));
    let mut python = client("python3");
    python.args(["-c", PROGRAM]);
    python.arg(server.address().to_string());
    python.arg(format!("[{}]", names.join(", ")));
    assert_eq!(output(&mut python), b"done");
}

/// Opens a page in a browser, and returns the page as it is after running its scripts.
fn browse(url: &str) -> String {
    let profile = tempfile::tempdir().unwrap();
    let data = format!("--user-data-dir={}", profile.path().display());
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ];
    let page = output(client("chromium").args(flags).args([&data, url]));
    String::from_utf8(page).unwrap()
}

#[test]
fn a_browser_shows_pages_pictures_and_listings() {
    let chromium = Command::new("chromium").arg("--version").output();
    if !chromium.is_ok_and(|output| output.status.success()) {
        skip(
            "a_browser_shows_pages_pictures_and_listings",
            "chromium is not installed (apt-get install chromium)",
        );
        return;
    }
    let site = site();
    fs::write(
        site.path().join("page.html"),
        "<!DOCTYPE html><title>page</title><p id=result></p><img id=picture src=picture.svg>\
         <script src=script.js></script>",
    )
    .unwrap();
    fs::write(
        site.path().join("picture.svg"),
        "<svg xmlns='http://www.w3.org/2000/svg' width='123' height='45'/>",
    )
    .unwrap();
    fs::write(
        site.path().join("script.js"),
        "onload = async () => {
            const whole = new Uint8Array(await (await fetch('mebibyte.bin')).arrayBuffer());
            const headers = { Range: 'bytes=1000-1999' };
            const part = new Uint8Array(await (await fetch('mebibyte.bin', { headers })).arrayBuffer());
            const sum = whole.reduce((sum, byte) => sum + byte, 0);
            const same = part.length == 1000 && part.every((byte, at) => byte == whole[1000 + at]);
            document.getElementById('result').textContent =
                `picture ${picture.naturalWidth} bytes ${whole.length} sum ${sum} range ${same}`;
        };",
    )
    .unwrap();
    let server = Server::start(site.path(), &["--list"]);
    let page = browse(&url(&server, "page.html"));
    let sum: u64 = test_bytes(1 << 20)
        .iter()
        .map(|byte| u64::from(*byte))
        .sum();
    let expected = format!("picture 123 bytes 1048576 sum {sum} range true");
    assert!(
        page.contains(&expected),
        "{expected:?} is missing in {page}"
    );
    let listing = browse(&server.urls[0]);
    for name in [
        "mebibyte.bin",
        "with spaces",
        "ünïcödé-文件-🦀",
        "100%25 &amp; more",
    ] {
        assert!(listing.contains(&format!(">{name}</a>")), "{listing}");
    }
}
