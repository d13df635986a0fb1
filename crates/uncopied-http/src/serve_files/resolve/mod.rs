//! Resolves a request path to an open file beneath the root.

pub(crate) mod checked_path;
pub(crate) mod path;
pub(crate) mod root;
