//! Rings of io_uring: one for each thread, shared by all connections of the thread.

#[cfg(feature = "tokio")]
pub(crate) mod batch;
pub(crate) mod ring;
mod sends;
mod thread_ring;

pub(crate) use ring::RETIRED;
pub(crate) use thread_ring::ThreadRing;
