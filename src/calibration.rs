//! Calibration: which range a layer's inputs need when their scales are fixed before the model runs.
//!
//! The arithmetic of MinMax, MovingAverageMinMax and Histogram is that of `torch.ao.quantization`'s observers, f32 step
//! by f32 step, so that a calibrated model gets the same scales from both.

mod histogram;
mod minmax;
mod moving_average;
mod percentile;
mod qparams;
mod statistics;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use histogram::Histogram;
use minmax::{Extremes, Layout};
use percentile::Percentile;
pub use qparams::QParams;
use serde::{Deserialize, Serialize};
pub use statistics::{Calibration, InputQParams};
use std::borrow::Cow;

/// How the range of a layer's inputs is found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObserverKind {
    /// The extremes of everything seen; `MinMaxObserver` and `PerChannelMinMaxObserver` of torch.
    MinMax,
    /// A moving average of the batches' extremes; `MovingAverageMinMaxObserver` and its per-channel sibling.
    MovingAverageMinMax {
        /// The weight of a new batch, in (0, 1].
        averaging_constant: f64,
    },
    /// The range with the least expected squared error; torch's `HistogramObserver`.
    Histogram {
        /// Number of bins, 8 to 32768.
        bins: usize,
    },
    /// The central part of the values, in percent; what lies outside is clipped. As in ONNX Runtime, an affine range cuts
    /// both tails by half of the rest each, a symmetric one cuts the largest |x|, as TensorRT's calibrators do.
    Percentile {
        /// In (50, 100].
        percentile: f64,
    },
}

impl ObserverKind {
    /// torch's default.
    pub const MOVING_AVERAGE: Self = Self::MovingAverageMinMax { averaging_constant: 0.01 };
    /// torch's default.
    pub const HISTOGRAM: Self = Self::Histogram { bins: 2048 };
    /// The default of NVIDIA's calibrators.
    pub const PERCENTILE: Self = Self::Percentile { percentile: 99.99 };

    fn check(self, axis: Option<usize>) -> Result<()> {
        let name = match self {
            Self::MinMax => return Ok(()),
            Self::MovingAverageMinMax { averaging_constant: c } if c > 0.0 && c <= 1.0 => return Ok(()),
            Self::MovingAverageMinMax { averaging_constant: c } => {
                return Err(Error::refused(format!(
                    "averaging constant {c} is not accepted; it is more than 0 and at most 1"
                )));
            }
            Self::Histogram { bins } if !(8..=1 << 15).contains(&bins) => {
                return Err(Error::refused(format!("a histogram has 8 to 32768 bins, not {bins}")));
            }
            Self::Percentile { percentile: p } if !(p > 50.0 && p <= 100.0) => {
                return Err(Error::refused(format!(
                    "percentile {p} is not accepted; it is more than 50 and at most 100"
                )));
            }
            Self::Histogram { .. } => "histogram",
            Self::Percentile { .. } => "percentile",
        };
        match axis {
            None => Ok(()),
            Some(_) => Err(Error::refused(format!(
                "the {name} observer finds one range for a whole input; a range per channel is found by the minmax \
                 and moving-average observers"
            ))),
        }
    }
}

/// What was seen, for reports and warnings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Inputs observed; empty ones are not counted.
    pub batches: u64,
    /// The sum of the inputs' first dimensions.
    pub samples: u64,
    /// Numbers in them.
    pub values: u64,
    /// How many of these were +∞ or −∞.
    pub infinities: u64,
    /// The smallest and the largest finite number.
    pub extremes: Option<(f32, f32)>,
}

impl Facts {
    /// Whether all finite numbers are the same, so that a range says nothing about other data.
    pub fn constant(&self) -> bool {
        self.extremes.is_some_and(|(low, high)| low == high)
    }
}

/// Watches the inputs of one layer, batch after batch. Serialize it to keep the statistics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct ActivationObserver(Fields);

/// The observer as it is stored: unchecked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Fields {
    kind: ObserverKind,
    axis: Option<usize>,
    facts: Facts,
    state: Option<State>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Extremes(Extremes),
    Histogram(Histogram),
    Percentile(Percentile),
}

impl From<ActivationObserver> for Fields {
    fn from(observer: ActivationObserver) -> Self {
        observer.0
    }
}

impl TryFrom<Fields> for ActivationObserver {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self> {
        fields.kind.check(fields.axis)?;
        let sound = match (&fields.state, fields.kind) {
            (None, _) => true,
            (Some(State::Extremes(e)), ObserverKind::MinMax | ObserverKind::MovingAverageMinMax { .. }) => {
                e.is_sound(fields.axis.is_some())
            }
            (Some(State::Histogram(h)), ObserverKind::Histogram { bins }) => h.is_sound(bins),
            (Some(State::Percentile(p)), ObserverKind::Percentile { .. }) => p.is_sound(),
            _ => false,
        };
        if sound { Ok(Self(fields)) } else { Err(Error::refused("these statistics contradict themselves")) }
    }
}

impl ActivationObserver {
    /// An observer that has seen nothing. With `axis`, every index along it gets a range of its own.
    pub fn new(kind: ObserverKind, axis: Option<usize>) -> Result<Self> {
        kind.check(axis)?;
        Ok(Self(Fields { kind, axis, facts: Facts::default(), state: None }))
    }

    /// How the range is found.
    pub fn kind(&self) -> ObserverKind {
        self.0.kind
    }

    /// The axis of the channels.
    pub fn axis(&self) -> Option<usize> {
        self.0.axis
    }

    /// What was seen.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Takes in one batch, row-major. An error leaves the observer as it was; empty batches are skipped.
    ///
    /// NaN is refused. ±∞ are dropped by Histogram (as in torch) and Percentile; they enter MinMax's and
    /// MovingAverageMinMax's range, as in torch, where [`Self::qparams`] then refuses to make a scale of it.
    pub fn observe(&mut self, values: &[f32], shape: &[usize]) -> Result<()> {
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if count != Some(values.len()) {
            return Err(Error::refused(format!("{} values do not fill the shape {shape:?}", values.len())));
        }
        let layout = Layout::new(shape, self.0.axis)?;
        if values.is_empty() {
            return Ok(());
        }
        if let (Some(State::Extremes(seen)), Some(axis)) = (&self.0.state, self.0.axis)
            && seen.len() != layout.channels
        {
            return Err(Error::refused(format!(
                "axis {axis} of the shape {shape:?} has {} channels; earlier inputs had {}",
                layout.channels,
                seen.len()
            )));
        }
        let batch = Extremes::of(values, &layout);
        if batch.has_nan() {
            let is_nan = |x: &&f32| x.is_nan();
            let (count, first) =
                (values.iter().filter(is_nan).count(), values.iter().position(|x| x.is_nan()));
            return Err(Error::refused(format!(
                "{count} of {} values are NaN, the first at index {}; NaN has no place in a range",
                values.len(),
                first.unwrap_or_default()
            )));
        }
        let (low, high) = batch.whole();
        let (mut finite, mut extremes, mut infinities) = (Cow::Borrowed(values), Some((low, high)), 0);
        if low == f32::NEG_INFINITY || high == f32::INFINITY {
            finite = values.iter().copied().filter(|x| x.is_finite()).collect::<Vec<_>>().into();
            infinities = values.len() - finite.len();
            extremes =
                (!finite.is_empty()).then(|| Extremes::of(&finite, &Layout::one(finite.len())).whole());
        }
        let Fields { kind, facts, state, .. } = &mut self.0;
        match (*kind, state.as_mut()) {
            (ObserverKind::MinMax, Some(State::Extremes(seen))) => seen.widen(&batch),
            (ObserverKind::MovingAverageMinMax { averaging_constant }, Some(State::Extremes(seen))) => {
                moving_average::follow(seen, &batch, averaging_constant);
            }
            (ObserverKind::Histogram { bins }, seen) => {
                if let Some((low, high)) = extremes {
                    let seen = if let Some(State::Histogram(h)) = seen { Some(h) } else { None };
                    if let Some(first) = Histogram::observe(seen, &finite, low, high, bins)? {
                        *state = Some(State::Histogram(first));
                    }
                }
            }
            (ObserverKind::Percentile { .. }, seen) => {
                if let Some((low, high)) = extremes {
                    if let Some(State::Percentile(seen)) = seen {
                        seen.add(&finite, low, high);
                    } else {
                        *state = Some(State::Percentile(Percentile::first(&finite, low, high)));
                    }
                }
            }
            (ObserverKind::MinMax | ObserverKind::MovingAverageMinMax { .. }, _) => {
                *state = Some(State::Extremes(batch));
            }
        }
        let samples = shape.first().copied().unwrap_or(1);
        facts.batches = facts.batches.saturating_add(1);
        facts.samples = facts.samples.saturating_add(samples as u64);
        facts.values = facts.values.saturating_add(values.len() as u64);
        facts.infinities = facts.infinities.saturating_add(infinities as u64);
        facts.extremes = match (facts.extremes, extremes) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        Ok(())
    }

    /// The range of everything: with an axis, of all channels together. None before any data.
    pub fn range(&self) -> Option<(f32, f32)> {
        self.ranges()?.into_iter().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// One range, or one a channel; for affine codes of 8 bits. None before any data.
    pub fn ranges(&self) -> Option<Vec<(f32, f32)>> {
        self.ranges_for(8, false)
    }

    /// One range, or one a channel, that suits codes of `bits` bits: Histogram weighs clipping against rounding,
    /// Percentile cuts another part of symmetric ranges. None before any data.
    pub fn ranges_for(&self, bits: u32, symmetric: bool) -> Option<Vec<(f32, f32)>> {
        Some(match (self.0.state.as_ref()?, self.0.kind) {
            (State::Extremes(extremes), _) => extremes.ranges().collect(),
            (State::Histogram(histogram), _) => vec![histogram.range(1 << bits.min(16))],
            (State::Percentile(seen), ObserverKind::Percentile { percentile }) if symmetric => {
                let high = seen.largest(percentile);
                vec![(-high, high)]
            }
            (State::Percentile(seen), ObserverKind::Percentile { percentile }) => {
                vec![seen.central(percentile)]
            }
            (State::Percentile(_), _) => return None,
        })
    }

    /// Scales and zero points, equal to torch's `calculate_qparams()`: `signed` is its qint8, else quint8; fewer than 8
    /// bits are its custom range (`quant_min`, `quant_max`), with Histogram's search for that many codes.
    ///
    /// Refused, where torch answers with numbers of no use: no data yet, an infinite range, and a reduced range for
    /// symmetric unsigned codes (which torch's MinMax refuses too).
    pub fn qparams(&self, bits: u32, symmetric: bool, signed: bool, reduce_range: bool) -> Result<QParams> {
        let codes = qparams::Codes::new(bits, symmetric, signed, reduce_range)?;
        let Some(ranges) = self.ranges_for(bits, symmetric) else {
            let why = if self.0.facts.infinities > 0 { ": all were infinite" } else { "" };
            return Err(Error::refused(format!(
                "no values were observed{why}; a scale needs calibration data"
            )));
        };
        codes.qparams(&ranges, self.0.facts.infinities)
    }
}
