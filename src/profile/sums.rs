//! What each stage took in all, for the log.

use super::Stage;
use std::time::Duration;

/// One a stage, in the order of [`Stage::ALL`].
#[derive(Debug, Default)]
pub struct Sums([Sum; Stage::ALL.len()]);

/// Over all threads, so that stages can take longer than the run did.
#[derive(Debug, Default)]
struct Sum {
    times: u64,
    duration: Duration,
    bytes: u64,
}

impl Sums {
    pub fn add(&mut self, stage: Stage, duration: Duration, bytes: u64) {
        let sum = &mut self.0[stage as usize];
        sum.times += 1;
        sum.duration += duration;
        sum.bytes += bytes;
    }

    /// A line a stage that there was.
    pub fn log(&self) {
        for (stage, sum) in Stage::ALL.iter().zip(&self.0).filter(|(_, sum)| sum.times > 0) {
            let (stage, times, bytes) = (stage.name(), sum.times, sum.bytes);
            let seconds = sum.duration.as_secs_f64();
            // of one thread, where several are at it at once
            let rate = (bytes > 0).then(|| rounded(bytes as f64 / 1e9 / seconds.max(1e-9), 1e2));
            tracing::info!(
                stage,
                seconds = rounded(seconds, 1e6),
                times,
                bytes,
                gb_per_second = rate,
                "took"
            );
        }
    }
}

fn rounded(value: f64, places: f64) -> f64 {
    (value * places).round() / places
}
