//! One download, from the first request to the file under its final name.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use url::Url;

use super::body::receive_body;
use super::checksum::{Hasher, of_file};
use super::client::{Client, Response, Wanted, shown};
use super::error::GetError;
use super::file::{Finisher, Kind, Partial, Version, remove_stale_record};
use super::meter::Meter;
use super::place::{Listing, Place};
use super::progress::Progress;
use super::ranges;
use super::response::{ContentRange, Framing, Head, Validator};
use super::retry::{Deadline, Retries, status_error};
use super::sink::{Output, Sink};
use super::target::Target;
use crate::flags::{Checksum, TimeSpan};

/// The settings that apply to each download.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) resume: bool,
    pub(super) overwrite: bool,
    pub(super) connections: u8,
    pub(super) checksum: Option<Checksum>,
    pub(super) direct: bool,
    pub(super) max_time: TimeSpan,
    pub(super) retries: u32,
    pub(super) retry_wait: Duration,
}

/// What all downloads share.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) finisher: Finisher,
    pub(super) listing: Listing,
    pub(super) settings: Settings,
    pub(super) progress: Rc<Progress>,
}

impl Context {
    pub(super) fn retries(&self) -> Retries {
        Retries::new(self.settings.retries, self.settings.retry_wait)
    }
}

/// One URL, where it goes, and what has happened so far.
pub(super) struct Job {
    pub(super) url: Url,
    pub(super) place: Place,
    pub(super) meter: Meter,
    pub(super) status: Cell<Option<u16>>,
    pub(super) size: Cell<Option<u64>>,
    pub(super) resumed_bytes: Cell<u64>,
    pub(super) is_unchanged: Cell<bool>,
    pub(super) redirects: Cell<u32>,
    pub(super) retries: Cell<u32>,
    /// Whether a file that failed has been kept for `-c`.
    pub(super) kept: Cell<Option<u64>>,
}

impl Job {
    pub(super) fn new(url: Url, place: Place, meter: Meter) -> Self {
        Self {
            url,
            place,
            meter,
            status: Cell::default(),
            size: Cell::default(),
            resumed_bytes: Cell::default(),
            is_unchanged: Cell::default(),
            redirects: Cell::default(),
            retries: Cell::default(),
            kept: Cell::default(),
        }
    }

    pub(super) fn note_response(&self, response: &Response) {
        self.status.set(Some(response.head.status));
        self.redirects.set(response.redirects);
    }
}

/// A download whose bytes have all been received.
pub(super) enum Fetched {
    /// There is nothing left to do.
    Done,
    /// The temporary file waits for its final name.
    File { partial: Rc<Partial>, replace: bool },
}

/// Fetches the bytes of a download, and checks them.
pub(super) async fn fetch(context: &Rc<Context>, job: &Rc<Job>) -> Result<Fetched, GetError> {
    let hasher = || context.settings.checksum.map(|sum| Hasher::new(sum.kind));
    match &job.place {
        Place::File(path) => fetch_file(context, job, path).await,
        Place::Stdout => fetch_stream(context, job, Output::stdout(hasher())?).await,
        Place::Special(path) => fetch_stream(context, job, Output::open(path, hasher())?).await,
    }
}

/// Gives a file that was fetched its final name, and calls `done` with the outcome, now or later.
pub(super) fn finish(
    context: &Rc<Context>,
    job: &Rc<Job>,
    fetched: Fetched,
    done: impl FnOnce(Result<(), GetError>) + 'static,
) {
    let Fetched::File { partial, replace } = fetched else {
        return done(Ok(()));
    };
    let (job, closed) = (Rc::clone(job), Rc::clone(&partial));
    partial.finish(&context.finisher, replace, move |outcome| {
        done(close(&job, &closed, outcome));
    });
}

/// If a download failed, keeps its file for `-c`, or removes it.
fn close<T>(job: &Rc<Job>, partial: &Partial, outcome: Result<T, GetError>) -> Result<T, GetError> {
    if let Err(error) = &outcome {
        job.kept.set(partial.abandon(error.leaves_resumable()));
    }
    outcome
}

async fn fetch_file(
    context: &Rc<Context>,
    job: &Rc<Job>,
    path: &Path,
) -> Result<Fetched, GetError> {
    let settings = &context.settings;
    let deadline = Deadline::new(settings.max_time);
    let mut replace = settings.overwrite;
    // What -f may replace and -c may go on from is looked at now.
    let is_free = !settings.overwrite && !settings.resume && context.listing.is_free(path);
    if !is_free && let Ok(existing) = fs::metadata(path) {
        // A directory cannot be replaced, and a pipe or a device is hardly meant to be.
        if !existing.is_file() {
            return Err(GetError::NotAFile(path.to_owned()));
        }
        if settings.resume {
            let unchanged = is_unchanged(context, job, path, &existing);
            if deadline.bound(unchanged).await? {
                remove_stale_record(path);
                job.is_unchanged.set(true);
                return Ok(Fetched::Done);
            }
            replace = true;
        } else if !replace {
            return Err(GetError::Exists(path.to_owned()));
        }
    }
    let kind = match (settings.resume, replace) {
        (true, _) => Kind::Resume,
        (false, true) => Kind::Replace,
        (false, false) if is_free => Kind::First,
        (false, false) => Kind::New,
    };
    let partial = Rc::new(Partial::open(path, &shown(&job.url), kind)?);
    job.resumed_bytes.set(partial.usable().count());
    let fetching = async {
        if partial.is_whole() && !is_current(context, job, &partial).await? {
            job.resumed_bytes.set(0);
            partial.restart(Version::default())?;
        }
        if !partial.is_whole() {
            fetch_bytes(context, job, &Target::File(&partial)).await?;
        }
        check(context, &partial).await
    };
    close(job, &partial, deadline.bound(fetching).await)?;
    Ok(Fetched::File { partial, replace })
}

/// Whether the file under the final name is what would be fetched: it has the right checksum, or
/// the length and the modification time that the server says.
async fn is_unchanged(
    context: &Rc<Context>,
    job: &Rc<Job>,
    path: &Path,
    existing: &fs::Metadata,
) -> Result<bool, GetError> {
    if let Some(expected) = context.settings.checksum {
        let file = fs::File::open(path).map_err(GetError::file("open", path))?;
        let actual = of_file(file.into(), expected.kind).await;
        return Ok(actual.map_err(GetError::file("read", path))? == expected);
    }
    let Some(head) = current_head(context, job).await? else {
        return Ok(false);
    };
    // The server's time has whole seconds.
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.map(|since| since.as_secs()).ok()
    };
    let ours = existing.modified().ok().and_then(seconds);
    let theirs = head.modified().and_then(seconds);
    Ok(ours.is_some() && ours == theirs && head.content_length() == Some(existing.len()))
}

/// Whether a temporary file that is whole is of the version that the server has now.
async fn is_current(
    context: &Rc<Context>,
    job: &Rc<Job>,
    partial: &Partial,
) -> Result<bool, GetError> {
    let version = partial.version();
    Ok(match current_head(context, job).await? {
        Some(head) => head.validator().is_some() && head.validator() == version.validator,
        None => false,
    })
}

/// Asks for the head that a GET would have, with retries. `None` if the server does not send it.
async fn current_head(context: &Rc<Context>, job: &Rc<Job>) -> Result<Option<Head>, GetError> {
    let mut retries = context.retries();
    loop {
        let error = match ask_for_head(context, job).await {
            Err(error) => error,
            head => return head,
        };
        match retries.pause(&error, false, false) {
            Some(pause) => wait_for_retry(context, job, &error, pause).await,
            None => return Err(error),
        }
    }
}

async fn ask_for_head(context: &Rc<Context>, job: &Rc<Job>) -> Result<Option<Head>, GetError> {
    let wanted = Wanted {
        only_head: true,
        ..Wanted::default()
    };
    let response = context.client.fetch(&job.url, &wanted).await?;
    job.note_response(&response);
    if response.head.keeps_alive() {
        context.client.keep(response.connection);
    }
    match response.head.status {
        200 => Ok(Some(response.head)),
        // The server has a problem, which says nothing about the file.
        500..=599 => Err(status_error(&response.head)),
        _ => Ok(None),
    }
}

/// Compares the checksum of a whole temporary file.
async fn check(context: &Rc<Context>, partial: &Partial) -> Result<(), GetError> {
    let Some(expected) = context.settings.checksum else {
        return Ok(());
    };
    let actual = of_file(partial.file(), expected.kind)
        .await
        .map_err(GetError::file("read", partial.path()))?;
    compare(expected, actual)
}

fn compare(expected: Checksum, actual: Checksum) -> Result<(), GetError> {
    match actual == expected {
        true => Ok(()),
        false => Err(GetError::Checksum { expected, actual }),
    }
}

async fn fetch_stream(
    context: &Rc<Context>,
    job: &Rc<Job>,
    output: Output,
) -> Result<Fetched, GetError> {
    let output = Rc::new(output);
    let target = Target::Stream {
        output: Rc::clone(&output),
        version: RefCell::default(),
    };
    let deadline = Deadline::new(context.settings.max_time);
    match deadline.bound(fetch_bytes(context, job, &target)).await {
        // The reader has got what it wanted.
        Err(GetError::ReaderGone) => return Ok(Fetched::Done),
        outcome => outcome?,
    }
    if let (Some(expected), Some(hasher)) = (context.settings.checksum, output.take_hasher()) {
        compare(expected, hasher.finish())?;
    }
    Ok(Fetched::Done)
}

/// Sends requests until all bytes have been received.
async fn fetch_bytes(
    context: &Rc<Context>,
    job: &Rc<Job>,
    target: &Target<'_>,
) -> Result<(), GetError> {
    let mut retries = context.retries();
    let mut most = target.have();
    loop {
        let error = match attempt(context, job, target).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if matches!(error, GetError::Changed) {
            target.restart(Version::default())?;
            job.resumed_bytes.set(0);
        }
        let has_received = job.meter.received() > 0;
        // A server without ranges sends the same bytes with each attempt.
        let progressed = target.have() > most;
        most = most.max(target.have());
        let pause = retries.pause(&error, has_received, progressed);
        match pause.filter(|_| target.can_retry()) {
            Some(pause) => wait_for_retry(context, job, &error, pause).await,
            None => return Err(error),
        }
    }
}

/// Waits before another request, and says so on a terminal.
pub(super) async fn wait_for_retry(
    context: &Rc<Context>,
    job: &Rc<Job>,
    error: &GetError,
    pause: Duration,
) {
    job.retries.set(job.retries.get() + 1);
    let url = shown(&job.url);
    let seconds = pause.as_secs_f64();
    context.progress.note(&format_args!(
        "{url}: {error} (next attempt in {seconds:.1} s)"
    ));
    sleep(pause).await;
}

async fn attempt(
    context: &Rc<Context>,
    job: &Rc<Job>,
    target: &Target<'_>,
) -> Result<(), GetError> {
    if let Target::File(partial) = target
        && (context.settings.connections > 1 || partial.usable().has_gap())
    {
        partial.use_temporary_name()?;
        match Box::pin(ranges::fetch(context, job, partial)).await? {
            ranges::Outcome::Whole => return Ok(()),
            ranges::Outcome::Ignored(response) => {
                return receive(context, job, target, *response, 0).await;
            }
            ranges::Outcome::Unsupported => partial.restart(Version::default())?,
        }
    }
    let validator = target.version().validator;
    let have = match validator {
        Some(_) => target.have(),
        None => 0,
    };
    let wanted = Wanted {
        range: (have > 0).then_some((have, None)),
        if_range: validator.as_ref(),
        ..Wanted::default()
    };
    let response = context.client.fetch(&job.url, &wanted).await?;
    receive(context, job, target, response, have).await
}

/// Receives the response to a request for the bytes from `have` on.
async fn receive(
    context: &Rc<Context>,
    job: &Rc<Job>,
    target: &Target<'_>,
    mut response: Response,
    have: u64,
) -> Result<(), GetError> {
    job.note_response(&response);
    let head = &response.head;
    let mut framing = head.framing();
    // A body that has arrived already is written and gets its name at once.
    let is_at_hand = matches!(framing, Framing::Length(length)
        if length <= response.connection.buffered().len() as u64);
    let (offset, end) = match head.status {
        200 => {
            let version = version_of(head);
            let total = version.total;
            job.resumed_bytes.set(0);
            if !is_at_hand {
                target.prepare_for_parts()?;
            }
            target.restart(version)?;
            (0, total)
        }
        206 if have > 0 => {
            let range = checked_range(head, have, &target.version())?;
            framing = framing_of(head, range);
            match range.total {
                Some(total) => target.set_total(total),
                None if target.total().is_none() => {
                    return Err(GetError::WrongRange(
                        "of a file of unknown length".to_owned(),
                    ));
                }
                None => {}
            }
            (have, Some(range.end))
        }
        206 => return Err(GetError::WrongRange("it was asked for no range".to_owned())),
        // The file has become shorter.
        416 if have > 0 => return Err(GetError::Changed),
        _ => return Err(status_error(head)),
    };
    let total = target.total();
    job.size.set(total);
    context.progress.set_position(offset, total);
    let mut sink = target.sink(offset, context.settings.direct)?;
    let can_reuse = if is_at_hand {
        receive_body(&mut response.connection, framing, &mut sink, &job.meter).await
    } else {
        receive_recorded(job, target, &mut response, framing, &mut sink).await
    };
    // What arrived before a failure is worth keeping as well.
    let flushed = sink.flush();
    let can_reuse = can_reuse?;
    flushed?;
    let got = target.position();
    if end.is_some_and(|end| end < got) {
        // Only a chunked body can be longer than its range.
        return Err(GetError::LongBody);
    }
    if can_reuse && response.head.keeps_alive() && framing == response.head.framing() {
        context.client.keep(response.connection);
    }
    match total.or(end) {
        Some(expected) if got < expected => Err(GetError::ShortBody { got, expected }),
        _ => Ok(()),
    }
}

/// Receives a body, and records from time to time how far it is. Returns whether the connection can
/// be used again.
async fn receive_recorded(
    job: &Rc<Job>,
    target: &Target<'_>,
    response: &mut Response,
    framing: Framing,
    sink: &mut Sink,
) -> Result<bool, GetError> {
    let connection = &mut response.connection;
    let records = async {
        match target {
            Target::File(partial) if partial.version().validator.is_some() => {
                match partial.record() {
                    Ok(()) => partial.keep_records().await,
                    Err(error) => error,
                }
            }
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        error = records => Err(error),
        outcome = receive_body(connection, framing, sink, &job.meter) => outcome,
    }
}

/// Returns what a head says about the version of the file.
pub(super) fn version_of(head: &Head) -> Version {
    Version {
        validator: head.validator(),
        last_modified: head.last_modified.clone(),
        total: match head.framing() {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        },
    }
}

/// Returns the range of a 206 response, which must begin at `first` and be of the same version.
pub(super) fn checked_range(
    head: &Head,
    first: u64,
    version: &Version,
) -> Result<ContentRange, GetError> {
    let range = head.content_range()?;
    let is_same = |validator: &Validator| head.matches(validator);
    if version.validator.as_ref().is_some_and(|own| !is_same(own)) {
        return Err(GetError::Changed);
    }
    let has_same_total = match (version.total, range.total) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => true,
    };
    if range.first != first || !has_same_total {
        let total = range
            .total
            .map_or("*".to_owned(), |total| total.to_string());
        return Err(GetError::WrongRange(format!(
            "bytes {}-{}/{total} instead of those from {first} on",
            range.first,
            range.end - 1
        )));
    }
    Ok(range)
}

/// Returns how the body of a 206 response ends. Its range says how long it is, even if the
/// connection only says that it ends.
pub(super) fn framing_of(head: &Head, range: ContentRange) -> Framing {
    match head.framing() {
        Framing::Chunked => Framing::Chunked,
        Framing::Length(_) | Framing::UntilClose => Framing::Length(range.end - range.first),
    }
}

/// Returns the path of a place, for messages.
pub(super) fn path_of(place: &Place) -> Option<&PathBuf> {
    match place {
        Place::File(path) | Place::Special(path) => Some(path),
        Place::Stdout => None,
    }
}
