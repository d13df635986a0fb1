//! One connection: its task, its state, and the layers around hyper.

mod guard;
mod observer;
mod parking;
mod recorder;
mod replay;
mod service;
mod state;
mod stats;
mod strict_heads;
mod table;
mod task;

pub(crate) use guard::Place;
pub(crate) use observer::ConnectionObserver;
pub(crate) use replay::Repeats;
pub(crate) use service::{AnswerBody, AnswerFuture, Answers};
pub(crate) use state::{Order, Seat};
pub(crate) use stats::Shared;
pub(crate) use strict_heads::Guarded;
pub(crate) use table::Table;
pub(crate) use task::Serving;
