//! The extremes of a batch, and their running union.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Numbers compared at a time; enough to hide the latency of min and max on 256-bit vectors.
const LANES: usize = 32;

/// How a row-major tensor splits into channels: `outer` times `channels` times `inner` values.
pub(super) struct Layout {
    outer: usize,
    pub(super) channels: usize,
    inner: usize,
}

impl Layout {
    pub(super) fn new(shape: &[usize], axis: Option<usize>) -> Result<Self> {
        let Some(axis) = axis else { return Ok(Self::one(shape.iter().product())) };
        let Some(&channels) = shape.get(axis) else {
            return Err(Error::refused(format!("the shape {shape:?} has no axis {axis} of channels")));
        };
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        Ok(Self { outer, channels, inner })
    }

    /// One channel of all values.
    pub(super) fn one(values: usize) -> Self {
        Self { outer: 1, channels: 1, inner: values }
    }
}

/// The smallest and the largest value of every channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Extremes {
    #[serde(with = "extended")]
    pub(super) low: Vec<f32>,
    #[serde(with = "extended")]
    pub(super) high: Vec<f32>,
    #[serde(skip)]
    nan: bool,
}

impl Extremes {
    /// Of one batch, in one pass.
    pub(super) fn of(values: &[f32], layout: &Layout) -> Self {
        let &Layout { outer, channels, inner } = layout;
        let mut low = vec![f32::INFINITY; channels];
        let mut high = vec![f32::NEG_INFINITY; channels];
        let mut nan = false;
        if inner == 1 {
            // four rows at a time: low and high are read and written a quarter as often
            let mut fours = values.chunks_exact(4 * channels.max(1));
            for rows in &mut fours {
                let (upper, lower) = rows.split_at(2 * channels);
                let (a, b) = upper.split_at(channels);
                let (c, d) = lower.split_at(channels);
                nan |= by_channel([a, b, c, d], &mut low, &mut high);
            }
            for row in fours.remainder().chunks_exact(channels.max(1)) {
                nan |= by_channel([row; 4], &mut low, &mut high);
            }
        } else if inner > 0 {
            debug_assert_eq!(values.len(), outer * channels * inner);
            for (i, run) in values.chunks_exact(inner).enumerate() {
                let (l, h, n) = scan(run);
                let channel = i % channels;
                low[channel] = smaller(l, low[channel]);
                high[channel] = larger(h, high[channel]);
                nan |= n;
            }
        }
        // which zero comes out of −0 and +0 depends on the order; one zero is enough
        low.iter_mut().chain(&mut high).for_each(|x| *x += 0.0);
        Self { low, high, nan }
    }

    pub(super) fn len(&self) -> usize {
        self.low.len()
    }

    pub(super) fn has_nan(&self) -> bool {
        self.nan
    }

    /// Takes in another batch.
    pub(super) fn widen(&mut self, batch: &Self) {
        self.low.iter_mut().zip(&batch.low).for_each(|(a, &b)| *a = smaller(b, *a));
        self.high.iter_mut().zip(&batch.high).for_each(|(a, &b)| *a = larger(b, *a));
    }

    /// Over all channels.
    pub(super) fn whole(&self) -> (f32, f32) {
        let low = self.low.iter().fold(f32::INFINITY, |a, &b| smaller(b, a));
        (low, self.high.iter().fold(f32::NEG_INFINITY, |a, &b| larger(b, a)))
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = (f32, f32)> {
        self.low.iter().copied().zip(self.high.iter().copied())
    }

    /// Whether this can have been observed.
    pub(super) fn is_sound(&self, per_channel: bool) -> bool {
        let ordered = self.low.iter().zip(&self.high).all(|(low, high)| low <= high);
        ordered
            && self.low.len() == self.high.len()
            && if per_channel { !self.low.is_empty() } else { self.len() == 1 }
    }
}

// these two compile to one instruction each, which f32::min and f32::max do not
fn smaller(x: f32, than: f32) -> f32 {
    if x < than { x } else { than }
}

fn larger(x: f32, than: f32) -> f32 {
    if x > than { x } else { than }
}

/// The extremes, and whether there is a NaN (the extremes then mean nothing).
fn scan(values: &[f32]) -> (f32, f32, bool) {
    let (mut low, mut high, mut nan) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for (i, &x) in block.iter().enumerate() {
            low[i] = smaller(x, low[i]);
            high[i] = larger(x, high[i]);
            nan[i] |= u32::from(x.is_nan());
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        low[i] = smaller(x, low[i]);
        high[i] = larger(x, high[i]);
        nan[i] |= u32::from(x.is_nan());
    }
    let (low, high) =
        (low.iter().fold(low[0], |a, &b| smaller(b, a)), high.iter().fold(high[0], |a, &b| larger(b, a)));
    (low, high, nan.iter().any(|&n| n != 0))
}

/// Takes in four values a channel; true if one is NaN.
fn by_channel([a, b, c, d]: [&[f32]; 4], low: &mut [f32], high: &mut [f32]) -> bool {
    let mut nan = 0;
    for (((((&a, &b), &c), &d), low), high) in a.iter().zip(b).zip(c).zip(d).zip(low).zip(high) {
        *low = smaller(smaller(a, b), smaller(smaller(c, d), *low));
        *high = larger(larger(a, b), larger(larger(c, d), *high));
        nan |= u32::from(a.is_nan() | b.is_nan() | c.is_nan() | d.is_nan());
    }
    nan != 0
}

/// f32 in JSON, which has no infinities: these and NaN are text.
mod extended {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Number {
        Finite(f32),
        Other(String),
    }

    pub(super) fn serialize<S: Serializer>(values: &[f32], to: S) -> Result<S::Ok, S::Error> {
        let number = |&x: &f32| if x.is_finite() { Number::Finite(x) } else { Number::Other(x.to_string()) };
        to.collect_seq(values.iter().map(number))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
        let numbers = Vec::<Number>::deserialize(from)?;
        let value = |number| match number {
            Number::Finite(x) => Ok(x),
            Number::Other(text) => {
                text.parse().map_err(|_| D::Error::custom(format!("{text:?} is not a number")))
            }
        };
        numbers.into_iter().map(value).collect()
    }
}
