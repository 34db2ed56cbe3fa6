//! A band on its way through its sweeps: which kernels run over its tiles, with what they start, what was found so far.

use crate::{
    backend::{Pass, Results, Tile},
    block::Block,
    histograms,
    kernels::{self, Binding, Kernel, TileParams, arithmetic::unordered},
    observer::{BINS, Observer},
    plan::Coded,
    scheme::{Grid, Strategy},
    tensor::Float,
    tiles::{Band, Piece, Sweep, group_len},
};
use rayon::prelude::*;

/// What is done to a band's matrix.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Kind {
    Quantize { grids: Vec<Grid>, input: Float, rows: usize, cols: usize },
    Cast { input: Float, to: Float, saturate: bool },
    Dequantize { coded: Coded, saturate: bool },
    QuantizeBlocks { block: Block, input: Float },
    DequantizeBlocks { block: Block, to: Float, saturate: bool },
}

/// A band in work.
#[derive(Debug, Clone)]
pub struct Active {
    /// What is done.
    pub kind: Kind,
    /// Number of its job.
    pub job: usize,
    /// Its pieces.
    pub band: Band,
    /// Tiles of the current sweep that have not come back.
    pub waiting: usize,
    at: usize,
    /// `[channels][2]`, combined over tiles.
    ranges: Vec<u32>,
    /// Histograms `[channels][bins]`.
    counts: Vec<u64>,
    /// Error sums of each grid, `[candidates]`.
    sums: Vec<Vec<u64>>,
    /// Edges of histograms, then clips.
    edges: Vec<u32>,
}

const QUANTIZE_RESULTS: &[Binding] =
    &[Binding::Ranges, Binding::Scales, Binding::ZeroPoints, Binding::Output, Binding::Errors];
const BLOCK_RESULTS: &[Binding] =
    &[Binding::Ranges, Binding::Counts, Binding::Scales, Binding::Output, Binding::Errors];
const FLOAT_RESULTS: &[Binding] = &[Binding::Counts, Binding::Output];

impl Active {
    /// A band before its first sweep.
    pub fn new(kind: Kind, job: usize, band: Band) -> Self {
        let waiting = band.pieces.len();
        let (ranges, counts, edges, sums) = Default::default();
        Active { kind, job, band, waiting, at: 0, ranges, counts, sums, edges }
    }

    /// The current sweep.
    pub fn sweep(&self) -> Sweep {
        self.band.sweeps[self.at]
    }

    /// Takes what a tile of an observing sweep found.
    pub fn observe(&mut self, results: &[Results]) {
        match self.sweep() {
            Sweep::Range => {
                let found = results[0].get(Binding::Ranges);
                self.ranges.resize(found.len(), 0);
                self.ranges.iter_mut().zip(found).for_each(|(range, &r)| *range = r.max(*range));
            }
            Sweep::Histogram => {
                let found = results[0].get(Binding::Counts);
                self.counts.resize(found.len(), 0);
                self.counts.iter_mut().zip(found).for_each(|(count, &c)| *count += u64::from(c));
            }
            Sweep::Search | Sweep::Refine => {
                self.sums.resize(results.len(), Vec::new());
                for (grid, results) in results.iter().enumerate() {
                    let params = self.params(&self.band.pieces[0], grid);
                    let [coarse, candidates] = [params.coarse, params.candidates].map(|n| n as usize);
                    // a refining tile starts with the coarse sums of all tiles
                    let new = if self.sweep() == Sweep::Search { 0..coarse } else { coarse..candidates };
                    let sums = &mut self.sums[grid];
                    sums.resize(candidates, 0);
                    for table in results.get(Binding::Counts).chunks_exact(2 * candidates) {
                        for i in new.clone() {
                            sums[i] += u64::from(table[2 * i]) | u64::from(table[2 * i + 1]) << 32;
                        }
                    }
                }
            }
            Sweep::Quantize => {}
        }
    }

    /// Goes on to the next sweep with what was found; false after the last.
    pub fn advance(&mut self) -> bool {
        let Kind::Quantize { grids, .. } = &self.kind else { return false };
        let (observer, codes) = (grids[0].scheme.observer, 1 << grids[0].scheme.bits);
        let finished = self.sweep();
        self.at += 1;
        if self.at == self.band.sweeps.len() {
            return false;
        }
        self.waiting = self.band.pieces.len();
        let bins = BINS as usize;
        match (finished, self.sweep()) {
            (Sweep::Range, Sweep::Histogram) => {
                let edges = |range: &[u32]| {
                    let bound = |b: u32| f32::from_bits(unordered(b));
                    histograms::edges(-bound(range[0]), bound(range[1]), BINS)
                };
                self.edges = self.ranges.par_chunks(2).flat_map_iter(edges).collect();
            }
            (Sweep::Histogram, _) => {
                let clips = self.counts.par_chunks(bins).zip(self.edges.par_chunks(bins + 1));
                let clips = clips.map(|(counts, edges)| histograms::clip(observer, counts, edges, codes));
                self.edges = clips.collect::<Vec<_>>().concat();
                self.counts = Vec::new();
            }
            _ => {}
        }
        true
    }

    /// The tile of one piece in the current sweep.
    pub fn tile(&self, piece: usize, tag: u64) -> Tile {
        let piece = self.band.pieces[piece];
        let passes: Vec<Pass> = (0..self.passes()).map(|grid| self.pass(&piece, grid)).collect();
        let input_bytes = match &self.kind {
            Kind::DequantizeBlocks { block, .. } => block.bytes_for(piece.elements() as u64) as usize,
            Kind::Quantize { input, .. } | Kind::Cast { input, .. } | Kind::QuantizeBlocks { input, .. } => {
                piece.elements() * input.size()
            }
            Kind::Dequantize { coded, .. } if coded.packed() => 4 * passes[0].params.code_words() as usize,
            Kind::Dequantize { .. } => piece.elements(),
        };
        Tile { tag, input_bytes, passes }
    }

    /// Ranges and histograms serve every grid; what follows is done for each.
    fn passes(&self) -> usize {
        match &self.kind {
            Kind::Quantize { grids, .. } if !matches!(self.sweep(), Sweep::Range | Sweep::Histogram) => {
                grids.len()
            }
            _ => 1,
        }
    }

    fn pass(&self, piece: &Piece, grid: usize) -> Pass {
        let mut params = self.params(piece, grid);
        let mut preload = Vec::new();
        let (kernels, wants): (Vec<&'static Kernel>, _) = match &self.kind {
            Kind::Cast { .. } => (vec![&kernels::convert::KERNEL], FLOAT_RESULTS),
            Kind::Dequantize { .. } => (vec![&kernels::dequantize::KERNEL], FLOAT_RESULTS),
            Kind::QuantizeBlocks { block, .. } => (kernels::block_steps(*block), BLOCK_RESULTS),
            Kind::DequantizeBlocks { .. } => (vec![&kernels::block_dequantize::KERNEL], FLOAT_RESULTS),
            Kind::Quantize { grids, .. } => match self.sweep() {
                Sweep::Range => (vec![&kernels::minmax::KERNEL], &[Binding::Ranges][..]),
                Sweep::Histogram => {
                    preload.push((Binding::Edges, self.edges.clone()));
                    (vec![&kernels::histogram::KERNEL], &[Binding::Counts][..])
                }
                Sweep::Search => {
                    preload.push((Binding::Ranges, self.ranges.clone()));
                    (vec![&kernels::search::KERNEL], &[Binding::Counts][..])
                }
                Sweep::Refine => {
                    preload.push((Binding::Ranges, self.ranges.clone()));
                    preload.push((Binding::Counts, self.sum_words(grid)));
                    (vec![&kernels::refine::KERNEL], &[Binding::Counts][..])
                }
                Sweep::Quantize => {
                    let observer = grids[grid].scheme.observer;
                    let kernels = self.quantize_kernels(observer, grid, &mut params, &mut preload);
                    (kernels, QUANTIZE_RESULTS)
                }
            },
        };
        Pass { params, kernels, preload, wants }
    }

    fn quantize_kernels(
        &self,
        observer: Observer,
        grid: usize,
        params: &mut TileParams,
        preload: &mut Vec<(Binding, Vec<u32>)>,
    ) -> Vec<&'static Kernel> {
        let mut kernels: Vec<&'static Kernel> = Vec::new();
        if self.band.spans {
            preload.push((Binding::Ranges, self.ranges.clone()));
        } else {
            kernels.push(&kernels::minmax::KERNEL);
        }
        match observer {
            Observer::MinMax => {}
            Observer::Percentile(_) | Observer::Histogram => {
                preload.push((Binding::Edges, self.edges.clone()));
                kernels.push(&kernels::clip_range::KERNEL);
            }
            Observer::Mse { .. } if self.band.spans => preload.push((Binding::Counts, self.sum_words(grid))),
            Observer::Mse { .. } => kernels.extend([&kernels::search::KERNEL, &kernels::refine::KERNEL]),
        }
        // one kernel does it all, or what is left of it, for groups of whole runs of weights
        let whole = kernels == [&kernels::minmax::KERNEL];
        if !kernels::quantize::suits(params) {
            let steps = [&kernels::qparams::KERNEL, &kernels::quantize_pack::KERNEL, &kernels::error::KERNEL];
            kernels.extend(steps);
        } else if whole {
            kernels = vec![&kernels::quantize::KERNEL];
        } else {
            params.scaled = 1;
            kernels.extend([&kernels::qparams::KERNEL, &kernels::quantize::KERNEL]);
        }
        kernels
    }

    /// Error sums of all tiles, as a table of one; none yet where only lengths are asked for.
    fn sum_words(&self, grid: usize) -> Vec<u32> {
        let sums = self.sums.get(grid).into_iter().flatten();
        sums.flat_map(|&sum| [sum as u32, (sum >> 32) as u32]).collect()
    }

    fn params(&self, piece: &Piece, grid: usize) -> TileParams {
        let elements = piece.elements() as u32;
        match &self.kind {
            Kind::Cast { input, to, saturate } => TileParams {
                input_dtype: *input as u32,
                output_dtype: *to as u32,
                saturate: (*saturate).into(),
                ..Default::default()
            }
            .with_groups(elements, elements),
            Kind::QuantizeBlocks { block, input } => {
                TileParams { input_dtype: *input as u32, ..Default::default() }.with_blocks(*block, elements)
            }
            Kind::DequantizeBlocks { block, to, saturate } => TileParams {
                input_dtype: Float::F32 as u32, // words: the blocks are no floats
                output_dtype: *to as u32,
                saturate: (*saturate).into(),
                ..Default::default()
            }
            .with_blocks(*block, elements),
            Kind::Dequantize { coded, saturate } => TileParams {
                input_dtype: Float::F32 as u32, // words: the codes are no floats
                output_dtype: coded.output as u32,
                row_len: if coded.packed() { piece.cols as u32 } else { elements },
                saturate: (*saturate).into(),
                ..Default::default()
            }
            .with_groups(elements, (coded.group_len as u32).min(elements))
            .with_grid(coded.bits, false, coded.packed()),
            Kind::Quantize { grids, input, rows, cols } => {
                let Grid { scheme, scale } = &grids[grid];
                let together = self.band.pieces.len() > 1 || scheme.strategy == Strategy::Tensor;
                let channel_len = if together { elements } else { *cols as u32 };
                let group =
                    if self.band.spans { elements } else { group_len(scheme.strategy, *rows, *cols) as u32 };
                let group = if self.sweep() == Sweep::Range { channel_len } else { group };
                let params = TileParams {
                    input_dtype: *input as u32,
                    scale_dtype: *scale as u32,
                    row_len: if scheme.packed() { piece.cols as u32 } else { elements },
                    channel_len,
                    bins: BINS,
                    ..Default::default()
                }
                .with_groups(elements, group)
                .with_grid(scheme.bits, scheme.symmetric, scheme.packed());
                match scheme.observer {
                    Observer::Mse { both_signs } => {
                        let whole = group_len(scheme.strategy, *rows, *cols);
                        let params = params.with_search(both_signs, whole);
                        // a spanning band's sums were added up by the host
                        if self.band.spans && self.sweep() == Sweep::Quantize {
                            TileParams { tallies: 1, ..params }
                        } else {
                            params
                        }
                    }
                    _ => params,
                }
            }
        }
    }
}
