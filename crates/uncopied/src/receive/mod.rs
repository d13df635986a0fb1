//! Receiving without copying.

mod page_payload;

pub use page_payload::PagePayload;
