//! A layer from one layout to another: the same codes, scales and zero points.

use super::{Stream, layer::Outgoing};
use crate::{
    coded::{packed_rows, qparams},
    error::{Error, Result},
    plan::{Coded, Job, Work},
    scheme::Grid,
};
use std::sync::atomic::Ordering;

/// Bytes of codes that are taken over at once.
const AT_ONCE: usize = 64 << 20;

pub fn repack(stream: &Stream, job: &Job, coded: &Coded, grid: &Grid) -> Result<()> {
    debug_assert!(matches!(job.work, Work::Repack(..)));
    let (scales, offsets) = qparams(stream.source, stream.tensors, coded)?;
    let offsets: Vec<i8> = offsets.into_iter().map(|z| z as i8).collect(); // within the range of codes: checked
    let mut layer = Outgoing::new(stream, job, 0, grid);
    layer.start(stream, job)?;
    layer.qparams(stream, job, 0, &scales, &offsets)?;
    let row_bytes = 4 * (coded.cols * coded.bits as usize).div_ceil(32);
    let slab = ((stream.max_memory / 16) as usize).clamp(1 << 20, AT_ONCE);
    let step = (slab / row_bytes.max(1) / 8 * 8).max(8);
    for first in (0..coded.rows).step_by(step) {
        let rows = first..(first + step).min(coded.rows);
        let elements = rows.len() * coded.cols;
        let codes = packed_rows(stream.source, coded, job.source, rows)?;
        layer.codes(stream, job, (first * row_bytes) as u64, &codes)?;
        (stream.progress)((elements * coded.bits as usize / 8) as u64);
        if stream.interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
    }
    layer.finish(stream, job)
}
