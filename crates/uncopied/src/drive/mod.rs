//! What waits between the steps of a [`Transfer`](crate::Transfer).

pub mod blocking;
pub(crate) mod ring;
#[cfg(feature = "tokio")]
pub mod tokio;
