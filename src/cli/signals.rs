//! Signals that ask to stop.

use crate::{error::Result, threads};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
    flag,
    iterator::Signals,
};
use std::sync::Arc;

/// Has `asked` called at each of them, but not at the end of the terminal if `nohup` had it ignored.
pub(super) fn catch(asked: impl Fn() + Send + 'static) -> Result<()> {
    // A limit on the size of files would end the process, too: with a handler a write fails, and says so.
    let _ = flag::register(SIGXFSZ, Arc::default());
    // (shells have SIGINT ignored in what runs in the background, where it is still wanted by name)
    let heard =
        if ignored() >> (SIGHUP - 1) & 1 == 0 { &[SIGINT, SIGTERM, SIGHUP][..] } else { &[SIGINT, SIGTERM] };
    let Ok(mut signals) = Signals::new(heard) else { return Ok(()) };
    threads::spawn(move || signals.forever().for_each(|_| asked())).map(drop)
}

/// A bit for each signal. (Only Linux tells without calls that are unsafe.)
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
