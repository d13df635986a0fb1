//! Sends with io_uring. Each thread has a ring (an io_uring instance), which all connections of the
//! thread share.

#[cfg(feature = "tokio")]
pub(crate) mod batch;
#[cfg(feature = "tokio")]
mod batch_queue;
mod ring;
mod sends;
#[cfg(test)]
mod testing;
mod thread_ring;
pub(crate) mod zcrx;

pub(crate) use ring::RING_RETIRED;
pub(crate) use thread_ring::ThreadRing;
