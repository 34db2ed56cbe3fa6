//! How a plan's jobs are cut into tiles on a backend, and so which kernels it needs there.

use crate::{
    backend::{Backend, Steps},
    kernels::{Binding, Lengths},
    plan::{Coded, Job, Plan, Work},
    sweeps::{Active, Kind},
    tensor::{Float, TensorInfo, View},
    tiles::{Band, Sweep, bands, pieces},
};

/// What decides the tiles of a run, beside the backend.
#[derive(Debug, Clone, Copy)]
pub struct Tiling<'a> {
    /// What is to be done.
    pub plan: &'a Plan,
    /// The input's tensors, in the order of the plan.
    pub tensors: &'a [TensorInfo],
    /// Clamp what overflows instead of refusing it.
    pub saturate: bool,
    /// Bytes of memory that tiles may take, and everything else.
    pub max_memory: u64,
    /// Bytes of weights a tile, instead of the backend's own.
    pub tile_bytes: Option<usize>,
}

/// Bytes that a process takes beside its tiles: code, headers, the driver.
const RESERVE: u64 = 96 << 20;

impl Tiling<'_> {
    /// The kernels of every tile that the backend will get, each with its input's dtype.
    pub fn steps(&self, backend: &dyn Backend) -> Steps {
        let mut steps = Steps::new();
        let mut last = None;
        for job in &self.plan.jobs {
            if last.replace(job).is_some_and(|last| self.alike(last, job)) {
                continue;
            }
            self.first_band(job, self.max_elements(backend, job), |active| {
                steps.extend(active.tile(0, 0).steps());
            });
        }
        steps
    }

    /// Whether two jobs are cut the same way and take the same kernels, as most neighbours do.
    pub fn alike(&self, a: &Job, b: &Job) -> bool {
        let work = match (&a.work, &b.work) {
            (Work::Dequantize(a), Work::Dequantize(b)) => {
                let [a, b] = [a, b].map(|&i| &self.plan.coded[i]);
                let Coded { bits, layout, rows, cols, group_len, output, .. } = *a;
                (bits, layout, rows, cols, group_len, output)
                    == (b.bits, b.layout, b.rows, b.cols, b.group_len, b.output)
            }
            (a, b) => a == b,
        };
        let view = |view: &View| (view.rows, view.cols, view.row_stride, view.col_stride);
        let dtype = |job: &Job| self.tensors[job.source].dtype;
        work && dtype(a) == dtype(b)
            && view(&a.view) == view(&b.view)
            && a.target.as_ref().map(view) == b.target.as_ref().map(view)
    }

    /// The most weights that a tile of this job may have.
    pub fn max_elements(&self, backend: &dyn Backend, job: &Job) -> usize {
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
        self.first_band(job, max, |active| {
            let tile = active.tile(0, 0);
            largest = (largest.0.max(tile.lengths()), largest.1.max(tile.passes.len()));
        });
        largest
    }

    /// Visits every sweep of the job's first band, which stands for all of them.
    fn first_band(&self, job: &Job, max: usize, mut visit: impl FnMut(&Active)) {
        let Some(band) = self.bands(job, max).into_iter().next() else { return };
        let mut active = Active::new(self.kind(job), 0, band);
        loop {
            visit(&active);
            if !active.advance() {
                return;
            }
        }
    }

    /// The job's matrix in bands of tiles of at most `max` weights.
    pub fn bands(&self, job: &Job, max: usize) -> Vec<Band> {
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

    /// What is done to the job's bands.
    pub fn kind(&self, job: &Job) -> Kind {
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
}

fn lcm8(n: usize) -> usize {
    n << 3u32.saturating_sub(n.trailing_zeros())
}
