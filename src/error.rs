//! Everything that can go wrong, said so that a user can act on it.

use std::path::{Path, PathBuf};

/// A `Result` whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why something failed. The text names the file, the tensor, what is wrong and what is accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line or the options contradict themselves.
    #[error("{0}")]
    Usage(String),

    /// The input cannot be processed as asked: every problem that the plan found, one a line.
    #[error("{}", list(.0))]
    Refused(Vec<String>),

    /// A file is not what its name or its header says.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what would be accepted.
        what: String,
    },

    /// Reading, writing or moving a file failed.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried ("read", "write", …).
        action: &'static str,
        /// What the operating system answered.
        source: std::io::Error,
    },

    /// A file of the input is no longer what it was when it was planned for.
    #[error("{}: changed while it was read ({what}); nothing was written; run again when it is at rest", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Size and time before and after.
        what: String,
    },

    /// A run failed with files of its output finished, which are kept.
    #[error("{}; {finished} of {files} files are finished and kept in {} ({}): the same command with --resume goes on from there; \
             removing the folder gives the space back", cause(source), folder.display(), crate::report::bytes(*bytes))]
    Unfinished {
        /// Why it failed.
        source: Box<Error>,
        /// Where they are.
        folder: PathBuf,
        /// How many.
        finished: usize,
        /// Of how many.
        files: usize,
        /// Their bytes.
        bytes: u64,
    },

    /// A GPU could not be used, or computed something else than the CPU.
    #[error("{0}")]
    Device(String),

    /// An output is not what its input, or its report, says.
    #[error("{}", list(.0))]
    Differs(Vec<String>),

    /// Ctrl-C, or a termination signal.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl Error {
    /// Exit code of the command: 2 for wrong usage and refused input, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) | Error::Refused(_) | Error::Format { .. } => 2,
            Error::Io { .. }
            | Error::Changed { .. }
            | Error::Device(_)
            | Error::Differs(_)
            | Error::Interrupted => 1,
            Error::Unfinished { source, .. } => source.exit_code(),
        }
    }

    /// One refusal.
    pub fn refused(problem: impl Into<String>) -> Self {
        Error::Refused(vec![problem.into()])
    }

    /// A file that is not what it should be.
    pub fn format(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_owned(), what: what.into() }
    }

    /// Turns an I/O error into one that names the file: `.map_err(Error::io("read", path))`.
    pub fn io<'a>(
        action: &'static str,
        path: impl AsRef<Path> + 'a,
    ) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Error::Io { path: path.as_ref().to_owned(), action, source }
    }
}

/// What stopped a run of which something stays.
fn cause(error: &Error) -> String {
    match error {
        Error::Interrupted => "interrupted".into(),
        other => other.to_string(),
    }
}

/// Problems that are shown of many: they are often the same of every layer.
const SHOWN: usize = 20;

fn list(problems: &[String]) -> String {
    match problems {
        [one] => one.clone(),
        many => {
            let shown = if many.len() > SHOWN + 1 { SHOWN } else { many.len() };
            let mut lines: String = many[..shown].iter().map(|p| format!("\n  - {p}")).collect();
            if shown < many.len() {
                lines += &format!("\n  … and {} more", many.len() - shown);
            }
            format!("{} problems:{lines}", many.len())
        }
    }
}
