//! Request path → open file beneath the root.

pub(crate) mod path;
pub(crate) mod root;
