//! What the measuring programs of this project share: `uncopied bench` and `compare`.
//!
//! Both measure how much CPU time it takes to move bytes over TCP. They have in common where the
//! figures come from, so that a difference between two of them is never one of method.

#![forbid(unsafe_code)]

pub mod cpu;
pub mod discard;
pub mod error;
pub mod interrupt;
pub mod machine;
pub mod pattern;
pub mod size;
pub mod spread;
pub mod tcp;

pub use spread::Spread;
