//! The loop: bands of pieces through a backend, results into the writer. Nothing is held beyond the tiles in flight.

use crate::{
    backend::{Backend, Results, Tile},
    error::{Error, Result},
    formats::{Part, compressed_tensors::pack_zero_points},
    kernels::{Binding, Lengths, arithmetic::narrow, bits},
    plan::{Job, Plan, Work},
    reader::Source,
    report::Squares,
    sweeps::{Active, Kind},
    tensor::{Float, TensorInfo, View},
    tiles::{Band, Piece, Sweep, bands, group_len, pieces},
    unpack::{code_offset, qparams},
    writer::Writer,
};
use std::{
    collections::{HashMap, VecDeque},
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
    pub writer: &'a Writer,
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
}

/// What came of one job.
#[derive(Debug, Clone, Copy, Default)]
pub struct JobResult {
    /// Sums over its weights, if it was quantized.
    pub squares: Squares,
    /// Values that overflowed and were clamped.
    pub saturated: u64,
}

/// Bytes that a process takes beside its tiles: code, headers, the driver.
const RESERVE: u64 = 96 << 20;
/// Bytes that are copied at once.
const COPY: usize = 4 << 20;

#[derive(Default)]
struct JobState {
    bands: usize,
    /// Zero points of the whole layer, where the format packs them across rows.
    zero_points: Vec<i8>,
    /// Scales and zero points of a layer that is dequantized.
    scales: Vec<u32>,
    offsets: Vec<i32>,
    result: JobResult,
    not_finite: bool,
}

impl Stream<'_> {
    /// Runs every job; results are in the plan's order.
    pub fn run(&self, backend: &mut dyn Backend) -> Result<Vec<JobResult>> {
        let mut run = Run {
            stream: self,
            states: HashMap::new(),
            active: HashMap::new(),
            ready: VecDeque::new(),
            results: vec![JobResult::default(); self.plan.jobs.len()],
            next_band: 0,
        };
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
            if !backend.collect(&mut |tile, results| run.done(tile, results))?
                && run.ready.is_empty()
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
        let size = if matches!(job.work, Work::Dequantize(_)) { 2 } else { info.dtype.size() };
        let usual = self.tile_bytes.unwrap_or_else(|| backend.tile_bytes());
        let mut max = (usual * wide / size).max(64);
        while max > 64 {
            let lengths = self.largest(job, max);
            let largest = Binding::ALL.iter().map(|&b| 4 * lengths.of(b) as u64).max().unwrap_or(0);
            if backend.bytes_per_tile(&lengths) <= budget && largest <= backend.max_buffer_bytes() {
                break;
            }
            max /= 2;
        }
        max
    }

    /// Buffer lengths of the job's first tile, over all its sweeps.
    fn largest(&self, job: &Job, max: usize) -> Lengths {
        let Some(band) = self.bands(job, max).into_iter().next() else { return Lengths::default() };
        let mut active = Active::new(self.kind(job), 0, band);
        let mut lengths = Lengths::default();
        loop {
            lengths = lengths.max(active.tile(0, 0).lengths());
            if !active.advance() {
                return lengths;
            }
        }
    }

    fn bands(&self, job: &Job, max: usize) -> Vec<Band> {
        let one = |piece| Band { pieces: vec![piece], spans: false, sweeps: &[Sweep::Quantize] };
        match &job.work {
            Work::Quantize(scheme) => bands(*scheme, job.view.rows, job.view.cols, max).collect(),
            Work::Cast(_) => pieces(job.view.rows, job.view.cols, max, 64).map(one).collect(),
            Work::Dequantize(i) => {
                let coded = &self.plan.coded[*i];
                let align = if coded.group_len < coded.cols { lcm8(coded.group_len) } else { 8 };
                pieces(coded.rows, coded.cols, max.max(align), align).map(one).collect()
            }
            Work::Copy => Vec::new(),
        }
    }

    fn kind(&self, job: &Job) -> Kind {
        let input = self.tensors[job.source].dtype.float().unwrap_or(Float::F32);
        match &job.work {
            Work::Quantize(scheme) => {
                Kind::Quantize { scheme: *scheme, input, rows: job.view.rows, cols: job.view.cols }
            }
            Work::Cast(to) => Kind::Cast { input, to: *to, saturate: self.saturate },
            Work::Dequantize(i) => {
                Kind::Dequantize { coded: self.plan.coded[*i].clone(), saturate: self.saturate }
            }
            Work::Copy => Kind::Cast { input, to: input, saturate: false },
        }
    }

    fn write(&self, job: &Job, part: Part, offset: u64, bytes: &[u8]) -> Result<()> {
        match job.outputs.iter().find(|(p, ..)| *p == part) {
            Some(&(_, file, tensor)) => self.writer.write(file, tensor, offset, bytes),
            None => Ok(()),
        }
    }

    fn copy(&self, job: &Job) -> Result<()> {
        let size = self.tensors[job.source].dtype.size();
        let view = &job.view;
        let mut buffer = Vec::new();
        for piece in pieces(view.rows, view.cols, COPY / size, 1) {
            buffer.resize(piece.elements() * size, 0);
            let (rows, cols) = (piece.row..piece.row + piece.rows, piece.col..piece.col + piece.cols);
            self.source.read_view(job.source, view, rows, cols, &mut buffer)?;
            let &(_, file, tensor) = &job.outputs[0];
            self.put(job, file, tensor, &piece, size, &buffer)?;
            (self.progress)(buffer.len() as u64);
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Writes a piece of floats, in place if the plan puts a layer back into a larger tensor.
    fn put(
        &self,
        job: &Job,
        file: usize,
        tensor: usize,
        piece: &Piece,
        size: usize,
        bytes: &[u8],
    ) -> Result<()> {
        match &job.target {
            Some(target) => {
                let offset = target.offset
                    + piece.row as u64 * target.row_stride
                    + piece.col as u64 * target.col_stride;
                let target = View { offset, rows: piece.rows, cols: piece.cols, ..*target };
                self.writer.write_view(file, tensor, &target, 0..piece.rows, size, bytes)
            }
            None => self.writer.write(file, tensor, piece.start(job.view.cols) * size as u64, bytes),
        }
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

struct Run<'a> {
    stream: &'a Stream<'a>,
    states: HashMap<usize, JobState>,
    active: HashMap<u64, Active>,
    ready: VecDeque<(u64, usize)>,
    results: Vec<JobResult>,
    next_band: u64,
}

impl Run<'_> {
    fn start(&mut self, backend: &dyn Backend, number: usize) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let mut state = JobState::default();
        match &job.work {
            Work::Copy => return stream.copy(job),
            Work::Dequantize(i) => {
                (state.scales, state.offsets) =
                    qparams(stream.source, stream.tensors, &stream.plan.coded[*i])?;
            }
            Work::Quantize(_) => {
                let shape: Vec<u8> =
                    stream.plan.rows[job.row].shape.iter().flat_map(|&d| (d as i64).to_le_bytes()).collect();
                stream.write(job, Part::Shape, 0, &shape)?;
            }
            Work::Cast(_) => {}
        }
        let bands = stream.bands(job, stream.max_elements(backend, job));
        state.bands = bands.len();
        self.states.insert(number, state);
        for band in bands {
            let id = self.next_band;
            self.next_band += 1;
            self.ready.extend((0..band.pieces.len()).map(|p| (id, p)));
            self.active.insert(id, Active::new(stream.kind(job), number, band));
        }
        Ok(())
    }

    fn submit(&mut self, backend: &mut dyn Backend, band: u64, piece_number: usize) -> Result<()> {
        let active = &self.active[&band];
        let stream = self.stream;
        let job = &stream.plan.jobs[active.job];
        let piece = active.band.pieces[piece_number];
        let mut tile = active.tile(piece_number, band << 24 | piece_number as u64);
        if let Kind::Dequantize { coded, .. } = &active.kind {
            let state = &self.states[&active.job];
            let first = piece.start(coded.cols) as usize / coded.group_len;
            let groups = first..first + tile.params.groups as usize;
            let offsets = state.offsets[groups.clone()].iter().map(|&z| z as u32).collect();
            tile.preload.push((Binding::Scales, state.scales[groups].to_vec()));
            tile.preload.push((Binding::ZeroPoints, offsets));
        }
        let kind = &active.kind;
        backend.submit(tile, &mut |bytes| {
            if let Kind::Dequantize { coded, .. } = kind {
                let at = code_offset(coded.bits, coded.packed, coded.cols, &piece);
                return stream.source.read(job.source, at, bytes);
            }
            let (rows, cols) = (piece.row..piece.row + piece.rows, piece.col..piece.col + piece.cols);
            stream.source.read_view(job.source, &job.view, rows, cols, bytes)
        })
    }

    fn done(&mut self, tile: Tile, results: &Results) -> Result<()> {
        let (band, piece_number) = (tile.tag >> 24, (tile.tag & 0xff_ffff) as usize);
        let Some(mut active) = self.active.remove(&band) else {
            return Err(Error::Device(format!("tile {} came back twice", tile.tag)));
        };
        let number = active.job;
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let sweep = active.sweep();
        let ranges = results.get(Binding::Ranges);
        if ranges.iter().any(|&bound| bound >= bits::INFINITY | bits::SIGN) {
            return Err(stream.not_finite(job.source));
        }
        if sweep == Sweep::Quantize {
            let piece = active.band.pieces[piece_number];
            self.store(&active, &piece, piece_number, &tile, results)?;
            let read = piece.elements() as u64 * stream.tensors[job.source].dtype.size() as u64;
            (stream.progress)(if matches!(job.work, Work::Dequantize(_)) {
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
        results: &Results,
    ) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[active.job];
        let state = self.states.entry(active.job).or_default();
        let output: &[u8] = bytemuck::cast_slice(results.get(Binding::Output));
        match &active.kind {
            Kind::Quantize { scheme, cols, input, .. } => {
                let scales = results.get(Binding::Scales);
                if let Some(i) = scales.iter().position(|s| s & bits::MAGNITUDE >= bits::INFINITY) {
                    let name = &stream.tensors[job.source].name;
                    return Err(Error::refused(format!(
                        "{name}: the scale of group {i} from row {} overflows {}, which stores it; cast the weights to \
                         bf16 or f32 first, or leave the layer out with --exclude",
                        piece.row,
                        input.dtype()
                    )));
                }
                let bytes = if scheme.packed() { output.len() } else { piece.elements() };
                let at = code_offset(scheme.bits, scheme.packed(), *cols, piece);
                stream.write(job, Part::Codes, at, &output[..bytes])?;
                state.result.squares.add(squares(tile, results));
                if active.band.spans && piece_number > 0 {
                    return Ok(()); // the band's one scale was written with its first piece
                }
                let group = group_len(scheme.strategy, job.view.rows, *cols) as u64;
                let first = piece.start(*cols) / group;
                let mut bytes = Vec::with_capacity(scales.len() * input.size());
                for &s in scales {
                    bytes.extend_from_slice(&narrow(s, *input as u32).to_le_bytes()[..input.size()]);
                }
                stream.write(job, Part::Scales, first * input.size() as u64, &bytes)?;
                let zero_points: Vec<i8> =
                    results.get(Binding::ZeroPoints).iter().map(|&z| z as i32 as i8).collect();
                stream.write(job, Part::ZeroPoints, first, bytemuck::cast_slice(&zero_points))?;
                if job.outputs.iter().any(|(p, ..)| *p == Part::PackedZeroPoints) {
                    let end = first as usize + zero_points.len();
                    state.zero_points.resize(state.zero_points.len().max(end), 0);
                    state.zero_points[first as usize..end].copy_from_slice(&zero_points);
                }
            }
            Kind::Cast { to, .. } => self.store_floats(active.job, piece, *to, output, results)?,
            Kind::Dequantize { coded, .. } => {
                self.store_floats(active.job, piece, coded.output, output, results)?
            }
        }
        Ok(())
    }

    fn store_floats(
        &mut self,
        number: usize,
        piece: &Piece,
        to: Float,
        output: &[u8],
        results: &Results,
    ) -> Result<()> {
        let stream = self.stream;
        let job = &stream.plan.jobs[number];
        let counts = results.get(Binding::Counts);
        let state = self.states.entry(number).or_default();
        state.result.saturated += u64::from(counts[0]);
        state.not_finite |= counts[1] > 0;
        let &(_, file, tensor) = &job.outputs[0];
        stream.put(job, file, tensor, piece, to.size(), &output[..piece.elements() * to.size()])
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
        if state.not_finite {
            return Err(stream.not_finite(job.source));
        }
        if state.result.saturated > 0 && !stream.saturate {
            return Err(Error::refused(format!(
                "{name}: {} value{} beyond the largest of the new dtype; --saturate clamps, --exclude leaves the tensor as it is",
                state.result.saturated,
                if state.result.saturated == 1 { " is" } else { "s are" },
            )));
        }
        if let Work::Quantize(scheme) = &job.work {
            let groups = (job.view.cols / group_len(scheme.strategy, 1, job.view.cols).max(1)).max(1);
            if job.outputs.iter().any(|(p, ..)| *p == Part::PackedZeroPoints) {
                let packed = pack_zero_points(&state.zero_points, groups, scheme.bits);
                stream.write(job, Part::PackedZeroPoints, 0, &packed)?;
            }
        }
        self.results[number] = state.result;
        self.states.remove(&number);
        Ok(())
    }
}

/// A tile's error sums, in units of the weights.
fn squares(tile: &Tile, results: &Results) -> Squares {
    let mut total = Squares { count: tile.params.elements.into(), ..Default::default() };
    let scales = results.get(Binding::Scales);
    let per_group = tile.params.chunks_per_group.max(1) as usize;
    for (chunk, sums) in results.get(Binding::Errors).chunks_exact(2).enumerate() {
        let s = f64::from(f32::from_bits(scales[chunk / per_group]));
        total.signal += s * s * f64::from(f32::from_bits(sums[0]));
        total.noise += s * s * f64::from(f32::from_bits(sums[1]));
    }
    for &bound in results.get(Binding::Ranges) {
        let magnitude = f32::from_bits(crate::kernels::arithmetic::widened(bound));
        total.peak = total.peak.max(f64::from(magnitude));
    }
    total
}
