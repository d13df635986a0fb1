//! The connection to a listener: a child of this process, or one on another machine.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use uncopied_measure::{machine, tcp};

use super::error::BenchError;
use super::namespace;
use super::protocol::{Control, PROTOCOL, Reply, Request, unexpected};
use super::results::Network;
use crate::flags::{BENCH_PORT, BenchFlags};

/// How long the other machine may take to accept the connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A run with a listener.
pub(super) struct Session {
    control: Control,
    address: SocketAddr,
    congestion: String,
    network: Network,
    /// The CPUs of the sender and of the receiver, if this run has chosen them.
    cpus: Option<[usize; 2]>,
    /// Ends after the connections, and after everything else.
    _child: Option<ListenerProcess>,
}

impl Session {
    /// Reaches the listener, which this starts unless it runs on another machine.
    ///
    /// # Errors
    ///
    /// The listener cannot be started or reached, or refuses.
    pub(super) fn open(flags: &BenchFlags) -> Result<Self, BenchError> {
        if let Some(host) = &flags.to {
            let address = resolve(host)?;
            return Self::with(flags, address, Network::Remote, None, None);
        }
        let network = match flags.netns {
            true => Network::Netns,
            false => Network::Loopback,
        };
        let cpus =
            machine::allowed_cpus().map_err(BenchError::setup("list this process's CPUs"))?;
        let cpus = match cpus[..] {
            [sender, receiver, ..] => Some([sender, receiver]),
            _ => None,
        };
        let (child, address) = ListenerProcess::start(flags, cpus.map(|cpus| cpus[1]))?;
        if let Some([sender, _]) = cpus {
            machine::pin_to(sender).map_err(BenchError::setup(format!("run on CPU {sender}")))?;
        }
        Self::with(flags, address, network, cpus, Some(child))
    }

    fn with(
        flags: &BenchFlags,
        address: SocketAddr,
        network: Network,
        cpus: Option<[usize; 2]>,
        child: Option<ListenerProcess>,
    ) -> Result<Self, BenchError> {
        let connect = |source| BenchError::Connect {
            address: flags.to.clone().unwrap_or_else(|| address.to_string()),
            source,
        };
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT).map_err(connect)?;
        let congestion = match &flags.congestion {
            Some(name) => name.clone(),
            None => tcp::congestion(&stream)
                .map_err(BenchError::setup("read the congestion control"))?,
        };
        let mut control = Control::new(stream)?;
        match control.ask(&Request::Hello { protocol: PROTOCOL })? {
            Reply::Welcome => {}
            other => return Err(unexpected(&other)),
        }
        Ok(Self {
            control,
            address,
            congestion,
            network,
            cpus,
            _child: child,
        })
    }

    pub(super) fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The congestion control of the connections that carry the bytes.
    pub(super) fn congestion(&self) -> &str {
        &self.congestion
    }

    pub(super) fn network(&self) -> Network {
        self.network
    }

    /// Whether both sides run on this machine.
    pub(super) fn is_local(&self) -> bool {
        self.network != Network::Remote
    }

    pub(super) fn sender_cpu(&self) -> Option<usize> {
        self.cpus.map(|cpus| cpus[0])
    }

    pub(super) fn receiver_cpu(&self) -> Option<usize> {
        self.cpus.map(|cpus| cpus[1])
    }

    /// Opens a connection with the congestion control of this run.
    pub(super) fn connect(&self) -> Result<TcpStream, BenchError> {
        tcp::connect(self.address, Some(&self.congestion)).map_err(|error| match error {
            tcp::ConnectError::Congestion { name, source } => {
                BenchError::Congestion { name, source }
            }
            tcp::ConnectError::Socket(source) => BenchError::Connection(source),
            tcp::ConnectError::Connect { address, source } => BenchError::Connect {
                address: address.to_string(),
                source,
            },
        })
    }
}

/// Returns the address of a listener, given as `HOST` or `HOST:PORT`.
fn resolve(host: &str) -> Result<SocketAddr, BenchError> {
    let connect = |source| BenchError::Connect {
        address: host.to_owned(),
        source,
    };
    let with_port = host.parse::<SocketAddr>().is_ok()
        || host
            .rsplit_once(':')
            .is_some_and(|(name, port)| !name.contains(':') && port.parse::<u16>().is_ok());
    let found = match with_port {
        true => host.to_socket_addrs(),
        false => {
            let name = host.trim_start_matches('[').trim_end_matches(']');
            (name, BENCH_PORT).to_socket_addrs()
        }
    };
    let mut found = found.map_err(connect)?;
    found.next().ok_or_else(|| {
        connect(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            "it has no address",
        ))
    })
}

/// A listener that this process has started. Dropping it ends it.
struct ListenerProcess(Child);

impl ListenerProcess {
    /// Starts a listener, and returns it with its address.
    fn start(flags: &BenchFlags, cpu: Option<usize>) -> Result<(Self, SocketAddr), BenchError> {
        let start = "start the listener";
        let program = std::env::current_exe().map_err(BenchError::setup("find this program"))?;
        let address = match flags.netns {
            true => namespace::RECEIVER_ADDRESS,
            false => "127.0.0.1",
        };
        let mut arguments: Vec<OsString> = vec![
            "bench".into(),
            format!("--listen={address}:0").into(),
            "--child".into(),
        ];
        if let Some(cpu) = cpu {
            arguments.push(format!("--cpu={cpu}").into());
        }
        if let Some(directory) = &flags.dir {
            arguments.push("--dir".into());
            arguments.push(directory.into());
        }
        if flags.netns {
            arguments.push("--own-namespace".into());
        }
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::setup(start))?;
        let mut process = Self(child);
        let (Some(mut input), Some(output)) = (process.0.stdin.take(), process.0.stdout.take())
        else {
            return Err(BenchError::Closed);
        };
        let mut lines = BufReader::new(output).lines();
        let mut line = || {
            let line = lines.next().ok_or(BenchError::Closed)?;
            line.map_err(BenchError::setup(start))
        };
        if flags.netns {
            // The child is in its own namespace now.
            line()?;
            namespace::join(process.0.id())?;
            input
                .write_all(b"go on\n")
                .map_err(BenchError::setup(start))?;
        }
        let text = line()?;
        let address = text
            .parse()
            .map_err(|_| BenchError::Protocol(format!("the listener's address is {text:?}")))?;
        Ok((process, address))
    }
}

impl Drop for ListenerProcess {
    fn drop(&mut self) {
        // It has nothing to clean up: its file has no name.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
