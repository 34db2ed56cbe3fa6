//! Observers: how the range of a group of weights is found, and which kernels that takes.

use serde::{Deserialize, Serialize};

/// Bins of the histograms that the percentile and histogram observers read, as in torch.
pub const BINS: u32 = 2048;

/// How the range that a scale must cover is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Observer {
    /// The extremes.
    MinMax,
    /// The central part of a channel's weights, in percent; what lies outside is clipped.
    Percentile(f64),
    /// torch's `HistogramObserver`: the range of a channel with the least expected squared error.
    Histogram,
    /// The scale with the least squared error among a grid of clips of each group.
    Mse {
        /// Whether scales may be negative, which lets the extreme weight land on qmin.
        both_signs: bool,
    },
}

impl Observer {
    /// Names that `--observer` takes.
    pub const NAMES: [&'static str; 4] = ["minmax", "percentile", "histogram", "mse"];

    /// What is used unless another is asked for: at 4 bits extremes cost more than clipping them.
    pub const fn usual(bits: u32) -> Self {
        if bits == 4 { Observer::Mse { both_signs: true } } else { Observer::MinMax }
    }

    /// This observer's name.
    pub fn name(self) -> &'static str {
        match self {
            Observer::MinMax => "minmax",
            Observer::Percentile(_) => "percentile",
            Observer::Histogram => "histogram",
            Observer::Mse { .. } => "mse",
        }
    }

    /// Whether a histogram of every channel is needed.
    pub fn needs_histogram(self) -> bool {
        matches!(self, Observer::Percentile(_) | Observer::Histogram)
    }
}
