//! The log on stderr: `-v`, `-vv`, or as `RUST_LOG` says. Off unless one of them is there.

use super::{show, written};
use std::io::{self, Write};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::{self, time::uptime},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

/// Starts the log, once a process. `RUST_LOG` counts more than `-v`s do.
pub fn start(verbose: u8) {
    let usual = || {
        let level = match verbose {
            0 => return None,
            1 => LevelFilter::INFO,
            _ => LevelFilter::DEBUG,
        };
        Some(Targets::new().with_target(env!("CARGO_CRATE_NAME"), level))
    };
    let wanted = std::env::var_os("RUST_LOG").filter(|wanted| !wanted.is_empty());
    let filter = match wanted.as_ref().map(|wanted| wanted.to_string_lossy().parse::<Targets>()) {
        None => usual(),
        Some(Ok(targets)) => Some(targets),
        // other programs read it, too: not a reason to fail
        Some(Err(e)) => {
            complain!(
                "warning: RUST_LOG={} is ignored: {e}; accepted: a level (error, warn, info, debug, trace), or TARGET=LEVEL \
                 with commas, such as monoquant=info,wgpu_hal=warn",
                wanted.unwrap_or_default().display()
            );
            usual()
        }
    };
    let Some(filter) = filter else { return };
    // fails where a log runs already, which then goes on
    let lines = fmt::layer().with_writer(|| Lines).with_ansi(false).with_timer(uptime());
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}

/// Stderr, beside a progress bar.
struct Lines;

impl Write for Lines {
    /// A whole line. A reader that has gone away is no reason to stop a run.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        show::beside_bars(|| written(io::stderr().write_all(line)));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
