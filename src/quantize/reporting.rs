//! The report of a run.

use super::Prepared;
use crate::{
    device::Device,
    plan::Work,
    report::{Entry, InputFile, Report, Squares, warnings},
    stream::JobResult,
};
use std::time::Instant;

/// What a run did, row by row, and what the user should be warned of.
pub(super) fn report(prepared: &Prepared, results: &[JobResult], device: &Device, start: Instant) -> Report {
    let Prepared { checkpoint, plan, destination, .. } = prepared;
    let mut entries: Vec<Entry> = plan
        .rows
        .iter()
        .map(|row| Entry { row: row.clone(), bits: None, sqnr_db: None, peak_to_rms: None, saturated: None })
        .collect();
    let mut total = Squares::default();
    for (job, result) in plan.jobs.iter().zip(results) {
        let entry = &mut entries[job.row];
        entry.bits = match &job.work {
            Work::Quantize(grids) => grids.first().map(|grid| grid.scheme.bits),
            Work::QuantizeBlocks(block) => Some(block.bits()),
            _ => None,
        };
        if entry.bits.is_some() {
            // of several grids, the worst
            let worst = result.squares.iter().copied().min_by(|a, b| a.sqnr_db().total_cmp(&b.sqnr_db()));
            let squares = worst.unwrap_or_default();
            entry.sqnr_db = Some(squares.sqnr_db());
            entry.peak_to_rms = Some(squares.peak_to_rms());
            total.add(squares);
        }
        entry.saturated = (result.saturated > 0).then_some(result.saturated);
    }
    let loss = device.backend.loss();
    let mut all_warnings: Vec<String> = loss.iter().cloned().chain(warnings(&entries)).collect();
    for (job, result) in plan.jobs.iter().zip(results) {
        if result.squares.first().is_some_and(|squares| squares.signal == 0.0) {
            all_warnings.push(format!(
                "{}: all its weights are zero, or below the smallest normal f32, which counts as zero",
                plan.rows[job.row].name
            ));
        }
    }
    all_warnings.extend(entries.iter().filter_map(|e| {
        let n = e.saturated?;
        let values = if n == 1 { "value was" } else { "values were" };
        Some(format!("{}: {n} {values} clamped to the largest of the new dtype", e.row.name))
    }));
    let left_out =
        checkpoint.left_out().iter().map(|(p, why)| (p.display().to_string(), why.clone())).collect();
    Report {
        version: env!("CARGO_PKG_VERSION"),
        model: checkpoint.path().display().to_string(),
        output: destination.path().display().to_string(),
        device: loss.map_or_else(|| device.why.clone(), |loss| format!("{}; {loss}", device.why)),
        bytes_before: plan.bytes_before(),
        bytes_after: plan.bytes_after(),
        sqnr_db: (total.count > 0).then(|| total.sqnr_db()),
        seconds: start.elapsed().as_secs_f64(),
        dispatches: device.backend.dispatches(),
        warnings: all_warnings,
        notes: plan.notes.clone(),
        left_out,
        files: Vec::new(),
        input: checkpoint
            .stamps()
            .below(checkpoint.path())
            .into_iter()
            .map(|(name, stamp)| InputFile { name, bytes: stamp.bytes, sha256: None })
            .collect(),
        command: Vec::new(),
        verified: None,
        tensors: entries,
    }
}
