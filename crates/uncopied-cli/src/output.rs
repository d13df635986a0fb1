//! Lines on standard error, and bytes on standard output.

use std::fmt;
use std::io::{self, Write as _};

/// Writes one line to standard error: `uncopied: ` and the message.
///
/// A control character (a file name may hold a line feed) is escaped, so that one message is one
/// line. A closed standard error is ignored: there is nobody left to tell.
pub(crate) fn say(message: &dyn fmt::Display) {
    let mut line = String::from("uncopied: ");
    for character in message.to_string().chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Writes to standard output. A reader that has gone is no error: it has what it wanted.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
