//! What waits between the steps of a [`Transfer`](crate::Transfer).

pub(crate) mod batch;
pub mod blocking;
mod reaper;
pub(crate) mod ring;
#[cfg(feature = "tokio")]
pub mod tokio;
