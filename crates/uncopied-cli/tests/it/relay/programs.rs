//! Programs that people use work through a relay: TLS, HTTP, Redis and PostgreSQL.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};

use super::relay;
use crate::client::{TEST_TIMEOUT, free_address};
use crate::data::test_bytes;
use crate::server::{Server, clean};
use crate::skip::skip;

/// A server program. Dropping it ends it.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    /// Starts a server that is told to listen on `address`, and waits until it does.
    fn start(mut command: Command, address: SocketAddr) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = clean(command).spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < TEST_TIMEOUT, "the server does not start");
            thread::sleep(Duration::from_millis(20));
        }
        Self { child, address }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A fast shutdown of PostgreSQL, which also ends its child processes.
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
    }
}

/// Whether programs are installed. If not, reports that the test `name` is skipped.
fn are_installed(programs: &[&str], name: &str) -> bool {
    let is_missing = |program: &&&str| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null());
        command.output().is_err()
    };
    let missing = programs.iter().find(is_missing);
    if let Some(program) = missing {
        skip(name, &format!("{program} is not installed"));
    }
    missing.is_none()
}

fn run(command: Command) -> Output {
    let mut command = clean(command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

#[test]
fn tls_passes_through() {
    if !are_installed(&["openssl", "curl"], "tls_passes_through") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("cert.pem"), own.cert.pem()).unwrap();
    fs::write(file("key.pem"), own.signing_key.serialize_pem()).unwrap();
    let content = test_bytes(3 << 20);
    fs::write(file("content"), &content).unwrap();
    let address = free_address();
    let mut server = Command::new("openssl");
    server
        .args(["s_server", "-WWW", "-quiet", "-accept"])
        .arg(address.to_string())
        .args(["-cert", "cert.pem", "-key", "key.pem"])
        .current_dir(directory.path());
    let server = Program::start(server, address);
    let relay = relay(&[server.address], &[]);
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--cacert"])
        .arg(file("cert.pem"))
        .arg(format!("https://{}/content", relay.address()));
    assert!(run(curl).stdout == content);
}

#[test]
fn an_http_client_keeps_its_connection() {
    if !are_installed(&["curl"], "an_http_client_keeps_its_connection") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let content = test_bytes(300_000);
    fs::write(site.path().join("content"), &content).unwrap();
    let server = Server::start(site.path(), &[]);
    let relay = relay(&[server.address()], &[]);
    let url = format!("http://{}/content", relay.address());
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*"]);
    for number in 0..5 {
        curl.arg(&url)
            .arg("-o")
            .arg(site.path().join(number.to_string()));
    }
    curl.args(["-w", "%{num_connects}\n"]);
    let output = run(curl);
    let connects = String::from_utf8(output.stdout).unwrap();
    assert_eq!(connects, "1\n0\n0\n0\n0\n");
    for number in 0..5 {
        let received = fs::read(site.path().join(number.to_string())).unwrap();
        assert!(received == content, "{number}");
    }
    let exit = relay.stop();
    let totals = exit.stderr.last().unwrap();
    assert!(totals.contains("uncopied: 1 connection;"), "{totals}");
}

#[test]
fn redis_works_through_a_relay() {
    let programs = ["redis-server", "redis-benchmark", "redis-cli"];
    if !are_installed(&programs, "redis_works_through_a_relay") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let mut server = Command::new("redis-server");
    server
        .args(["--bind", "127.0.0.1", "--save", "", "--port"])
        .arg(address.port().to_string())
        .current_dir(directory.path());
    let server = Program::start(server, address);
    let relay = relay(&[server.address], &[]);
    let port = relay.address().port().to_string();
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args([
        "-p", &port, "-c", "20", "-n", "3000", "-d", "2000", "-P", "4",
    ]);
    benchmark.args(["-t", "ping,set,get,lpush,lrange_100", "--csv"]);
    let output = String::from_utf8(run(benchmark).stdout).unwrap();
    for test in ["\"SET\"", "\"GET\"", "\"LRANGE_100"] {
        assert!(output.contains(test), "{output}");
    }
    // A large value, in both directions.
    let value: String = "0123456789abcdef".repeat(300_000);
    fs::write(directory.path().join("value"), &value).unwrap();
    let mut set = Command::new("sh");
    set.args(["-c", "redis-cli -p $0 -x set key < value", &port])
        .current_dir(directory.path());
    assert_eq!(run(set).stdout, b"OK\n");
    let mut get = Command::new("redis-cli");
    get.args(["-p", &port, "get", "key"]);
    assert_eq!(run(get).stdout.trim_ascii_end(), value.as_bytes());
}

/// Returns the directory of PostgreSQL's programs.
fn postgresql() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions
        .map(|version| version.unwrap().path().join("bin"))
        .find(|bin| bin.join("pgbench").exists() && bin.join("initdb").exists())
}

/// Returns a command of PostgreSQL. It refuses to run as root, so root runs it as another user.
fn as_user(program: &Path, user: Option<u32>) -> Command {
    let Some(user) = user else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={user}"), format!("--regid={user}")]);
    command.arg("--clear-groups").arg(program);
    command
}

#[test]
fn postgresql_works_through_a_relay() {
    let name = "postgresql_works_through_a_relay";
    let Some(bin) = postgresql() else {
        skip(
            name,
            "PostgreSQL is not installed (apt-get install postgresql)",
        );
        return;
    };
    // Any user will do that is not root: the one that Debian calls nobody.
    let user = getuid().is_root().then_some(65_534);
    let directory = tempfile::tempdir().unwrap();
    if let Some(user) = user {
        chown(directory.path(), Some(user), Some(user)).unwrap();
    }
    let data = directory.path().join("data");
    let mut init = as_user(&bin.join("initdb"), user);
    init.args(["--auth=trust", "--username=test", "--no-sync", "-D"])
        .arg(&data);
    run(init);
    let address = free_address();
    let mut server = as_user(&bin.join("postgres"), user);
    server
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(directory.path())
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-p"])
        .arg(address.port().to_string());
    let server = Program::start(server, address);
    let relay = relay(&[server.address], &[]);
    let port = relay.address().port().to_string();
    let bench = |arguments: &[&str]| {
        let mut command = Command::new(bin.join("pgbench"));
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "test"]);
        command.args(arguments).arg("postgres");
        String::from_utf8(run(command).stdout).unwrap()
    };
    bench(&["--initialize", "--quiet"]);
    let output = bench(&["--client=8", "--transactions=50", "--no-vacuum"]);
    assert!(
        output.contains("number of transactions actually processed: 400/400"),
        "{output}"
    );
    // A new connection for each transaction.
    let output = bench(&[
        "--client=4",
        "--transactions=20",
        "--connect",
        "--select-only",
    ]);
    assert!(output.contains(": 80/80"), "{output}");
    let mut select = Command::new(bin.join("psql"));
    select
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "test", "-At", "-c"])
        .args(["select repeat('x', 20000000)", "postgres"]);
    let output = run(select).stdout;
    assert_eq!(output.len(), 20_000_001);
    assert!(output[..20_000_000].iter().all(|&byte| byte == b'x'));
    drop(server);
    assert!(relay.stop().status.success());
}
