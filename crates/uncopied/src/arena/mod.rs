//! Addresses that tell their owner.
//!
//! One range of addresses is reserved, once a process, and files are mapped into it. An I/O layer
//! that is handed nothing but a `&[u8]` can then ask [`locate`] whose bytes these are, and send
//! "file F from offset O" instead of copying them. The look-up is a bounds check and one load from
//! a table by granule: O(1), and no lock is taken.
//!
//! ```
//! use std::{fs::File, sync::Arc};
//! use uncopied::arena::{self, FileMapping};
//!
//! let file = Arc::new(File::open("Cargo.toml")?);
//! let len = file.metadata()?.len();
//! let mapping = FileMapping::new(file, 0..len)?;
//! let bytes = mapping.bytes();
//!
//! let found = arena::locate(&bytes[10..]).expect("the bytes live in the arena");
//! assert_eq!(found.offset, 10);
//! assert!(arena::locate(b"bytes of anybody else").is_none());
//! # Ok::<(), std::io::Error>(())
//! ```

mod mapping;
mod space;

pub use mapping::{FileMapping, Located, locate};
