//! A run's state between tiles: bands in work, results of jobs.

use super::{JobResult, Stream, blocks, layer::Outgoing, repack::repack};
use crate::{
    backend::{Backend, Pass, Results, Tile},
    coded::{Incoming, code_offset, qparams},
    error::{Error, Result},
    kernels::{Binding, bits},
    plan::Work,
    profile::Stage,
    report::Squares,
    scheme::Grid,
    sweeps::{Active, Kind},
    tensor::Float,
    tiles::{Piece, Sweep, group_len},
};
use std::collections::{HashMap, VecDeque};

#[derive(Default)]
struct JobState {
    bands: usize,
    /// The layer on each grid.
    layers: Vec<Outgoing>,
    /// Codes of a layer that is dequantized.
    incoming: Incoming,
    /// Scales and zero points of a layer that is dequantized.
    scales: Vec<u32>,
    offsets: Vec<i32>,
    result: JobResult,
    not_finite: bool,
}

pub struct Run<'a> {
    stream: &'a Stream<'a>,
    states: HashMap<usize, JobState>,
    active: HashMap<u64, Active>,
    /// Tiles that wait for a place: band and piece.
    pub ready: VecDeque<(u64, usize)>,
    /// In the plan's order.
    pub results: Vec<JobResult>,
    next_band: u64,
    /// The job that was started last, and the most weights that a tile of it may have.
    last: Option<(usize, usize)>,
}

impl<'a> Run<'a> {
    pub fn new(stream: &'a Stream<'a>) -> Self {
        Run {
            stream,
            states: HashMap::new(),
            active: HashMap::new(),
            ready: VecDeque::new(),
            results: (0..stream.plan.jobs.len())
                .map(|job| stream.earlier.get(&job).cloned().unwrap_or_default())
                .collect(),
            next_band: 0,
            last: None,
        }
    }

    pub fn start(&mut self, backend: &dyn Backend, number: usize) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let mut state = JobState::default();
        match &job.work {
            Work::Copy => {
                stream.copy(job)?;
                return (stream.finished)(number, &state.result);
            }
            Work::Dequantize(i) => {
                (state.scales, state.offsets) =
                    qparams(stream.source, stream.tensors, &stream.plan.coded[*i])?;
            }
            Work::Repack(i, grid) => {
                repack(stream, job, &stream.plan.coded[*i], grid)?;
                return (stream.finished)(number, &state.result);
            }
            Work::Quantize(grids) => {
                let layer = |(number, grid)| Outgoing::new(stream, job, number, grid);
                state.layers = grids.iter().enumerate().map(layer).collect();
                state.result.squares = vec![Squares::default(); grids.len()];
                state.layers.iter().try_for_each(|layer| layer.start(stream, job))?;
            }
            Work::Cast(_) | Work::QuantizeBlocks(_) | Work::DequantizeBlocks(..) => {}
        }
        let tiling = stream.tiling();
        let last = self.last.filter(|&(last, _)| tiling.alike(&stream.plan.jobs[last], job));
        let max = last.map_or_else(|| tiling.max_elements(backend, job), |(_, max)| max);
        self.last = Some((number, max));
        let bands = tiling.bands(job, max);
        state.bands = bands.len();
        if bands.is_empty() {
            return (stream.finished)(number, &state.result);
        }
        self.states.insert(number, state);
        for band in bands {
            let id = self.next_band;
            self.next_band += 1;
            self.ready.extend((0..band.pieces.len()).map(|p| (id, p)));
            self.active.insert(id, Active::new(tiling.kind(job), number, band));
        }
        Ok(())
    }

    pub fn submit(&mut self, backend: &mut dyn Backend, band: u64, piece_number: usize) -> Result<()> {
        let active = &self.active[&band];
        let stream = self.stream;
        let job = &stream.plan.jobs[active.job];
        let piece = active.band.pieces[piece_number];
        let mut tile = active.tile(piece_number, band << 24 | piece_number as u64);
        if let Kind::Dequantize { coded, .. } = &active.kind {
            let state = &self.states[&active.job];
            let pass = &mut tile.passes[0];
            let first = piece.start(coded.cols) as usize / coded.group_len;
            let groups = first..first + pass.params.groups as usize;
            let offsets = state.offsets[groups.clone()].iter().map(|&z| z as u32).collect();
            pass.preload.push((Binding::Scales, state.scales[groups].to_vec()));
            pass.preload.push((Binding::ZeroPoints, offsets));
        }
        if let Some(profile) = stream.profile {
            profile.tile(tile.tag, &stream.tensors[job.source].name);
        }
        let kind = &active.kind;
        let incoming = self.states.get_mut(&active.job).map(|state| &mut state.incoming);
        let mut unused = Incoming::default();
        let incoming = incoming.unwrap_or(&mut unused);
        backend.submit(tile, &mut |bytes| {
            if let Kind::Dequantize { coded, .. } = kind {
                let memory = stream.max_memory;
                return incoming.read(stream.source, coded, job.source, &piece, memory, bytes);
            }
            if let Kind::DequantizeBlocks { block, .. } = kind {
                return stream.source.read(job.source, block.bytes_for(piece.start(job.view.cols)), bytes);
            }
            let (rows, cols) = (piece.row..piece.row + piece.rows, piece.col..piece.col + piece.cols);
            stream.source.read_view(job.source, &job.view, rows, cols, bytes)
        })?;
        self.again(backend.lost_tiles());
        Ok(())
    }

    /// Puts tiles that were lost with a machine in front of all others, in their order.
    pub fn again(&mut self, tags: Vec<u64>) {
        for tag in tags.into_iter().rev() {
            self.ready.push_front(band_and_piece(tag));
        }
    }

    pub fn done(&mut self, tile: Tile, results: &[Results]) -> Result<()> {
        let (band, piece_number) = band_and_piece(tile.tag);
        let Some(mut active) = self.active.remove(&band) else {
            return Err(Error::Device(format!("tile {} came back twice", tile.tag)));
        };
        let number = active.job;
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let _span = stream.profile.map(|profile| {
            profile.tile_done(tile.tag);
            profile.span(Stage::Store).of(&stream.tensors[job.source].name, tile.input_bytes)
        });
        let sweep = active.sweep();
        let ranges = results[0].get(Binding::Ranges);
        if ranges.iter().any(|&bound| bound >= bits::INFINITY | bits::SIGN) {
            return Err(stream.not_finite(job.source));
        }
        if sweep == Sweep::Quantize {
            let piece = active.band.pieces[piece_number];
            self.store(&active, &piece, piece_number, &tile, results)?;
            let read = piece.elements() as u64 * stream.tensors[job.source].dtype.size() as u64;
            (stream.progress)(if matches!(job.work, Work::Dequantize(_) | Work::DequantizeBlocks(..)) {
                tile.input_bytes as u64
            } else {
                read
            });
        } else {
            active.observe(results);
        }
        active.waiting -= 1;
        if active.waiting > 0 {
            self.active.insert(band, active);
        } else if active.advance() {
            for piece in (0..active.band.pieces.len()).rev() {
                self.ready.push_front((band, piece));
            }
            self.active.insert(band, active);
        } else {
            self.finish_band(number)?;
        }
        Ok(())
    }

    fn store(
        &mut self,
        active: &Active,
        piece: &Piece,
        piece_number: usize,
        tile: &Tile,
        results: &[Results],
    ) -> Result<()> {
        match &active.kind {
            Kind::Quantize { grids, cols, .. } => {
                for (number, (grid, results)) in grids.iter().zip(results).enumerate() {
                    let spanned = active.band.spans && piece_number > 0;
                    self.store_codes(active.job, piece, (number, grid), *cols, spanned, results)?;
                    let state = self.states.entry(active.job).or_default();
                    state.result.squares[number].add(squares(&tile.passes[number], results));
                }
                Ok(())
            }
            Kind::Cast { to, .. } => self.store_floats(active.job, piece, *to, &results[0]),
            Kind::Dequantize { coded, .. } => self.store_floats(active.job, piece, coded.output, &results[0]),
            Kind::DequantizeBlocks { to, .. } => self.store_floats(active.job, piece, *to, &results[0]),
            Kind::QuantizeBlocks { block, .. } => {
                let job = &self.stream.plan.jobs[active.job];
                let state = self.states.entry(active.job).or_default();
                blocks::store(
                    self.stream,
                    job,
                    *block,
                    piece,
                    (&tile.passes[0], &results[0]),
                    &mut state.result,
                )
            }
        }
    }

    /// Hands the codes of a piece on, and its scales unless an earlier piece brought the one that they share.
    fn store_codes(
        &mut self,
        number: usize,
        piece: &Piece,
        (grid_number, grid): (usize, &Grid),
        cols: usize,
        spanned: bool,
        results: &Results,
    ) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let scheme = &grid.scheme;
        let scales = results.get(Binding::Scales);
        // the lowest code must decode to something finite, too
        let steps = (1u32 << (scheme.bits - u32::from(scheme.symmetric))) as f32;
        if let Some(i) = scales.iter().position(|&s| !(f32::from_bits(s) * steps).is_finite()) {
            let name = &stream.tensors[job.source].name;
            return Err(Error::refused(format!(
                "{name}: group {i} from row {} has a range that overflows {} when it is coded; leave the layer \
                 out with --exclude, or scale its weights down",
                piece.row,
                grid.scale.dtype()
            )));
        }
        let output: &[u8] = bytemuck::cast_slice(results.get(Binding::Output));
        let bytes = if scheme.packed() { output.len() } else { piece.elements() };
        let at = code_offset(scheme.bits, scheme.packed(), cols, piece);
        let state = self.states.entry(number).or_default();
        let layer = &mut state.layers[grid_number];
        layer.codes(stream, job, at, &output[..bytes])?;
        if spanned {
            return Ok(());
        }
        let first = piece.start(cols) as usize / group_len(scheme.strategy, job.view.rows, cols);
        let zero_points: Vec<i8> = results.get(Binding::ZeroPoints).iter().map(|&z| z as i32 as i8).collect();
        layer.qparams(stream, job, first, scales, &zero_points)
    }

    fn store_floats(&mut self, number: usize, piece: &Piece, to: Float, results: &Results) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let output: &[u8] = bytemuck::cast_slice(results.get(Binding::Output));
        let counts = results.get(Binding::Counts);
        let state = self.states.entry(number).or_default();
        state.result.saturated += u64::from(counts[0]);
        state.not_finite |= counts[1] > 0;
        stream.put(job, piece, to.size(), &output[..piece.elements() * to.size()])
    }

    fn finish_band(&mut self, number: usize) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let Some(state) = self.states.get_mut(&number) else { return Ok(()) };
        state.bands -= 1;
        if state.bands > 0 {
            return Ok(());
        }
        let name = &stream.tensors[job.source].name;
        let coded = matches!(job.work, Work::Dequantize(_) | Work::DequantizeBlocks(..));
        if state.not_finite && coded {
            return Err(Error::refused(format!(
                "{name}: codes times scales overflow F32; the scales are damaged"
            )));
        }
        if state.not_finite {
            return Err(stream.not_finite(job.source));
        }
        let count = state.result.saturated;
        if count > 0 && !stream.saturate {
            let other = if coded { "--dtype f32 holds them" } else { "--exclude leaves the tensor as it is" };
            return Err(Error::refused(format!(
                "{name}: {count} value{} beyond the largest of the new dtype; --saturate clamps, {other}",
                if count == 1 { " is" } else { "s are" },
            )));
        }
        state.layers.iter_mut().try_for_each(|layer| layer.finish(stream, job))?;
        if let Some(state) = self.states.remove(&number) {
            (stream.finished)(number, &state.result)?;
            self.results[number] = state.result;
        }
        Ok(())
    }
}

/// What a tile's tag stands for.
fn band_and_piece(tag: u64) -> (u64, usize) {
    (tag >> 24, (tag & 0xff_ffff) as usize)
}

/// A pass's error sums, in units of the weights.
pub(super) fn squares(pass: &Pass, results: &Results) -> Squares {
    let mut total = Squares { count: pass.params.elements.into(), ..Default::default() };
    let scales = results.get(Binding::Scales);
    let per_group = pass.params.chunks_per_group.max(1) as usize;
    for (&scale, chunks) in scales.iter().zip(results.get(Binding::Errors).chunks(2 * per_group)) {
        let s = f64::from(f32::from_bits(scale));
        for sums in chunks.chunks_exact(2) {
            total.signal += s * s * f64::from(f32::from_bits(sums[0]));
            total.noise += s * s * f64::from(f32::from_bits(sums[1]));
        }
    }
    for &bound in results.get(Binding::Ranges) {
        let magnitude = f32::from_bits(crate::kernels::arithmetic::widened(bound));
        total.peak = total.peak.max(f64::from(magnitude));
    }
    total
}
