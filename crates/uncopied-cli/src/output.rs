//! Writing messages to standard error and results to standard output.

use std::fmt;
use std::io::{self, Write as _};

/// Writes one line to standard error: `uncopied: ` and the message.
///
/// Control characters are escaped, so that a message stays on one line even if it contains a file
/// name with a line feed. Errors are ignored, because there is nowhere else to report them.
pub(crate) fn say(message: &dyn fmt::Display) {
    let _ = io::stderr()
        .lock()
        .write_all(message_line(message).as_bytes());
}

/// Returns the line that [`say`] writes.
pub(crate) fn message_line(message: &dyn fmt::Display) -> String {
    let mut line = String::from("uncopied: ");
    for character in message.to_string().chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    line
}

/// Writes to standard output. A closed pipe is not an error: the reader does not want any more
/// output.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
