//! The loop: bands of pieces through a backend, results into the writer. Nothing is held beyond the tiles in flight.

mod blocks;
mod layer;
mod repack;
mod run;
mod tiling;

pub use tiling::Tiling;

use run::Run;

use crate::{
    backend::Backend,
    error::{Error, Result},
    formats::Part,
    plan::{Job, Place, Plan},
    profile::{Profile, Stage},
    reader::Source,
    report::Squares,
    tensor::{TensorInfo, View},
    tiles::{Piece, pieces},
    writer::Output,
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

/// Everything a run reads and writes.
pub struct Stream<'a> {
    /// What is to be done.
    pub plan: &'a Plan,
    /// The input's tensors, in the order of the plan.
    pub tensors: &'a [TensorInfo],
    /// Their bytes.
    pub source: &'a Source,
    /// The output.
    pub writer: &'a dyn Output,
    /// Clamp what overflows instead of refusing it.
    pub saturate: bool,
    /// Bytes of memory that tiles may take, and everything else.
    pub max_memory: u64,
    /// Bytes of weights a tile, instead of the backend's own.
    pub tile_bytes: Option<usize>,
    /// Set from outside to stop.
    pub interrupted: &'a AtomicBool,
    /// Told the bytes of input that were finished.
    pub progress: &'a dyn Fn(u64),
    /// What came of the jobs that an earlier run did: they are not done again.
    pub earlier: &'a BTreeMap<usize, JobResult>,
    /// Told of every job that is done, with all its bytes written.
    pub finished: Finished<'a>,
    /// Where the loop's stages are recorded.
    pub profile: Option<&'a Profile>,
}

/// Takes the number of a job that is done, and what came of it.
pub type Finished<'a> = &'a dyn Fn(usize, &JobResult) -> Result<()>;

/// What came of one job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobResult {
    /// Sums over its weights, if it was quantized: of each grid.
    pub squares: Vec<Squares>,
    /// Values that overflowed and were clamped.
    pub saturated: u64,
}

/// Bytes that are copied at once.
const COPY: usize = 4 << 20;

impl Stream<'_> {
    /// Runs every job; results are in the plan's order.
    pub fn run(&self, backend: &mut dyn Backend) -> Result<Vec<JobResult>> {
        let mut run = Run::new(self);
        let mut jobs = (0..self.plan.jobs.len()).filter(|job| !self.earlier.contains_key(job)).peekable();
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            while backend.has_room() {
                if let Some((band, piece)) = run.ready.pop_front() {
                    run.submit(backend, band, piece)?;
                } else if let Some(job) = jobs.next() {
                    run.start(backend, job)?;
                } else {
                    break;
                }
            }
            let waiting = backend.in_flight() > 0;
            let mut wait = self.profile.filter(|_| waiting).map(|profile| profile.span(Stage::Wait));
            let collected = backend.collect(&mut |tile, results| {
                drop(wait.take());
                run.done(tile, results)
            })?;
            run.again(backend.lost_tiles());
            if !collected && run.ready.is_empty() && jobs.peek().is_none() {
                return Ok(run.results);
            }
        }
    }

    /// How its jobs are cut.
    fn tiling(&self) -> Tiling<'_> {
        let Stream { plan, tensors, saturate, max_memory, tile_bytes, .. } = *self;
        Tiling { plan, tensors, saturate, max_memory, tile_bytes }
    }

    /// Writes bytes to every output of this part.
    fn write(&self, job: &Job, grid: usize, part: Part, offset: u64, bytes: &[u8]) -> Result<()> {
        let places = job.outputs.iter().filter(|o| o.part == part && o.grid == grid);
        places.into_iter().try_for_each(|o| self.writer.write(o.file, o.tensor, offset, bytes))
    }

    fn copy(&self, job: &Job) -> Result<()> {
        let size = self.tensors[job.source].dtype.size();
        let view = &job.view;
        let mut buffer = Vec::new();
        for piece in pieces(view.rows, view.cols, COPY / size, 1) {
            buffer.resize(piece.elements() * size, 0);
            let (rows, cols) = (piece.row..piece.row + piece.rows, piece.col..piece.col + piece.cols);
            self.source.read_view(job.source, view, rows, cols, &mut buffer)?;
            self.put(job, &piece, size, &buffer)?;
            (self.progress)(buffer.len() as u64);
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Writes a piece of floats to every output, in place if the plan puts a layer back into a larger tensor.
    fn put(&self, job: &Job, piece: &Piece, size: usize, bytes: &[u8]) -> Result<()> {
        for &Place { file, tensor, .. } in &job.outputs {
            match &job.target {
                Some(target) => {
                    let offset = target.offset
                        + piece.row as u64 * target.row_stride
                        + piece.col as u64 * target.col_stride;
                    let target = View { offset, rows: piece.rows, cols: piece.cols, ..*target };
                    self.writer.write_view(file, tensor, &target, 0..piece.rows, size, bytes)?;
                }
                None => {
                    let at = piece.start(job.view.cols) * size as u64;
                    self.writer.write(file, tensor, at, bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Names the tensor, the first index and the count of values that are not finite.
    fn not_finite(&self, source: usize) -> Error {
        let name = &self.tensors[source].name;
        match count_not_finite(self.source, source, &self.tensors[source]) {
            Ok(Some((index, count))) => Error::refused(format!(
                "{name}: {count} value{} not finite (NaN or infinity), the first at index {index}; \
                 --on-nonfinite keep leaves the tensor as it is",
                if count == 1 { " is" } else { "s are" }
            )),
            Ok(None) => {
                Error::Device(format!("{name}: the device saw a value that is not finite; the file has none"))
            }
            Err(e) => e,
        }
    }
}

/// First index and count of the values of a float tensor that are not finite.
pub fn count_not_finite(source: &Source, tensor: usize, info: &TensorInfo) -> Result<Option<(u64, u64)>> {
    let Some(float) = info.dtype.float() else { return Ok(None) };
    let (mut first, mut count) = (None, 0);
    let mut buffer = vec![0; COPY];
    let mut at = 0;
    while at < info.bytes() {
        let part = &mut buffer[..COPY.min((info.bytes() - at) as usize)];
        source.read(tensor, at, part)?;
        for (i, bytes) in part.chunks_exact(float.size()).enumerate() {
            if !float.decode(bytes).is_finite() {
                first.get_or_insert(at / float.size() as u64 + i as u64);
                count += 1;
            }
        }
        at += part.len() as u64;
    }
    Ok(first.map(|first| (first, count)))
}
