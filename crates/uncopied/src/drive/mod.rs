//! What waits between the steps of a [`Transfer`](crate::Transfer).

#[cfg(feature = "tokio")]
pub(crate) mod batch;
pub mod blocking;
pub(crate) mod ring;
#[cfg(feature = "tokio")]
pub mod tokio;
