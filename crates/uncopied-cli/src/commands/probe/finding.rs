//! What was found out about a row: yes, no or partly, why, and what would change it.

use serde::Serialize;

/// Whether something works here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    No,
    Partly,
    Yes,
}

impl Status {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Partly => "partly",
            Self::Yes => "yes",
        }
    }
}

/// The result of a trial.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) status: Status,
    /// What was tried, and what it showed, or why it failed.
    pub(super) why: String,
    /// What would change the result: commands, or else sentences. Empty if nothing is known.
    pub(super) change: Vec<String>,
}

impl Finding {
    pub(super) fn yes(why: impl Into<String>) -> Self {
        Self::new(Status::Yes, why)
    }

    pub(super) fn partly(why: impl Into<String>) -> Self {
        Self::new(Status::Partly, why)
    }

    pub(super) fn no(why: impl Into<String>) -> Self {
        Self::new(Status::No, why)
    }

    fn new(status: Status, why: impl Into<String>) -> Self {
        Self {
            status,
            why: why.into(),
            change: Vec::new(),
        }
    }

    /// Adds something that would change the result.
    pub(super) fn or(mut self, change: impl Into<String>) -> Self {
        self.change.push(change.into());
        self
    }

    /// Adds something to the reason.
    pub(super) fn and(mut self, why: &str) -> Self {
        self.why.push_str("; ");
        self.why.push_str(why);
        self
    }

    /// Lowers a "yes" to "partly", and says why.
    pub(super) fn but(mut self, why: &str) -> Self {
        self.status = self.status.min(Status::Partly);
        self.and(&format!("but {why}"))
    }
}
