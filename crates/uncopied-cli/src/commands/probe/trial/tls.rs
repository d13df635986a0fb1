//! Kernel TLS, which the library does not use yet: whether a connected socket can have it.

use std::net::TcpStream;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsTx, TcpUlp, TlsCryptoInfo};

use super::{Refusal, connection};

/// What the kernel can do with a TLS connection.
#[derive(Clone, Debug)]
pub(in super::super) struct KernelTls {
    /// The ciphers with which it encrypts for TLS 1.3.
    pub(in super::super) ciphers: Vec<&'static str>,
    /// Those that it refused, with the errno.
    pub(in super::super) refused: Vec<(&'static str, String)>,
}

/// Attaches the upper-layer protocol `tls` to connected sockets, and sets a key of each cipher.
pub(in super::super) fn try_kernel_tls() -> Result<KernelTls, Refusal> {
    let (_socket, _peer) = attached()?;
    let mut found = KernelTls {
        ciphers: Vec::new(),
        refused: Vec::new(),
    };
    for (name, key) in keys() {
        // The key of a socket can be set once.
        let (socket, _peer) = attached()?;
        match setsockopt(&socket, TcpTlsTx, &key) {
            Ok(()) => found.ciphers.push(name),
            Err(errno) => found.refused.push((name, format!("{errno:?}"))),
        }
    }
    Ok(found)
}

/// Returns a connection whose first end has the protocol.
fn attached() -> Result<(TcpStream, TcpStream), Refusal> {
    let (near, far) = connection()?;
    match setsockopt(&near, TcpUlp::default(), b"tls") {
        Ok(()) => Ok((near, far)),
        Err(errno) => Err(Refusal::Errno(uncopied::Errno::from_raw_os_error(
            errno as i32,
        ))),
    }
}

/// Whether the kernel says that it has no such protocol, which may be in a module.
pub(in super::super) fn is_missing(errno: uncopied::Errno) -> bool {
    errno.raw_os_error() == Errno::ENOENT as i32
}

/// A key of zeroes for each cipher. Nothing is sent with them.
fn keys() -> [(&'static str, TlsCryptoInfo); 3] {
    let info = |cipher_type| libc::tls_crypto_info {
        version: libc::TLS_1_3_VERSION,
        cipher_type,
    };
    [
        (
            "AES-128-GCM",
            TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
                info: info(libc::TLS_CIPHER_AES_GCM_128),
                iv: [0; 8],
                key: [0; 16],
                salt: [0; 4],
                rec_seq: [0; 8],
            }),
        ),
        (
            "AES-256-GCM",
            TlsCryptoInfo::Aes256Gcm(libc::tls12_crypto_info_aes_gcm_256 {
                info: info(libc::TLS_CIPHER_AES_GCM_256),
                iv: [0; 8],
                key: [0; 32],
                salt: [0; 4],
                rec_seq: [0; 8],
            }),
        ),
        (
            "CHACHA20-POLY1305",
            TlsCryptoInfo::Chacha20Poly1305(libc::tls12_crypto_info_chacha20_poly1305 {
                info: info(libc::TLS_CIPHER_CHACHA20_POLY1305),
                iv: [0; 12],
                key: [0; 32],
                salt: [],
                rec_seq: [0; 8],
            }),
        ),
    ]
}
