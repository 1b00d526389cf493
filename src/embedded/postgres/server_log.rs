//! The server's log: what it writes to standard error, kept in a file that does not grow without bound.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log file that is longer is set aside as `.1`, in place of the one set aside before.
const LONGEST_FILE: u64 = 4 * 1024 * 1024;
/// Longer lines (a statement that failed is quoted in full) are cut into several.
const LONGEST_LINE: u64 = 64 * 1024;
/// How many last lines are remembered, for the message when the server ends.
const LINES_REMEMBERED: usize = 30;

/// Reads until everybody who has the other end is gone: the postmaster and all its server processes. Answers with the
/// last lines.
pub(super) fn pump(output: impl Read, path: &Path) -> String {
    let mut log = BoundedLog::open(path, LONGEST_FILE);
    let mut reader = BufReader::new(output);
    let mut tail: VecDeque<String> = VecDeque::with_capacity(LINES_REMEMBERED);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
        log.append(&line);
        if tail.len() == LINES_REMEMBERED {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    Vec::from(tail).join("\n")
}

/// Loses lines rather than stop reading: a server whose log is not read stands still.
struct BoundedLog {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    longest: u64,
}

impl BoundedLog {
    fn open(path: &Path, longest: u64) -> BoundedLog {
        // Private: a statement that failed is quoted in it.
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path).ok();
        let length = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        BoundedLog { path: path.to_owned(), file, length, longest }
    }

    fn append(&mut self, line: &[u8]) {
        if self.length >= self.longest {
            let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            *self = BoundedLog::open(&self.path, self.longest);
        }
        if let Some(file) = &mut self.file
            && file.write_all(line).is_ok()
        {
            self.length += line.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_remembered_and_all_are_in_the_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("postgres.log");
        let text: String = (0..100).map(|number| format!("line {number}\n")).collect();
        let tail = pump(text.as_bytes(), &path);
        assert_eq!(tail.lines().next(), Some("line 70"));
        assert_eq!(tail.lines().last(), Some("line 99"));
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn the_file_is_set_aside_when_it_is_long_and_only_one_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("postgres.log");
        let mut log = BoundedLog::open(&path, 10);
        for line in ["first line\n", "second line\n", "third line\n"] {
            log.append(line.as_bytes());
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "third line\n");
        assert_eq!(fs::read_to_string(root.path().join("postgres.log.1")).unwrap(), "second line\n");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let root = tempfile::tempdir().unwrap();
        let endless = io::repeat(b'x').take(LONGEST_LINE * 2 + 1);
        let tail = pump(endless, &root.path().join("postgres.log"));
        assert_eq!(tail.lines().last(), Some("x"));
    }
}
