//! Ranges, histograms, and the scales that follow from them.

use crate::made::*;
use monoquant::kernels::{TileParams, arithmetic::ordered, clip_range, histogram, minmax, qparams};
use proptest::{collection::vec, prelude::*};

/// What a bound of [`minmax`] says: magnitudes of the least and the largest weight, widened to zero.
fn bounds(ranges: &[u32]) -> Vec<[f64; 2]> {
    let bound = |word: u32| if word >> 31 == 1 { f64::from(f32::from_bits(word & 0x7fff_ffff)) } else { 0.0 };
    ranges.as_chunks::<2>().0.iter().map(|range| range.map(bound)).collect()
}

/// An edge of a histogram, of which some lie where weights on a grid do.
fn edge() -> impl Strategy<Value = f32> {
    prop_oneof![
        -2.0f32..2.0,
        (1i32..8, any::<bool>()).prop_map(|(n, up)| n as f32 * if up { 0.25 } else { -0.25 })
    ]
}

properties! {
    /// They are the least and the largest weight.
    [minmax]
    fn ranges_are_the_extremes(tile in tiles(1)) {
        let found = bounds(&tile.run(&[&minmax::KERNEL]).ranges);
        for (range, weights) in found.iter().zip(tile.weights().chunks(tile.params.group_len as usize)) {
            let low = weights.iter().fold(0f64, |low, x| low.max(-x));
            let high = weights.iter().fold(0f64, |high, &x| high.max(x));
            prop_assert_eq!(*range, [low, high]);
        }
    }

    /// Of two groups joined, the range is the larger of theirs, word for word.
    [minmax]
    fn ranges_of_joined_groups_are_the_larger(tile in tiles(1)) {
        let TileParams { elements, group_len, .. } = tile.params;
        let elements = elements / (2 * group_len) * 2 * group_len;
        let bytes = tile.bytes[..elements as usize * tile.float().size()].to_vec();
        let joined = |length: u32| Tile { params: tile.params.with_groups(elements, length), bytes: bytes.clone() };
        let apart = joined(group_len).run(&[&minmax::KERNEL]).ranges;
        let expected: Vec<u32> = apart.as_chunks::<4>().0.iter().flat_map(|&[a, b, c, d]| [a.max(c), b.max(d)]).collect();
        prop_assert_eq!(joined(2 * group_len).run(&[&minmax::KERNEL]).ranges, expected);
    }

    /// What is there already counts as seen.
    [minmax]
    fn ranges_only_grow(tile in tiles(1), seen in any::<u32>()) {
        let alone = tile.run(&[&minmax::KERNEL]).ranges;
        let after = tile.run_on(&[&minmax::KERNEL], |b| b.ranges.fill(seen)).ranges;
        prop_assert_eq!(after, alone.iter().map(|&word| word.max(seen)).collect::<Vec<_>>());
    }

    /// Scales are positive and spread the range over all codes, up to the rounding of their dtype; zero is a code.
    [minmax qparams]
    fn scales_spread_the_range_over_the_codes(tile in tiles(1)) {
        let params = tile.params;
        let buffers = tile.run(&[&minmax::KERNEL, &qparams::KERNEL]);
        for ((scale, zero_point), [low, high]) in crate::made::qparams(&buffers).into_iter().zip(bounds(&buffers.ranges)) {
            let codes = f64::from(params.qmax - params.qmin);
            let exact = if params.symmetric == 1 { 2.0 * low.max(high) / codes } else { (low + high) / codes };
            let stored = monoquant::kernels::float(params.scale_dtype);
            // in the dtype's own last place, which subnormals of f16 keep
            let off = (2.0 * rounding(stored) * exact).max(if params.scale_dtype == 1 { 2f64.powi(-24) } else { 0.0 });
            prop_assert!(scale > 0.0 && scale.is_finite());
            // one that is too small for its dtype becomes another, whose codes all decode to zero
            let tiny = low.max(high) < scale / 2.0;
            prop_assert!(tiny || (scale - exact).abs() <= off, "{} instead of {}", scale, exact);
            prop_assert!((f64::from(params.qmin)..=f64::from(params.qmax)).contains(&zero_point));
            prop_assert!(params.symmetric == 0 || zero_point == 0.0);
            // the code of the least weight is the least code, up to the rounding of zero's code and of the scale
            let least = zero_point - low / scale;
            let cut = 0.5 + codes * off / scale + 1e-3;
            prop_assert!(params.symmetric == 1 || (least - f64::from(params.qmin)).abs() <= cut);
        }
    }

    /// Every weight is in the bin that counting by hand puts it in, and tiles add up.
    [histogram]
    fn histograms_count_every_weight(tile in tiles(1), mut edges in vec(edge(), 9)) {
        edges.sort_by(f32::total_cmp);
        let params = TileParams { bins: 8, ..tile.params };
        let tile = Tile { params, ..tile };
        let ordered: Vec<u32> = edges.iter().map(|edge| ordered(edge.to_bits())).collect();
        let channels = params.channels() as usize;
        let fill = |counts: u32| {
            let ordered = ordered.repeat(channels);
            move |b: &mut monoquant::kernels::TileBuffers| {
                b.edges.copy_from_slice(&ordered);
                b.counts.fill(counts);
            }
        };
        let once = tile.run_on(&[&histogram::KERNEL], fill(0)).counts;
        for (counts, weights) in once.chunks(8).zip(tile.weights().chunks(params.channel_len as usize)) {
            let mut expected = [0; 8];
            for x in weights {
                let below = edges[1..8].iter().filter(|&&edge| f64::from(edge) <= *x).count();
                expected[below] += 1;
            }
            prop_assert_eq!(counts, expected);
        }
        let again = tile.run_on(&[&histogram::KERNEL], fill(5)).counts;
        prop_assert!(again.iter().zip(&once).all(|(again, once)| *again == once + 5));
    }

    /// A clipped range lies within the range and within the clip, unless that left nothing; clipping twice changes nothing.
    [clip_range]
    fn clipped_ranges_lie_within_both(tile in tiles(1), low in -1.0f32..0.5, high in -0.5f32..1.0) {
        let (low, high) = (low.min(high), low.max(high));
        let edges: Vec<u32> = [low, high].map(|edge| ordered(edge.to_bits())).repeat(tile.params.channels() as usize);
        let clip = |ranges: &[u32]| {
            tile.run_on(&[&clip_range::KERNEL], |b| {
                b.ranges.copy_from_slice(ranges);
                b.edges.copy_from_slice(&edges);
            }).ranges
        };
        let before = tile.run(&[&minmax::KERNEL]).ranges;
        let after = clip(&before);
        prop_assert_eq!(&clip(&after), &after);
        for (before, after) in bounds(&before).into_iter().zip(bounds(&after)) {
            let clipped = [before[0].min(f64::from(-low).max(0.0)), before[1].min(f64::from(high).max(0.0))];
            prop_assert_eq!(after, if clipped == [0.0, 0.0] { before } else { clipped });
        }
    }
}
