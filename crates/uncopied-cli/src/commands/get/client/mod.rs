//! The HTTP/1.1 client: connections that are kept open, proxies, TLS and redirects.

mod connection;
mod proxy;
mod request;
mod tls;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;

use http::{HeaderName, HeaderValue};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use super::error::GetError;
use super::response::{Framing, Head, Validator};
use crate::flags::TimeSpan;

pub(super) use connection::{Connection, PIECE_BYTES, UnexpectedInput};

use connection::Stream;
use proxy::Proxies;
use request::{Route, authority};

/// The settings of a client.
#[derive(Debug)]
pub(super) struct ClientConfig {
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) cacert: Option<PathBuf>,
    pub(super) connect_timeout: TimeSpan,
    pub(super) read_timeout: TimeSpan,
    pub(super) max_redirects: u32,
    pub(super) allow_downgrade: bool,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted<'a> {
    /// Whether only the head is wanted.
    pub(super) only_head: bool,
    /// The position of the first byte, and that after the last one.
    pub(super) range: Option<(u64, Option<u64>)>,
    /// The version of which the range is wanted. Of another version, the whole file is sent.
    pub(super) if_range: Option<&'a Validator>,
}

/// The head of a response, and the connection that its body arrives on.
pub(super) struct Response {
    pub(super) head: Head,
    pub(super) connection: Connection,
    /// The number of redirects that were followed.
    pub(super) redirects: u32,
}

/// Sends requests, and keeps connections for the next ones.
pub(super) struct Client {
    config: ClientConfig,
    proxies: Proxies,
    tls: OnceCell<TlsConnector>,
    idle: RefCell<HashMap<String, Vec<Connection>>>,
}

impl Client {
    pub(super) fn new(config: ClientConfig) -> Self {
        Self {
            config,
            proxies: Proxies::from_environment(),
            tls: OnceCell::new(),
            idle: RefCell::default(),
        }
    }

    /// Sends a request, and follows redirects, until the head of another response has arrived.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection.
    pub(super) async fn fetch(
        &self,
        start: &Url,
        wanted: &Wanted<'_>,
    ) -> Result<Response, GetError> {
        let mut url = start.clone();
        let mut redirects = 0;
        loop {
            let is_foreign = redirects > 0 && url.origin() != start.origin();
            let (head, connection) = self.exchange(&url, wanted, is_foreign).await?;
            let target = match (head.status, &head.location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => self.target(&url, location)?,
                _ => {
                    return Ok(Response {
                        head,
                        connection,
                        redirects,
                    });
                }
            };
            if redirects >= self.config.max_redirects {
                return Err(GetError::TooManyRedirects(self.config.max_redirects));
            }
            redirects += 1;
            self.keep_if_received(&head, wanted, connection);
            url = target;
        }
    }

    /// Keeps the connection of a redirect, if its whole body has arrived with the head.
    fn keep_if_received(&self, head: &Head, wanted: &Wanted<'_>, mut connection: Connection) {
        let body = match head.framing() {
            _ if wanted.only_head => Some(0),
            Framing::Length(length) => usize::try_from(length).ok(),
            Framing::Chunked | Framing::UntilClose => None,
        };
        if let Some(len) = body.filter(|len| *len == connection.buffered().len())
            && head.keeps_alive()
        {
            connection.consume(len);
            self.keep(connection);
        }
    }

    /// Returns where a redirect leads.
    fn target(&self, from: &Url, location: &str) -> Result<Url, GetError> {
        let refused = |to: &str, why| GetError::Redirect {
            to: to.to_owned(),
            why,
        };
        let to = from
            .join(location)
            .map_err(|_| refused(&masked(location), "that is not a URL; check the URL"))?;
        match (from.scheme(), to.scheme()) {
            ("https", "http") if !self.config.allow_downgrade => Err(refused(
                &shown(&to),
                "that is not encrypted; allow it with --allow-downgrade",
            )),
            (_, "http" | "https") if to.has_host() => Ok(to),
            _ => Err(refused(
                &shown(&to),
                "only http:// and https:// are supported; check the URL",
            )),
        }
    }

    /// Sends one request, and receives the head of its response.
    async fn exchange(
        &self,
        url: &Url,
        wanted: &Wanted<'_>,
        is_foreign: bool,
    ) -> Result<(Head, Connection), GetError> {
        let proxy = self.proxies.of(url)?;
        let passes_on = proxy.as_ref().filter(|_| url.scheme() == "http");
        let route = Route {
            proxy: passes_on,
            is_foreign,
        };
        let request = request::request(url, wanted, &self.config.headers, route);
        let key = key(url, proxy.as_ref());
        // Responses that have arrived are handled first. So several requests are sent one right
        // after the other, and a server on this machine is woken once for all of them.
        yield_now().await;
        while let Some(mut connection) = self.take(&key) {
            match attempt(&mut connection, &request).await {
                Ok(head) => return Ok((head, connection)),
                // The server may close a connection that was idle at any moment. If not even one
                // byte of a response has arrived, it has not begun to respond to this request.
                Err(GetError::Send(_) | GetError::NoResponse | GetError::Receive(_))
                    if connection.buffered().is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        // In a box, because it is rare and its state is large.
        let mut connection = Box::pin(self.connect(url, proxy.as_ref(), key)).await?;
        let head = attempt(&mut connection, &request).await?;
        Ok((head, connection))
    }

    /// Keeps a connection whose response has been received completely for another request.
    pub(super) fn keep(&self, mut connection: Connection) {
        connection.is_reused = true;
        let mut idle = self.idle.borrow_mut();
        match idle.get_mut(&connection.key) {
            Some(connections) => connections.push(connection),
            None => {
                idle.insert(connection.key.clone(), vec![connection]);
            }
        }
    }

    /// Returns an open connection that no request uses.
    fn take(&self, key: &str) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(key)?;
        loop {
            let mut connection = connections.pop()?;
            if connection.unexpected_input() == UnexpectedInput::None {
                return Some(connection);
            }
        }
    }

    async fn connect(
        &self,
        url: &Url,
        proxy: Option<&Url>,
        key: String,
    ) -> Result<Connection, GetError> {
        let limit = self.config.connect_timeout;
        let connecting = self.connect_without_limit(url, proxy, key);
        match limit.limit() {
            None => connecting.await,
            Some(time) => timeout(time, connecting)
                .await
                .unwrap_or(Err(GetError::Timeout {
                    what: "connecting",
                    limit,
                    flag: "--connect-timeout",
                })),
        }
    }

    async fn connect_without_limit(
        &self,
        url: &Url,
        proxy: Option<&Url>,
        key: String,
    ) -> Result<Connection, GetError> {
        let read_timeout = self.config.read_timeout;
        let socket = open(proxy.unwrap_or(url)).await?;
        if url.scheme() != "https" {
            return Ok(Connection::new(Stream::Plain(socket), key, read_timeout));
        }
        let socket = match proxy {
            None => socket,
            Some(proxy) => {
                let tunnel = Connection::new(Stream::Plain(socket), String::new(), read_timeout);
                open_tunnel(tunnel, url, proxy).await?
            }
        };
        let connector = match self.tls.get() {
            Some(connector) => connector,
            None => {
                let connector = tls::connector(self.config.cacert.as_deref())?;
                self.tls.get_or_init(|| connector)
            }
        };
        let stream = tls::handshake(connector, &host_name(url), socket).await?;
        Ok(Connection::new(
            Stream::Tls(Box::new(stream)),
            key,
            read_timeout,
        ))
    }
}

async fn attempt(connection: &mut Connection, request: &[u8]) -> Result<Head, GetError> {
    connection.send(request).await?;
    connection.receive_head().await
}

/// Connects to the first address of a host that accepts.
async fn open(url: &Url) -> Result<TcpStream, GetError> {
    let host = host_name(url);
    let port = url.port_or_known_default().unwrap_or(80);
    let addresses =
        lookup_host((host.as_str(), port))
            .await
            .map_err(|source| GetError::Resolve {
                host: host.clone(),
                source,
            })?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                // Without this, a request in two segments waits for an acknowledgement. If it
                // fails, the request is only slower.
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Err(error) => last = Some((address, error)),
        }
    }
    Err(match last {
        Some((address, source)) => GetError::Connect {
            to: address.to_string(),
            source,
        },
        None => GetError::Resolve {
            source: std::io::Error::new(std::io::ErrorKind::NotFound, "it has no address"),
            host,
        },
    })
}

/// Makes a proxy connect to the host of `url` (RFC 9110, section 9.3.6).
async fn open_tunnel(
    mut tunnel: Connection,
    url: &Url,
    proxy: &Url,
) -> Result<TcpStream, GetError> {
    let refused = |why: String| GetError::Proxy {
        proxy: shown(proxy),
        why,
    };
    let head = attempt(&mut tunnel, &request::tunnel(url, proxy)).await?;
    match head.status {
        200..300 => tunnel
            .into_plain()
            .ok_or_else(|| refused("it sent bytes before the server did".to_owned())),
        407 => Err(refused("it asks for credentials".to_owned())),
        status => Err(refused(format!("it responded with status {status}"))),
    }
}

/// Returns the name or the address of a host, without the brackets of IPv6.
fn host_name(url: &Url) -> String {
    match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => String::new(),
    }
}

/// Returns what the connections have in common that a request for `url` can use.
fn key(url: &Url, proxy: Option<&Url>) -> String {
    let origin = [url.scheme(), "://", authority(url)].concat();
    match proxy {
        None => origin,
        // One connection to a proxy serves all plain requests.
        Some(proxy) if url.scheme() == "http" => format!("by {proxy}"),
        Some(proxy) => format!("{origin} by {proxy}"),
    }
}

/// Returns a text that is not a URL, for messages. What may be credentials is left out.
pub(super) fn masked(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    let scheme = before.split_once("://").map(|(scheme, _)| scheme);
    match scheme.filter(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        Some(scheme) => format!("{scheme}://***@{after}"),
        None => format!("***@{after}"),
    }
}

/// Returns a URL without its credentials, for messages.
pub(super) fn shown(url: &Url) -> String {
    if url.username().is_empty() && url.password().is_none() {
        return url.as_str().to_owned();
    }
    let mut shown = url.clone();
    // Both fail only for URLs that cannot have credentials.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.into()
}
