//! What asks a program to stop on Windows: Ctrl-C, Ctrl-Break, and the end of its console.

use std::io;

/// Has `asked` called at each of them.
pub(super) fn catch(asked: impl FnMut() + Send + 'static) -> io::Result<()> {
    ctrlc::set_handler(asked).map_err(io::Error::other)
}
