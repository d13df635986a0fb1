//! The thresholds of the library, for commands that move bytes.

use uncopied::Tuning;

use crate::error::Error;

/// Reads the file that `UNCOPIED_TUNING` names, if it names one. The library would use its defaults
/// if the file is wrong, but a person who starts a command must see that.
///
/// # Errors
///
/// [`Error::Tuning`]
pub(crate) fn apply_environment() -> Result<(), Error> {
    if let Some(tuning) = Tuning::from_environment().map_err(Error::Tuning)? {
        tuning.set();
    }
    Ok(())
}
