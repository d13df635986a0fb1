//! What the header fields of a request ask for. Pure: no descriptor, no file system.

pub(crate) mod conditional;
pub(crate) mod negotiate;
pub(crate) mod range;
