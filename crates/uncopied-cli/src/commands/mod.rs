//! The subcommands, one folder each.

pub(crate) mod get;
pub(crate) mod serve;
