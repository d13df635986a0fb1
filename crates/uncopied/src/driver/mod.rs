//! Drivers, which run the steps of a [`Transfer`](crate::Transfer) and wait between them.

pub mod blocking;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;
