//! The host's part of the percentile and histogram observers: edges of the bins, and the clip that a histogram suggests.

use crate::{
    kernels::arithmetic::{ordered, unordered},
    observer::Observer,
};

/// Ordered bits of the `bins + 1` edges over `[low, high]`, such that x lies in bin `trunc((x − low) · bins / (high − low))`
/// computed in f32 in this order, as `torch.histc` does; x = high lies in the last bin.
pub fn edges(low: f32, high: f32, bins: u32) -> Vec<u32> {
    let span = high - low;
    if span <= 0.0 || !span.is_finite() || !(span * bins as f32).is_finite() {
        return wide_edges(low, high, bins);
    }
    let bin = |x: u32| (f32::from_bits(unordered(x)) - low) * bins as f32 / span;
    let (first, last) = (ordered(low.to_bits()), ordered(high.to_bits()));
    let at = |x: f64| ordered((x as f32).to_bits()).clamp(first, last);
    // rounding moves an edge by a few units of the range's last place; near zero that is many floats, so bisect
    let slack = f64::from(span.max(low.abs()).max(high.abs())) * 1e-6;
    (0..=bins)
        .map(|b| {
            let guess = f64::from(low) + f64::from(span) * f64::from(b) / f64::from(bins);
            let reached = |edge: u32| edge == last || bin(edge) >= b as f32;
            let (mut below, mut edge) = (at(guess - slack), at(guess + slack));
            if reached(below) {
                below = first;
            }
            if !reached(edge) {
                edge = last;
            }
            if reached(below) {
                return below;
            }
            while edge - below > 1 {
                let middle = below + (edge - below) / 2;
                if reached(middle) { edge = middle } else { below = middle }
            }
            edge
        })
        .collect()
}

/// Edges of a range without extent, or so wide that f32 arithmetic on it overflows.
fn wide_edges(low: f32, high: f32, bins: u32) -> Vec<u32> {
    let (low, span) = (f64::from(low), f64::from(high) - f64::from(low));
    (0..=bins).map(|b| ordered(((low + span * f64::from(b) / f64::from(bins)) as f32).to_bits())).collect()
}

/// The clip of a channel, `[low, high]` as ordered bits, from its histogram. `codes` is the number of codes.
pub fn clip(observer: Observer, counts: &[u64], edges: &[u32], codes: u32) -> [u32; 2] {
    let bins = counts.len();
    let whole = [edges[0], edges[bins]];
    let total: u64 = counts.iter().sum();
    if total == 0 || edges[0] == edges[bins] {
        return whole;
    }
    match observer {
        Observer::Percentile(percent) => {
            let tail = total as f64 * (1.0 - percent / 100.0) / 2.0;
            let outside = |counts: &mut dyn Iterator<Item = &u64>| {
                let mut sum = 0;
                counts.take_while(|&&c| ((sum + c) as f64 <= tail).then(|| sum += c).is_some()).count()
            };
            let (below, above) = (outside(&mut counts.iter()), outside(&mut counts.iter().rev()));
            if below + above >= bins { whole } else { [edges[below], edges[bins - above]] }
        }
        _ => {
            let value = |edge: u32| f64::from(f32::from_bits(unordered(edge)));
            let (low, high) = (value(edges[0]), value(edges[bins]));
            let width = (high - low) / bins as f64;
            let (first, last) = least_error_bins(counts, width, codes);
            let bound = |bin: usize| ordered(((low + width * bin as f64) as f32).to_bits());
            [bound(first).max(edges[0]), bound(last + 1).min(edges[bins])]
        }
    }
}

/// torch's `HistogramObserver._non_linear_param_search`: narrows the range from the lighter tail, step by step, until
/// the expected squared error rises. Returns the first and last bin that are kept.
fn least_error_bins(counts: &[u64], width: f64, codes: u32) -> (usize, usize) {
    const STEP: f64 = 1e-5;
    let mut cumulative = Vec::with_capacity(counts.len());
    let mut sum = 0;
    for &count in counts {
        sum += count;
        cumulative.push(sum as f64);
    }
    let total = sum as f64;
    let (mut alpha, mut beta) = (0.0, 1.0);
    let (mut start, mut end) = (0, counts.len() - 1);
    let mut least = f64::INFINITY;
    while alpha < beta {
        let (next_alpha, next_beta) = (alpha + STEP, beta - STEP);
        let mut left = start;
        while left < end && cumulative[left] < next_alpha * total {
            left += 1;
        }
        let mut right = end;
        while right > start && cumulative[right] > next_beta * total {
            right -= 1;
        }
        let (mut next_start, mut next_end) = (start, end);
        if left - start > end - right {
            next_start = left;
            alpha = next_alpha;
        } else {
            next_end = right;
            beta = next_beta;
        }
        if (next_start, next_end) == (start, end) {
            continue;
        }
        let error = expected_error(counts, width, next_start, next_end, codes);
        if error > least {
            break;
        }
        least = error;
        (start, end) = (next_start, next_end);
    }
    (start, end)
}

/// Expected squared error when bins `start..=end` are spread over `codes` steps and the rest is clipped to them.
fn expected_error(counts: &[u64], width: f64, start: usize, end: usize, codes: u32) -> f64 {
    let step = width * (end - start + 1) as f64 / f64::from(codes);
    if step == 0.0 {
        return 0.0;
    }
    let last = f64::from(codes - 1);
    let integral = |from: f64, to: f64| (to * to * to - from * from * from) / 3.0;
    let mut error = 0.0;
    for (i, &count) in counts.iter().enumerate() {
        let from = (i as f64 - start as f64) * width;
        let to = from + width;
        let first_step = (from / step).floor().clamp(0.0, last);
        let last_step = (to / step).floor().clamp(0.0, last);
        let begin = from - (first_step + 0.5) * step;
        let finish = to - (last_step + 0.5) * step;
        let density = count as f64 / width;
        error += density
            * (integral(begin, step / 2.0)
                + (last_step - first_step - 1.0) * integral(-step / 2.0, step / 2.0)
                + integral(-step / 2.0, finish));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cases::Random;

    fn histogram(values: &[f32], edges: &[u32]) -> Vec<u64> {
        let mut counts = vec![0; edges.len() - 1];
        for x in values {
            let bin = edges[1..edges.len() - 1].partition_point(|&e| e <= ordered(x.to_bits()));
            counts[bin] += 1;
        }
        counts
    }

    #[test]
    fn edges_put_every_value_into_the_bin_of_the_formula() {
        let mut random = Random(3);
        for (low, high) in [(-1.0f32, 1.0f32), (-0.037, 0.021), (3.0, 3.0001), (-1e-30, 2e-30), (-7e20, 1e-3)]
        {
            let edges = edges(low, high, 2048);
            assert!(edges.is_sorted());
            for _ in 0..20_000 {
                let x = (low + (high - low) * random.uniform()).clamp(low, high);
                let expected = (((x - low) * 2048.0 / (high - low)) as usize).min(2047);
                let bin = edges[1..2048].partition_point(|&e| e <= ordered(x.to_bits()));
                assert_eq!(bin, expected, "{x} in [{low}, {high}]");
            }
        }
    }

    #[test]
    fn extreme_ranges_have_edges() {
        for (low, high) in [(-3e38f32, 3e38f32), (0.0, 0.0), (1.0, 1.0), (0.0, 1e-37)] {
            assert!(edges(low, high, 64).is_sorted());
        }
    }

    #[test]
    fn percentile_cuts_both_tails() {
        let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0).collect();
        let edges = edges(0.0, 1.0, 1000);
        let counts = histogram(&values, &edges);
        let [low, high] = clip(Observer::Percentile(90.0), &counts, &edges, 16);
        let (low, high) = (f32::from_bits(unordered(low)), f32::from_bits(unordered(high)));
        assert!((low - 0.05).abs() < 0.002 && (high - 0.95).abs() < 0.002, "{low} {high}");
        let all = clip(Observer::Percentile(100.0), &counts, &edges, 16);
        assert_eq!(all, [edges[0], edges[1000]]);
    }

    #[test]
    fn the_search_leaves_outliers_out() {
        let mut random = Random(5);
        let mut values: Vec<f32> = (0..50_000).map(|_| random.gaussian()).collect();
        values.push(40.0);
        values.push(-3.0);
        let low = values.iter().copied().fold(f32::MAX, f32::min);
        let edges = edges(low, 40.0, 2048);
        let counts = histogram(&values, &edges);
        let high = |codes| f32::from_bits(unordered(clip(Observer::Histogram, &counts, &edges, codes)[1]));
        // with 16 codes the outlier's error is less than what its range costs all others; with 256 it is not
        assert!(high(16) > 2.0 && high(16) < 20.0, "{}", high(16));
        assert!(high(256) > 39.0, "{}", high(256));
    }
}
