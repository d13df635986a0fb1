//! Runs programs under `uncopied audit`, and puts them under load.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::{TEST_TIMEOUT, connect};
use crate::server::{BIG_FILE_BYTES, PROGRAM, clean, program, site};
use crate::skip::skip;

/// The number of samples that the CPU time of a program under load is enough for.
const LOAD_SAMPLES: u64 = 800;

/// The CPU time that a program spends under load, in clock ticks of 10 ms. A kernel that finds its
/// samples too expensive, as on a busy machine, takes fewer of them per second.
fn load_ticks() -> u64 {
    let rate = fs::read_to_string("/proc/sys/kernel/perf_event_max_sample_rate").unwrap();
    let rate: u64 = rate.trim().parse().unwrap();
    LOAD_SAMPLES * 100 / rate.clamp(1, 2_000)
}

/// A report of `uncopied audit --json`.
pub(super) struct Report(pub(super) Value);

impl Report {
    pub(super) fn parse(text: &str) -> Self {
        assert_eq!(text.lines().count(), 1, "{text}");
        Self(serde_json::from_str(text).unwrap())
    }

    /// The share of CPU time that went into copying, of at least 200 samples.
    pub(super) fn copy_share(&self) -> f64 {
        assert_eq!(self.0["basis"], "samples", "{}", self.0);
        assert!(self.samples() >= 200, "{}", self.0);
        self.0["copy_share"].as_f64().unwrap()
    }

    pub(super) fn samples(&self) -> u64 {
        self.0["samples"].as_u64().unwrap()
    }

    pub(super) fn activity(&self, name: &str) -> u64 {
        self.0["activities"][name].as_u64().unwrap()
    }
}

/// Whether this machine lets the test sample the kernel, by asking the command. If not, reports
/// that the test `name` is skipped.
pub(super) fn can_sample_kernel(name: &str) -> bool {
    let output = program()
        .args(["audit", "--json", "--", "true"])
        .output()
        .unwrap();
    let report = Report::parse(&String::from_utf8(output.stdout).unwrap());
    let can = report.0["basis"] == "samples";
    if !can {
        skip(
            name,
            &format!("it cannot sample the kernel: {}", report.0["notes"]),
        );
    }
    can
}

/// `uncopied audit` at work. It is killed when this is dropped.
pub(super) struct Audit {
    child: Child,
    output: tempfile::TempDir,
}

impl Audit {
    /// Starts an audit that writes JSON.
    pub(super) fn start(arguments: &[&str]) -> Self {
        Self::spawn(program(), arguments)
    }

    /// Starts an audit that writes JSON, with a program that replaces itself with its arguments.
    pub(super) fn start_with(wrapper: &[&str], arguments: &[&str]) -> Self {
        let mut command = clean(Command::new(wrapper[0]));
        command.args(&wrapper[1..]).arg(PROGRAM);
        Self::spawn(command, arguments)
    }

    fn spawn(mut command: Command, arguments: &[&str]) -> Self {
        let output = tempfile::tempdir().unwrap();
        let child = command
            .args(["audit", "--json", "--output"])
            .arg(output.path().join("report"))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, output }
    }

    pub(super) fn id(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Starts an audit of a process that runs, and waits until it has opened its events.
    pub(super) fn attach(process: u32) -> Self {
        let audit = Self::start(&["--seconds", "3600", "--pid", &process.to_string()]);
        let began = Instant::now();
        while !audit.has_events() {
            assert!(began.elapsed() < TEST_TIMEOUT, "the audit does not begin");
            sleep(Duration::from_millis(10));
        }
        audit
    }

    fn has_events(&self) -> bool {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        links.any(|link| link.to_string_lossy().contains("perf_event"))
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end, and returns the report.
    pub(super) fn report(mut self) -> Report {
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        Report::parse(&fs::read_to_string(self.output.path().join("report")).unwrap())
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates a directory with a large file `big`, which is in the page cache: reading a cold file is
/// work of its own.
pub(super) fn warm_site() -> tempfile::TempDir {
    let site = site();
    assert_eq!(
        fs::read(site.path().join("big")).unwrap().len(),
        BIG_FILE_BYTES
    );
    site
}

/// Runs a server under the command, with load, and returns the report.
pub(super) fn audit_server(command: &[&str], address: SocketAddr, target: &str) -> Report {
    let audit = Audit::start(&[&["--"], command].concat());
    wait_for_server(address);
    load(audit.id(), address, target);
    audit.signal(Signal::TERM);
    audit.report()
}

/// Fetches a file again and again, until the descendants of a process have spent some CPU time.
/// Each response ends with its connection. Returns the number of bytes received.
pub(super) fn load(process: i32, address: SocketAddr, target: &str) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    let end = descendants_ticks(process) + load_ticks();
    let mut received = 0_u64;
    while descendants_ticks(process) < end {
        let mut stream = connect(address);
        // In one packet, which the plain server reads with one call.
        let request = format!("GET {target} HTTP/1.0\r\nHost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let before = received;
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => received += n as u64,
            }
        }
        assert!(received > before + (1 << 20), "the response is too short");
    }
    received
}

/// Waits until a server accepts connections.
pub(super) fn wait_for_server(address: SocketAddr) {
    let began = Instant::now();
    while let Err(error) = TcpStream::connect(address) {
        assert!(began.elapsed() < TEST_TIMEOUT, "{address}: {error}");
        sleep(Duration::from_millis(10));
    }
}

/// The clock ticks that the living descendants of a process have spent, or those of the process
/// itself if it has none.
fn descendants_ticks(process: i32) -> u64 {
    let mut family = vec![process];
    let mut at = 0;
    while at < family.len() {
        family.extend(children(family[at]));
        at += 1;
    }
    let own = usize::from(family.len() > 1);
    family[own..]
        .iter()
        .map(|id| stat_field(*id, 14) + stat_field(*id, 15))
        .sum()
}

/// Returns the children of a process.
pub(super) fn children(process: i32) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|other| stat_field(*other, 4) == u64::try_from(process).unwrap())
        .collect()
}

/// Returns a field of `/proc/PID/stat`, by its number in `proc(5)`, or 0 if the process has ended.
fn stat_field(process: i32, number: usize) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let field = fields.split_whitespace().nth(number - 3);
    field.and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// Returns the path of a program, or reports that the test `name` is skipped.
pub(super) fn find_program(file: &str, name: &str) -> Option<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path
        .split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|directory| Path::new(directory).join(file))
        .find(|path| path.exists());
    if found.is_none() {
        skip(
            name,
            &format!("{file} is not installed (apt-get install {file})"),
        );
    }
    found.map(|path| path.display().to_string())
}

/// Returns a command that reads the file `big` of a directory and writes it to each client.
pub(super) fn plain_server(python: &str, directory: &Path, address: SocketAddr) -> Vec<String> {
    const SCRIPT: &str = "\
import socket, sys
listener = socket.create_server(('127.0.0.1', int(sys.argv[1])))
while True:
    peer, _ = listener.accept()
    if not peer.recv(65536):
        continue
    with open(sys.argv[2], 'rb', 0) as file:
        while data := file.read(1 << 18):
            peer.sendall(data)
    peer.close()
";
    let port = address.port().to_string();
    let file = directory.join("big").display().to_string();
    [python, "-c", SCRIPT, &port, &file]
        .map(str::to_owned)
        .into()
}

/// Writes a configuration for nginx into a directory, and returns the command to run it with. With
/// a `master`, the requests are served by a child.
pub(super) fn nginx(
    nginx: &str,
    directory: &Path,
    address: SocketAddr,
    sendfile: &str,
    master: &str,
) -> Vec<String> {
    let at = |name: &str| directory.join(name).display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", at(kind)))
        .concat();
    let user = match rustix::process::geteuid().is_root() {
        true => "user root;",
        false => "",
    };
    let configuration = format!(
        "daemon off; master_process {master}; worker_processes 1; {user}\n\
         error_log {}; pid {};\n\
         events {{}}\n\
         http {{ access_log off; sendfile {sendfile}; {temporary}\n\
         server {{ listen {address}; root {}; }} }}\n",
        at("error.log"),
        at("pid"),
        directory.display(),
    );
    let file = at("nginx.conf");
    fs::write(&file, configuration).unwrap();
    [nginx, "-e", "stderr", "-c", &file]
        .map(str::to_owned)
        .into()
}

/// Whether a process exists.
pub(super) fn is_alive(process: i32) -> bool {
    fs::metadata(format!("/proc/{process}")).is_ok()
}
