//! The subcommands, one folder each.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod get;
pub(crate) mod probe;
pub(crate) mod relay;
pub(crate) mod serve;
