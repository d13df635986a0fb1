//! This project on a blocking socket: `uncopied::send_file`.

use crate::copy::contender::FileSender;
use crate::copy::job::CopyJob;
use crate::error::{Context, Error};
use crate::machine::dependency_version;

pub(super) const CONTENDER: FileSender = FileSender {
    name: "uncopied",
    about: "`uncopied::send_file` on a blocking socket",
    ours: true,
    version: || dependency_version("uncopied"),
    send,
};

fn send(job: CopyJob) -> Result<u64, Error> {
    let report = uncopied::send_file(&job.file, .., &job.socket);
    let report = report.context(|| "cannot send the file".into())?;
    Ok(report.bytes())
}
