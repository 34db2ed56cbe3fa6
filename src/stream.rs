//! The loop: bands of pieces through a backend, results into the writer. Nothing is held beyond the tiles in flight.

mod blocks;
mod layer;
mod repack;
mod run;

use run::Run;

use crate::{
    backend::Backend,
    error::{Error, Result},
    formats::Part,
    kernels::{Binding, Lengths},
    plan::{Job, Place, Plan, Work},
    profile::{Profile, Stage},
    reader::Source,
    report::Squares,
    sweeps::{Active, Kind},
    tensor::{Float, TensorInfo, View},
    tiles::{Band, Piece, Sweep, bands, pieces},
    writer::Output,
};
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Where the loop's stages are recorded.
    pub profile: Option<&'a Profile>,
}

/// What came of one job.
#[derive(Debug, Clone, Default)]
pub struct JobResult {
    /// Sums over its weights, if it was quantized: of each grid.
    pub squares: Vec<Squares>,
    /// Values that overflowed and were clamped.
    pub saturated: u64,
}

/// Bytes that a process takes beside its tiles: code, headers, the driver.
const RESERVE: u64 = 96 << 20;
/// Bytes that are copied at once.
const COPY: usize = 4 << 20;

impl Stream<'_> {
    /// Runs every job; results are in the plan's order.
    pub fn run(&self, backend: &mut dyn Backend) -> Result<Vec<JobResult>> {
        let mut run = Run::new(self);
        let mut jobs = 0..self.plan.jobs.len();
        loop {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            while backend.in_flight() < backend.depth() {
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
            if !backend.collect(&mut |tile, results| {
                drop(wait.take());
                run.done(tile, results)
            })? && run.ready.is_empty()
                && jobs.is_empty()
            {
                return Ok(run.results);
            }
        }
    }

    /// The most weights that a tile of this job may have.
    fn max_elements(&self, backend: &dyn Backend, job: &Job) -> usize {
        let info = &self.tensors[job.source];
        let budget =
            self.max_memory.saturating_sub(RESERVE).max(self.max_memory / 2) / backend.depth() as u64;
        // runs across a transposed matrix are short; a larger tile reads longer ones
        let across = |view: &View| view.col_stride != 1;
        let wide = if across(&job.view) || job.target.as_ref().is_some_and(across) { 8 } else { 1 };
        let decoded = matches!(job.work, Work::Dequantize(_) | Work::DequantizeBlocks(..));
        let size = if decoded { 2 } else { info.dtype.size() };
        let usual = self.tile_bytes.unwrap_or_else(|| backend.tile_bytes());
        let mut max = (usual * wide / size).max(64);
        while max > 64 {
            let (lengths, passes) = self.largest(job, max);
            let largest = Binding::ALL.iter().map(|&b| 4 * lengths.of(b) as u64).max().unwrap_or(0);
            if backend.bytes_per_tile(&lengths, passes) <= budget && largest <= backend.max_buffer_bytes() {
                break;
            }
            max /= 2;
        }
        max
    }

    /// Buffer lengths and passes of the job's first tile, over all its sweeps.
    fn largest(&self, job: &Job, max: usize) -> (Lengths, usize) {
        let mut largest = (Lengths::default(), 1);
        let Some(band) = self.bands(job, max).into_iter().next() else { return largest };
        let mut active = Active::new(self.kind(job), 0, band);
        loop {
            let tile = active.tile(0, 0);
            largest = (largest.0.max(tile.lengths()), largest.1.max(tile.passes.len()));
            if !active.advance() {
                return largest;
            }
        }
    }

    fn bands(&self, job: &Job, max: usize) -> Vec<Band> {
        let one = |piece| Band { pieces: vec![piece], spans: false, sweeps: &[Sweep::Quantize] };
        match &job.work {
            Work::Quantize(grids) => bands(grids[0].scheme, job.view.rows, job.view.cols, max).collect(),
            Work::Cast(_) => pieces(job.view.rows, job.view.cols, max, 64).map(one).collect(),
            Work::Dequantize(i) => {
                let coded = &self.plan.coded[*i];
                let align = if coded.group_len < coded.cols { lcm8(coded.group_len) } else { 8 };
                pieces(coded.rows, coded.cols, max.max(align), align).map(one).collect()
            }
            // whole blocks, and whole words of floats
            Work::QuantizeBlocks(block) | Work::DequantizeBlocks(block, _) => {
                let align = block.len().max(64);
                pieces(job.view.rows, job.view.cols, max.max(align), align).map(one).collect()
            }
            Work::Copy | Work::Repack(..) => Vec::new(),
        }
    }

    fn kind(&self, job: &Job) -> Kind {
        let input = self.tensors[job.source].dtype.float().unwrap_or(Float::F32);
        match &job.work {
            Work::Quantize(grids) => {
                Kind::Quantize { grids: grids.clone(), input, rows: job.view.rows, cols: job.view.cols }
            }
            Work::Cast(to) => Kind::Cast { input, to: *to, saturate: self.saturate },
            Work::Dequantize(i) => {
                Kind::Dequantize { coded: self.plan.coded[*i].clone(), saturate: self.saturate }
            }
            Work::QuantizeBlocks(block) => Kind::QuantizeBlocks { block: *block, input },
            Work::DequantizeBlocks(block, to) => {
                Kind::DequantizeBlocks { block: *block, to: *to, saturate: self.saturate }
            }
            Work::Copy | Work::Repack(..) => Kind::Cast { input, to: input, saturate: false },
        }
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

fn lcm8(n: usize) -> usize {
    n << 3u32.saturating_sub(n.trailing_zeros())
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
