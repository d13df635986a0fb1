//! Evaluates the header fields of a request. Does no I/O.

pub(crate) mod conditional;
pub(crate) mod fields;
pub(crate) mod negotiate;
pub(crate) mod range;
