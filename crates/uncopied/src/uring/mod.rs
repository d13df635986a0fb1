//! Rings of io_uring: each thread has one, which all its connections share.

#[cfg(feature = "tokio")]
pub(crate) mod batch;
#[cfg(feature = "tokio")]
mod batch_queue;
mod ring;
mod sends;
#[cfg(test)]
mod testing;
mod thread_ring;

pub(crate) use ring::RING_RETIRED;
pub(crate) use thread_ring::ThreadRing;
