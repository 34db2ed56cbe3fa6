//! A moving average of the batches' extremes.

use super::minmax::Extremes;

/// Moves `seen` towards the batch by this part of the way: `v + c · (x − v)`, each step rounded to f32 as torch does.
pub(super) fn follow(seen: &mut Extremes, batch: &Extremes, averaging_constant: f64) {
    let c = averaging_constant as f32;
    seen.low.iter_mut().zip(&batch.low).for_each(|(v, &x)| *v += c * (x - *v));
    seen.high.iter_mut().zip(&batch.high).for_each(|(v, &x)| *v += c * (x - *v));
}
