//! From ranges to scales and zero points, as torch's observers compute them.

use crate::error::{Error, Result};

/// torch's `eps`: the smallest scale.
const LEAST_SCALE: f32 = f32::EPSILON;

/// Scales and zero points: one each, or one a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct QParams {
    /// Positive and finite.
    pub scales: Vec<f32>,
    /// Between `qmin` and `qmax`, but for symmetric codes of 8 bits without sign, where it is 128.
    pub zero_points: Vec<i32>,
    /// Smallest code.
    pub qmin: i32,
    /// Largest code.
    pub qmax: i32,
}

/// The codes that a range is spread over.
pub(super) struct Codes {
    qmin: i32,
    qmax: i32,
    /// The zero point of symmetric codes; None for affine ones.
    centre: Option<i32>,
}

impl Codes {
    pub(super) fn new(bits: u32, symmetric: bool, signed: bool, reduce_range: bool) -> Result<Self> {
        if !(2..=8).contains(&bits) {
            return Err(Error::refused(format!("inputs are quantized to 2 to 8 bits, not {bits}")));
        }
        if symmetric && reduce_range && !signed {
            return Err(Error::refused("symmetric codes without sign cannot have a reduced range"));
        }
        let (mut qmin, mut qmax) =
            if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        if reduce_range {
            // the arithmetic shift floors, as torch's `//` does
            (qmin, qmax) = (qmin >> 1, qmax >> 1);
        }
        let centre = match (signed, bits) {
            (true, _) => 0,
            (false, 8) => 128,
            // torch's rule for a custom range
            (false, _) => (qmin + qmax) >> 1,
        };
        Ok(Self { qmin, qmax, centre: symmetric.then_some(centre) })
    }

    pub(super) fn qparams(&self, ranges: &[(f32, f32)], infinities: u64) -> Result<QParams> {
        let &Self { qmin, qmax, centre } = self;
        let steps = (qmax - qmin) as f32;
        let mut scales = Vec::with_capacity(ranges.len());
        let mut zero_points = Vec::with_capacity(ranges.len());
        for (channel, &(low, high)) in ranges.iter().enumerate() {
            let (down, up) = (low.min(0.0), high.max(0.0));
            let scale = match centre {
                Some(_) => up.max(-down) / (steps / 2.0),
                None => (up - down) / steps,
            };
            // the moving average of an infinity is NaN
            if !scale.is_finite() || low.is_nan() || high.is_nan() {
                let of = if ranges.len() > 1 { format!(" of channel {channel}") } else { String::new() };
                let seen = match infinities {
                    0 => String::new(),
                    n => format!(" ({n} infinite values were seen)"),
                };
                return Err(Error::refused(format!(
                    "the range{of}, {low} to {high}, has no finite scale{seen}"
                )));
            }
            let scale = scale.max(LEAST_SCALE);
            scales.push(scale);
            zero_points.push(match centre {
                Some(centre) => centre,
                None => (qmin - (down / scale).round_ties_even() as i32).clamp(qmin, qmax),
            });
        }
        Ok(QParams { scales, zero_points, qmin, qmax })
    }
}
