//! The search for the least squared error.

use crate::made::*;
use monoquant::kernels::{Kernel, TileParams, minmax, qparams, refine, search};
use monoquant::tensor::Float;
use proptest::prelude::*;

const RANGE: [&Kernel; 2] = [&minmax::KERNEL, &qparams::KERNEL];
const COARSE: [&Kernel; 3] = [&minmax::KERNEL, &search::KERNEL, &qparams::KERNEL];
const WHOLE: [&Kernel; 4] = [&minmax::KERNEL, &search::KERNEL, &refine::KERNEL, &qparams::KERNEL];

/// Squared errors of the groups of a tile, with the scales that kernels chose.
fn errors(tile: &Tile, kernels: &[&'static Kernel]) -> Vec<f64> {
    let params = tile.params;
    let chosen = crate::made::qparams(&tile.run(kernels));
    let groups = tile.weights();
    let groups = groups.chunks(params.group_len as usize).zip(chosen);
    let group = |(weights, (scale, zero_point)): (&[f64], (f64, f64))| {
        let error = |x: &f64| {
            let code =
                ((x / scale).round_ties_even() + zero_point).clamp(params.qmin.into(), params.qmax.into());
            (x - (code - zero_point) * scale).powi(2)
        };
        weights.iter().map(error).sum()
    };
    groups.map(group).collect()
}

/// Squared error that the judgement in integers may be off by, a group: weights have 13 bits there, 15 at 8 bits.
fn judgement(tile: &Tile) -> Vec<f64> {
    let each = if tile.params.bits == 4 { 2e-4 } else { 2e-6 };
    let weights = tile.weights();
    let absmax = |weights: &[f64]| weights.iter().fold(0f64, |max, x| max.max(x.abs()));
    weights
        .chunks(tile.params.group_len as usize)
        .map(|group| each * group.len() as f64 * absmax(group).powi(2))
        .collect()
}

fn with_search(tile: Tile, both_signs: bool) -> Tile {
    let params: TileParams = tile.params.with_search(both_signs, tile.params.group_len as usize);
    Tile { params, ..tile }
}

properties! {
    /// What is found is no worse than the whole range.
    [search refine qparams]
    fn a_search_is_never_worse_than_the_whole_range(tile in tiles(1), both_signs in any::<bool>()) {
        let range = errors(&tile, &RANGE);
        let judgement = judgement(&tile);
        let found = errors(&with_search(tile, both_signs), &WHOLE);
        for ((found, range), off) in found.iter().zip(&range).zip(judgement) {
            prop_assert!(*found <= range + off, "{} instead of {}, by a judgement within {}", found, range, off);
        }
    }

    /// Refining is no worse than the coarse candidates alone.
    [search refine]
    fn refining_is_never_worse(tile in tiles(1), both_signs in any::<bool>()) {
        let tile = with_search(tile, both_signs);
        let coarse = Tile { params: TileParams { candidates: tile.params.coarse, ..tile.params }, ..tile.clone() };
        let (coarse, fine) = (errors(&coarse, &COARSE), errors(&tile, &WHOLE));
        for ((fine, coarse), off) in fine.iter().zip(&coarse).zip(judgement(&tile)) {
            prop_assert!(*fine <= coarse + off, "{} instead of {}, by a judgement within {}", fine, coarse, off);
        }
    }

    /// Twice the weights have twice the scales: nothing depends on a power of two. (F16 has subnormals in reach.)
    [search refine]
    fn scales_follow_a_power_of_two(tile in tiles_of(1, &[Float::F32, Float::BF16]), both_signs in any::<bool>()) {
        let tile = with_search(tile, both_signs);
        let twice: Vec<f32> = tile.bytes.chunks(tile.float().size()).map(|bytes| 2.0 * tile.float().decode(bytes)).collect();
        let twice = Tile { bytes: encoded(tile.float(), &twice), ..tile.clone() };
        let [once, twice] = [tile, twice].map(|tile| tile.run(&WHOLE));
        let absmax = |ranges: &[u32]| ranges[0].max(ranges[1]) & 0x7fff_ffff;
        for (group, ranges) in once.ranges.chunks(2).enumerate() {
            if absmax(ranges) > 0x0d80_0000 {
                prop_assert_eq!(2.0 * f32::from_bits(once.scales[group]), f32::from_bits(twice.scales[group]));
                prop_assert_eq!(once.zero_points[group], twice.zero_points[group]);
            }
        }
    }
}
