//! `uncopied get`: downloads files over HTTP/1.1.
//!
//! | module | what it does |
//! |---|---|
//! | `place` | where a URL is saved |
//! | `fetch`, `ranges`, `retry` | one download: requests, several connections, further attempts |
//! | `client` | connections, proxies, TLS, requests, redirects |
//! | `response`, `body` | heads, and the movement of bodies to a sink |
//! | `target`, `sink`, `file` | temporary files and their records, standard output |
//! | `checksum`, `meter` | checksums; counts by mechanism and the limit of the rate |
//! | `progress`, `summary` | what the user sees |

mod body;
mod checksum;
mod client;
mod error;
mod fetch;
mod file;
mod meter;
mod place;
mod progress;
mod ranges;
mod response;
mod retry;
mod sink;
mod summary;
mod target;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};

use crate::descriptor_limit::raise_descriptor_limit;
use crate::error::Error;
use crate::flags::{GetFlags, HeaderSource, RequestHeader};
use crate::output::print;

use client::{Client, ClientConfig, masked, shown};
use fetch::{Context, Job, Settings, path_of};
use file::Finisher;
use meter::{Meter, RateLimit};
use place::{Destination, Listing, Place};
use progress::Progress;
use summary::{Download, Summary};

pub(crate) use error::GetError;

/// How many files may wait at the same time to be synced and renamed: those that arrive while the
/// disk is busy for a quarter of a second. Each of them is open.
const MAX_FINISHING: usize = 4096;

/// Downloads all URLs.
///
/// # Errors
///
/// A file with URLs or headers cannot be read, there is nothing to download, or a download failed.
/// If there are several, each failure has been printed.
pub(crate) fn run(flags: GetFlags) -> Result<(), Error> {
    let words = urls(&flags)?;
    let headers = headers(&flags.header)?;
    check_usage(&flags, words.len())?;
    // The other half is for connections, and for files that are being fetched.
    let max_finishing = (raise_descriptor_limit() / 2).clamp(1, MAX_FINISHING);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::setup("start an event loop"))?;
    let outcome = LocalSet::new().block_on(&runtime, async {
        // With a handler, a write beyond the limit on the size of files fails. Without one, SIGXFSZ
        // would end the process.
        let file_size = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        let _harmless = signal(file_size).map_err(Error::setup("handle signals"))?;
        run_all(flags, headers, words, max_finishing).await
    });
    // A thread that still writes to a disk that hangs must not keep the process.
    runtime.shutdown_background();
    outcome
}

fn check_usage(flags: &GetFlags, count: usize) -> Result<(), Error> {
    match count {
        0 => Err(Error::GetUsage("there is no URL to download".to_owned())),
        2.. if flags.checksum.is_some() => Err(Error::GetUsage(
            "--checksum is for a single URL; fetch the others separately".to_owned(),
        )),
        _ if flags.resume && flags.output.as_deref() == Some(Path::new("-")) => Err(
            Error::GetUsage("-c cannot go on with standard output; name a file with -o".to_owned()),
        ),
        _ => Ok(()),
    }
}

/// Returns the URLs of the command line, followed by those of `-i`.
fn urls(flags: &GetFlags) -> Result<Vec<String>, Error> {
    let mut words = flags.urls.clone();
    if let Some(path) = &flags.input {
        let text = match path == Path::new("-") {
            true => {
                let mut text = String::new();
                io::stdin().read_to_string(&mut text).map(|_| text)
            }
            false => fs::read_to_string(path),
        };
        let text = text.map_err(|source| Error::InputFile {
            flag: "--input",
            path: path.display().to_string(),
            source,
        })?;
        let lines = text.lines().map(str::trim);
        let urls = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        words.extend(urls.map(str::to_owned));
    }
    Ok(words)
}

/// Returns the headers of the command line, with those of the files that it names.
fn headers(sources: &[HeaderSource]) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
    let mut headers = Vec::new();
    for source in sources {
        let path = match source {
            HeaderSource::Line(header) => {
                headers.push((header.0.clone(), header.1.clone()));
                continue;
            }
            HeaderSource::File(path) => path,
        };
        let text = fs::read_to_string(path).map_err(|source| Error::InputFile {
            flag: "--header",
            path: path.display().to_string(),
            source,
        })?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let header: RequestHeader = line.parse().map_err(|_| {
                // The line is not repeated, because it may hold a password.
                Error::GetUsage(format!(
                    "--header: {} has a line that is no header for requests; write NAME: VALUE",
                    path.display()
                ))
            })?;
            headers.push((header.0, header.1));
        }
    }
    Ok(headers)
}

/// What the workers share.
struct Run {
    context: Rc<Context>,
    words: Vec<String>,
    next: Cell<usize>,
    destination: Destination,
    limit: Option<Rc<RateLimit>>,
    /// The files that this run has saved or will save.
    taken: RefCell<HashSet<PathBuf>>,
    finishing: Arc<Semaphore>,
    /// The outcome of each download that has ended, by its number.
    ended: RefCell<Vec<(usize, Download)>>,
    /// The last failure.
    failure: RefCell<Option<Error>>,
    failed: Cell<usize>,
    keeps_summary: bool,
}

async fn run_all(
    flags: GetFlags,
    headers: Vec<(HeaderName, HeaderValue)>,
    words: Vec<String>,
    max_finishing: usize,
) -> Result<(), Error> {
    let began = Instant::now();
    let destination = Destination::new(flags.output.as_deref()).map_err(|error| Error::Get {
        url: "-o".to_owned(),
        error,
        kept: String::new(),
    })?;
    if words.len() > 1 && matches!(destination, Destination::Named(_)) {
        return Err(Error::GetUsage(
            "-o names a single file for several URLs; name a directory, with a slash at its end"
                .to_owned(),
        ));
    }
    let is_stdout = destination == Destination::Stdout;
    let is_shown =
        !flags.quiet && io::stderr().is_terminal() && !(is_stdout && io::stdout().is_terminal());
    let progress = Rc::new(match is_shown {
        true => Progress::on_terminal(words.len()),
        false => Progress::hidden(),
    });
    // Bytes of several URLs must not be mixed on standard output, or in a pipe.
    let workers = match destination {
        Destination::Directory(_) => usize::from(flags.parallel).min(words.len()),
        Destination::Stdout | Destination::Named(_) => 1,
    };
    let limit = flags.limit_rate.map(|rate| Rc::new(RateLimit::new(rate.0)));
    let keeps_summary = flags.json;
    let listing = destination.list(words.len());
    let run = Rc::new(Run {
        context: Rc::new(context(flags, headers, Rc::clone(&progress), listing)),
        words,
        next: Cell::new(0),
        destination,
        limit,
        taken: RefCell::default(),
        finishing: Arc::new(Semaphore::new(max_finishing)),
        ended: RefCell::default(),
        failure: RefCell::default(),
        failed: Cell::new(0),
        keeps_summary,
    });
    let handles: Vec<_> = (0..workers)
        .map(|_| spawn_local(Rc::clone(&run).work()))
        .collect();
    for handle in handles {
        handle.await.map_err(|_| Error::WorkerLost)?;
    }
    run.context.finisher.expect_no_more();
    // Wait for the files that are being synced. At most MAX_FINISHING, so the number fits.
    let _ = run.finishing.acquire_many(max_finishing as u32).await;
    progress.end();
    run.end(began.elapsed(), is_stdout)
}

fn context(
    flags: GetFlags,
    headers: Vec<(HeaderName, HeaderValue)>,
    progress: Rc<Progress>,
    listing: Listing,
) -> Context {
    Context {
        client: Client::new(ClientConfig {
            headers,
            cacert: flags.cacert,
            connect_timeout: flags.connect_timeout,
            read_timeout: flags.read_timeout,
            max_redirects: flags.max_redirects,
            allow_downgrade: flags.allow_downgrade,
        }),
        finisher: Finisher::default(),
        listing,
        settings: Settings {
            resume: flags.resume,
            overwrite: flags.overwrite,
            connections: flags.connections,
            checksum: flags.checksum,
            direct: flags.direct,
            max_time: flags.max_time,
            retries: flags.retries,
            retry_wait: flags.retry_wait.0,
        },
        progress,
    }
}

impl Run {
    /// Fetches one URL after the other until there is none left.
    async fn work(self: Rc<Self>) {
        loop {
            let number = self.next.get();
            let Some(word) = self.words.get(number) else {
                return;
            };
            self.next.set(number + 1);
            let began = Instant::now();
            let job = match self.job(word) {
                Ok(job) => Rc::new(job),
                Err(error) => {
                    let url =
                        place::parse_url(word).map_or_else(|_| masked(word), |url| shown(&url));
                    self.fail(&url, error, None);
                    self.record(number, None, &url, began, true);
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.finishing).acquire_owned().await else {
                return;
            };
            let fetched = fetch::fetch(&self.context, &job).await;
            let (run, ended) = (Rc::clone(&self), Rc::clone(&job));
            let end = move |outcome| {
                run.end_job(number, &ended, began, outcome);
                drop(permit);
            };
            // While a file is synced, the next URL is fetched.
            match fetched {
                Ok(fetched) => fetch::finish(&self.context, &job, fetched, end),
                Err(error) => end(Err(error)),
            }
        }
    }

    fn job(&self, word: &str) -> Result<Job, GetError> {
        let url = place::parse_url(word)?;
        let place = self.destination.place(&url)?;
        if let Place::File(path) = &place {
            if !self.taken.borrow_mut().insert(path.clone()) {
                return Err(GetError::SameFile(path.clone()));
            }
            // The directory says less, and could fill the line.
            let name = path.file_name().unwrap_or(path.as_os_str());
            self.context.progress.set_name(&name.display());
        }
        let progress = Rc::clone(&self.context.progress);
        let meter = Meter::new(progress, self.limit.clone());
        Ok(Job::new(url, place, meter))
    }

    fn end_job(&self, number: usize, job: &Job, began: Instant, outcome: Result<(), GetError>) {
        let has_failed = outcome.is_err();
        if has_failed || self.keeps_summary {
            let url = shown(&job.url);
            if let Err(error) = outcome {
                self.fail(&url, error, Some(job));
            }
            self.record(number, Some(job), &url, began, has_failed);
        }
        self.context.progress.end_file();
    }

    /// Prints a failure, or keeps it to be printed at the end if it is the only one possible.
    fn fail(&self, url: &str, error: GetError, job: Option<&Job>) {
        let kept = job.and_then(|job| {
            let count = job.kept.get()?;
            let path = path_of(&job.place)?;
            Some(format!(
                "; {count} bytes are kept in {}.part, go on with -c",
                path.display()
            ))
        });
        self.failed.set(self.failed.get() + 1);
        let error = Error::Get {
            url: url.to_owned(),
            error,
            kept: kept.unwrap_or_else(|| {
                let received = job.map_or(0, |job| job.meter.received());
                match received {
                    0 => String::new(),
                    received => format!("; {received} bytes had been received"),
                }
            }),
        };
        if self.words.len() > 1 {
            self.context.progress.say(&error);
        }
        self.failure.replace(Some(error));
    }

    /// Keeps what the summary says about a download that has ended.
    fn record(
        &self,
        number: usize,
        job: Option<&Job>,
        url: &str,
        began: Instant,
        has_failed: bool,
    ) {
        if !self.keeps_summary {
            return;
        }
        let failure = self.failure.borrow();
        let error = failure.as_ref().filter(|_| has_failed);
        let download = Download {
            url: url.to_owned(),
            path: job
                .and_then(|job| path_of(&job.place))
                .map(|path| path.display().to_string()),
            status: job.and_then(|job| job.status.get()),
            size: job.and_then(|job| job.size.get()),
            bytes: job.map_or(0, |job| job.meter.received()),
            resumed_bytes: job.map_or(0, |job| job.resumed_bytes.get()),
            unchanged: job.is_some_and(|job| job.is_unchanged.get()),
            redirects: job.map_or(0, |job| job.redirects.get()),
            retries: job.map_or(0, |job| job.retries.get()),
            seconds: began.elapsed().as_secs_f64(),
            mechanisms: job.map_or_else(Default::default, |job| {
                summary::named(&job.meter.by_mechanism())
            }),
            error: error.map(ToString::to_string),
        };
        self.ended.borrow_mut().push((number, download));
    }

    /// Prints the summary, and returns the failure to report.
    fn end(&self, time: Duration, is_stdout: bool) -> Result<(), Error> {
        if self.keeps_summary {
            let mut ended = self.ended.take();
            ended.sort_by_key(|(number, _)| *number);
            let downloads = ended.into_iter().map(|(_, download)| download).collect();
            let line = Summary::new(downloads, time).line();
            match is_stdout {
                // There is nowhere to report a failure of standard error.
                true => drop(io::stderr().write_all(line.as_bytes())),
                false => print(line.as_bytes()).map_err(Error::Output)?,
            }
        }
        match (self.failed.get(), self.words.len(), self.failure.take()) {
            (0, _, _) | (_, _, None) => Ok(()),
            (_, 1, Some(failure)) => Err(failure),
            (failed, total, Some(_)) => Err(Error::SomeFailed { failed, total }),
        }
    }
}
