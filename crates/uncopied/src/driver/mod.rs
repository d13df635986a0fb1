//! What waits between the steps of a [`Transfer`](crate::Transfer).

pub mod blocking;
#[cfg(feature = "tokio")]
pub mod tokio;
