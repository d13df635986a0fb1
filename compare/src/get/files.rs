//! The files that are served and fetched, and the check of what was saved.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::case::GetCase;
use crate::error::{Context, Error};
use crate::{interrupt, pattern};

/// The size of the two buffers with which files are compared, in bytes.
const COMPARED_BYTES: usize = 1024 * 1024;

/// A directory with the files of all cases, with bytes that do not repeat.
pub(super) struct SourceFiles {
    root: PathBuf,
}

impl SourceFiles {
    /// Writes the files of all cases into a new directory below `scratch`.
    pub(super) fn create(scratch: &Path, cases: &[GetCase]) -> Result<Self, Error> {
        let root = scratch.join("files");
        let files = Self { root };
        let small = files.root.join("small");
        fs::create_dir_all(&small).context(|| format!("cannot create {}", small.display()))?;
        for &case in cases {
            for number in 0..case.files() {
                interrupt::check()?;
                let path = files.path(case, number);
                let size = case.bytes() / u64::from(case.files());
                // Both cases of a large file have the same file.
                if !path.exists() {
                    fs::write(&path, pattern::numbered_bytes(size, number))
                        .context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
        // Sync the files, so that the kernel does not write them to the disk during the
        // measurement. The files stay in the page cache.
        File::open(&files.root)
            .and_then(|root| Ok(rustix::fs::syncfs(root)?))
            .context(|| format!("cannot sync {}", files.root.display()))?;
        Ok(files)
    }

    /// The directory to serve.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of a file of a case, relative to the directory to serve.
    pub(super) fn name(case: GetCase, number: u32) -> String {
        match case {
            GetCase::File(size) | GetCase::Null(size) => format!("{size}.bin"),
            GetCase::Many(_) => format!("small/{number:05}.bin"),
        }
    }

    /// Returns the path of a file of a case.
    fn path(&self, case: GetCase, number: u32) -> PathBuf {
        self.root.join(Self::name(case, number))
    }

    /// Reads all files of a case, so that they are in the page cache.
    pub(super) fn warm_page_cache(&self, case: GetCase) -> Result<(), Error> {
        let mut buffer = vec![0; COMPARED_BYTES];
        for number in 0..case.files() {
            let path = self.path(case, number);
            let mut file = open(&path)?;
            while read_full(&mut file, &mut buffer, &path)? > 0 {}
        }
        Ok(())
    }

    /// Compares every byte of the file at `saved` with the file of a case.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if `saved` is not there, or differs.
    pub(super) fn check_file(&self, case: GetCase, number: u32, saved: &Path) -> Result<(), Error> {
        let name = || Self::name(case, number);
        let original_path = self.path(case, number);
        let mut original = open(&original_path)?;
        let mut copy = match File::open(saved) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Error::WrongResult(format!("{} was not saved", name())));
            }
            opened => opened.context(|| format!("cannot open {}", saved.display()))?,
        };
        let size = (case.bytes() / u64::from(case.files())).min(COMPARED_BYTES as u64);
        // One byte more than a small file, so that a copy that is too long differs.
        let mut expected = vec![0; size as usize + 1];
        let mut found = expected.clone();
        let mut offset = 0;
        loop {
            let count = read_full(&mut original, &mut expected, &original_path)?;
            let found_count = read_full(&mut copy, &mut found, saved)?;
            if expected[..count] != found[..found_count] {
                return Err(Error::WrongResult(format!(
                    "{} differs from what was saved within {found_count} bytes after byte {offset}",
                    name()
                )));
            }
            if count < expected.len() {
                return Ok(());
            }
            offset += count;
        }
    }

    /// Compares every byte of the files in `directory` with the files of a case.
    ///
    /// # Errors
    ///
    /// [`Error::WrongResult`] if a file is missing or differs, or if there are other files.
    pub(super) fn check_directory(&self, case: GetCase, directory: &Path) -> Result<(), Error> {
        for number in 0..case.files() {
            interrupt::check()?;
            let name = Self::name(case, number);
            let last_name = name.rsplit('/').next().unwrap_or(&name);
            self.check_file(case, number, &directory.join(last_name))?;
        }
        let entries = fs::read_dir(directory)
            .context(|| format!("cannot list {}", directory.display()))?
            .count();
        if entries == case.files() as usize {
            return Ok(());
        }
        Err(Error::WrongResult(format!(
            "{entries} files were saved instead of {}",
            case.files()
        )))
    }
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).context(|| format!("cannot open {}", path.display()))
}

/// Reads until the buffer is full or the file ends, and returns the number of bytes read.
fn read_full(file: &mut impl Read, buffer: &mut [u8], path: &Path) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context(|| format!("cannot read {}", path.display())),
        }
    }
    Ok(filled)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_in_a_file_is_found() {
        let directory = tempfile::tempdir().unwrap();
        for size in [
            5,
            COMPARED_BYTES as u64 - 1,
            COMPARED_BYTES as u64 + 1,
            3 << 20,
        ] {
            let case = GetCase::File(size);
            let scratch = directory.path().join(size.to_string());
            fs::create_dir(&scratch).unwrap();
            let files = SourceFiles::create(&scratch, &[case]).unwrap();
            files.warm_page_cache(case).unwrap();
            let saved = scratch.join("saved");
            assert!(files.check_file(case, 0, &saved).is_err());
            let bytes = fs::read(files.path(case, 0)).unwrap();
            assert_eq!(bytes.len() as u64, size);
            let mut changed = bytes.clone();
            *changed.last_mut().unwrap() ^= 1;
            let longer = [&bytes[..], &[0]].concat();
            for (saved_bytes, is_right) in [
                (&bytes[..], true),
                (&changed, false),
                (&longer, false),
                (&bytes[..bytes.len() - 1], false),
                (&[], false),
            ] {
                fs::write(&saved, saved_bytes).unwrap();
                let result = files.check_file(case, 0, &saved);
                assert_eq!(result.is_ok(), is_right, "{size} {}", saved_bytes.len());
            }
        }
    }

    #[test]
    fn missing_wrong_and_additional_files_of_a_directory_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let case = GetCase::Many(3);
        let files = SourceFiles::create(scratch.path(), &[case]).unwrap();
        let small = files.root().join("small");
        assert!(files.check_directory(case, &small).is_ok());
        let saved = scratch.path().join("saved");
        fs::create_dir(&saved).unwrap();
        for number in 0..3 {
            assert!(files.check_directory(case, &saved).is_err());
            let name = format!("{number:05}.bin");
            fs::copy(small.join(&name), saved.join(&name)).unwrap();
        }
        assert!(files.check_directory(case, &saved).is_ok());
        fs::write(saved.join("00003.bin.part"), "").unwrap();
        assert!(files.check_directory(case, &saved).is_err());
        fs::remove_file(saved.join("00003.bin.part")).unwrap();
        fs::copy(small.join("00000.bin"), saved.join("00001.bin")).unwrap();
        assert!(files.check_directory(case, &saved).is_err());
    }
}
