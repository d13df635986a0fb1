//! What the fields of a request ask for. Pure: nothing here knows of files.

pub(crate) mod conditional;
pub(crate) mod negotiate;
pub(crate) mod range;
