//! torch's `HistogramObserver`: a histogram that widens as batches come, and the range of least expected squared error.
//!
//! The search stops at the first rise of an f32 sum, so every rounding counts: each step here rounds where torch's does,
//! sums run in the order of its kernels, and `linspace` fuses its multiplication as its compiled code does on CPUs with
//! FMA.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Parts that an old bin is split into when the range widens.
const PARTS: usize = 16;

/// Values that a u32 counter takes without overflow.
const BLOCK: usize = 1 << 30;

/// Values whose bins are computed together.
const RUN: usize = 256;

/// Counts are f32, as in torch: a bin that holds more than 2²⁴ is rounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Histogram {
    low: f32,
    high: f32,
    counts: Vec<f32>,
}

impl Histogram {
    /// Takes a batch of finite values in `[low, high]` into `seen`; without one, returns the histogram of this batch.
    pub(super) fn observe(
        seen: Option<&mut Self>,
        values: &[f32],
        low: f32,
        high: f32,
        bins: usize,
    ) -> Result<Option<Self>> {
        let union = seen.as_ref().map_or((low, high), |h| (low.min(h.low), high.max(h.high)));
        if !((union.1 - union.0) * bins as f32).is_finite() {
            return Err(Error::refused(format!(
                "values from {} to {} are too far apart for a histogram in f32",
                union.0, union.1
            )));
        }
        let counts = count(values, union, bins);
        let Some(h) = seen else { return Ok(Some(Self { low, high, counts })) };
        if (h.low, h.high) != union {
            h.widen(union);
        }
        h.counts.iter_mut().zip(counts).for_each(|(old, new)| *old += new);
        Ok(None)
    }

    /// Whether this can have been observed.
    pub(super) fn is_sound(&self, bins: usize) -> bool {
        let span = (self.high - self.low) * bins as f32;
        self.counts.len() == bins
            && span.is_finite()
            && span >= 0.0
            && self.counts.iter().all(|c| c.is_finite() && *c >= 0.0)
    }

    /// Moves the counts into bins over a wider range.
    fn widen(&mut self, (low, high): (f32, f32)) {
        let bins = self.counts.len();
        let mut counts = vec![0.0; bins];
        if self.low == self.high {
            counts[bin(self.low, low, high - low, bins)] = sum(&self.counts);
        } else {
            let edges: Vec<f32> = (0..=bins).map(linspace(low, high, bins + 1)).collect();
            let begin = linspace(self.low, self.high, bins * PARTS + 1);
            let half = 0.5 * ((self.high - self.low) / (bins * PARTS) as f32);
            for (i, &count) in self.counts.iter().enumerate().filter(|(_, c)| **c != 0.0) {
                let part = count / PARTS as f32;
                for j in i * PARTS..(i + 1) * PARTS {
                    let not_above = upper_bound(&edges, begin(j) + half);
                    counts[not_above.saturating_sub(1).min(bins - 1)] += part;
                }
            }
        }
        (self.low, self.high, self.counts) = (low, high, counts);
    }

    /// Narrows the range from the lighter tail, step by step, until the expected squared error of `codes` codes rises.
    pub(super) fn range(&self, codes: u32) -> (f32, f32) {
        const STEP: f64 = 1e-5;
        let mut running = 0.0;
        let cumulative: Vec<f32> = self
            .counts
            .iter()
            .map(|&c| {
                running += f64::from(c);
                running as f32
            })
            .collect();
        let total = f64::from(sum(&self.counts));
        let mut search = Search::new(self, codes);
        let (mut alpha, mut beta) = (0.0, 1.0);
        let (mut start, mut end) = (0, self.counts.len() - 1);
        let mut least = f64::INFINITY;
        while alpha < beta {
            let (next_alpha, next_beta) = (alpha + STEP, beta - STEP);
            let (below, above) = ((next_alpha * total) as f32, (next_beta * total) as f32);
            let (mut left, mut right) = (start, end);
            while left < end && cumulative[left] < below {
                left += 1;
            }
            while right > start && cumulative[right] > above {
                right -= 1;
            }
            let (mut next_start, mut next_end) = (start, end);
            if left - start > end - right {
                (next_start, alpha) = (left, next_alpha);
            } else {
                (next_end, beta) = (right, next_beta);
            }
            if (next_start, next_end) == (start, end) {
                continue;
            }
            let error = search.error(next_start, next_end);
            if error > least {
                break;
            }
            least = error;
            (start, end) = (next_start, next_end);
        }
        let width = (self.high - self.low) / self.counts.len() as f32;
        (self.low + width * start as f32, self.low + width * (end + 1) as f32)
    }
}

/// What every step of the search needs.
struct Search {
    /// Width of a bin.
    width: f64,
    codes: u32,
    /// Count by width of every bin.
    density: Vec<f32>,
    /// Every bin's error, reused.
    errors: Vec<f32>,
}

impl Search {
    fn new(histogram: &Histogram, codes: u32) -> Self {
        let bins = histogram.counts.len();
        let width = (f64::from(histogram.high) - f64::from(histogram.low)) / bins as f64;
        let density = histogram.counts.iter().map(|c| c / width as f32).collect();
        Self { width, codes, density, errors: vec![0.0; bins] }
    }

    /// Expected squared error when bins `start..=end` are spread over the codes and the rest is clipped to them.
    fn error(&mut self, start: usize, end: usize) -> f64 {
        let step = self.width * (end - start + 1) as f64 / f64::from(self.codes);
        if step == 0.0 {
            return 0.0;
        }
        let (width, half, step) = (self.width as f32, (step / 2.0) as f32, step as f32);
        if step == 0.0 {
            // torch divides zero by zero here, and takes every such step
            return f64::NAN;
        }
        let cube = |x: f32| x * x * x;
        let codes = self.codes as f32;
        // an exact floor, which torch computes by fmod: the rounded quotient may be one too large, the product is exact
        let code = |x: f32| {
            let quotient = x / step;
            let quotient = if quotient > 0.0 { quotient } else { 0.0 };
            let floor = (if quotient < codes { quotient } else { codes }) as i32 as f32;
            let above = f64::from(floor) * f64::from(step) > f64::from(x);
            let floor = if above { floor - 1.0 } else { floor };
            let floor = if floor > 0.0 { floor } else { 0.0 };
            if floor < codes - 1.0 { floor } else { codes - 1.0 }
        };
        let inner = (cube(half) - cube(-half)) / 3.0;
        for (i, (error, &density)) in self.errors.iter_mut().zip(&self.density).enumerate() {
            let from = (i as i32 - start as i32) as f32 * width;
            let to = from + width;
            let (first, last) = (code(from), code(to));
            let begin = from - (first + 0.5) * step;
            let finish = to - (last * step + half);
            *error = density * ((cube(half) - cube(begin)) / 3.0)
                + (last - first - 1.0) * (density * inner)
                + density * ((cube(finish) - cube(-half)) / 3.0);
        }
        f64::from(sum(&self.errors))
    }
}

/// The bin of `x`, as torch.histc finds it; the upper end belongs to the last bin.
fn bin(x: f32, low: f32, span: f32, bins: usize) -> usize {
    (((x - low) * bins as f32 / span) as i32 as usize).min(bins - 1)
}

/// How many values lie in each bin over the range. Exact below 2²⁴ a bin, where torch stops counting.
fn count(values: &[f32], (low, high): (f32, f32), bins: usize) -> Vec<f32> {
    let mut counts = vec![0u64; bins];
    let span = high - low;
    if span == 0.0 {
        counts[bins / 2] = values.len() as u64;
    } else {
        // four tables, so that equal neighbours do not wait for each other
        let mut tables = vec![[0u32; 4]; bins];
        for block in values.chunks(BLOCK) {
            // places first, in vectors; then the tables
            for run in block.chunks(RUN) {
                let mut places = [0i32; RUN];
                for (place, &x) in places.iter_mut().zip(run) {
                    *place = ((x - low) * bins as f32 / span) as i32;
                }
                for (i, &place) in places[..run.len()].iter().enumerate() {
                    tables[(place as usize).min(bins - 1)][i % 4] += 1;
                }
            }
            for (count, table) in counts.iter_mut().zip(&mut tables) {
                *count += std::mem::take(table).iter().map(|&n| u64::from(n)).sum::<u64>();
            }
        }
    }
    counts.into_iter().map(|n| n as f32).collect()
}

/// torch.linspace: from both ends towards the middle.
fn linspace(low: f32, high: f32, steps: usize) -> impl Fn(usize) -> f32 {
    let step = (high - low) / (steps - 1) as f32;
    move |i| {
        if i < steps / 2 {
            step.mul_add(i as f32, low)
        } else {
            (-step).mul_add((steps - 1 - i) as f32, high)
        }
    }
}

/// How many edges are at most `x`. Rounding may leave the edges of a narrow range unsorted in the middle, where the
/// answer depends on the probes: these are torch's.
fn upper_bound(edges: &[f32], x: f32) -> usize {
    let (mut start, mut end) = (0, edges.len());
    while start < end {
        let middle = start + (end - start) / 2;
        if edges[middle] <= x { start = middle + 1 } else { end = middle }
    }
    start
}

/// torch.sum of up to 2¹⁹ values on the CPU: four vectors of eight at a time, in cascades of 16.
fn sum(values: &[f32]) -> f32 {
    const ROW: usize = 32;
    let (rows, rest) = values.as_chunks::<ROW>();
    let mut levels = [[0.0f32; ROW]; 4];
    let add = |to: &mut [f32; ROW], from: &[f32; ROW]| to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
    let (cascades, tail) = rows.as_chunks::<16>();
    for (i, cascade) in cascades.iter().enumerate() {
        cascade.iter().for_each(|row| add(&mut levels[0], row));
        for level in 1..4 {
            let below = std::mem::replace(&mut levels[level - 1], [0.0; ROW]);
            add(&mut levels[level], &below);
            if ((i + 1) * 16) & (15 << (4 * level)) != 0 {
                break;
            }
        }
    }
    tail.iter().for_each(|row| add(&mut levels[0], row));
    let [mut row, upper @ ..] = levels;
    upper.iter().for_each(|level| add(&mut row, level));
    let (vectors, rest) = rest.as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    lanes.copy_from_slice(&row[..8]);
    let others = row[8..].as_chunks::<8>().0;
    for vector in vectors.iter().chain(others) {
        lanes.iter_mut().zip(vector).for_each(|(a, b)| *a += b);
    }
    rest.iter().chain(&lanes).fold(0.0, |a, b| a + b)
}
