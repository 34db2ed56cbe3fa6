//! Two checkpoints side by side: SQNR, largest error and size, layer by layer. Either may be quantized.

use crate::{
    error::{Error, Result},
    pairs::{Side, Weight, cut, partner, same_bytes},
    reader::Checkpoint,
    report::Squares,
    tensor::{TensorInfo, View},
    threads,
};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    collections::HashSet,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

/// One weight that both have.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Its name in the second checkpoint.
    pub name: String,
    /// What it is in each.
    pub kinds: [String; 2],
    /// Bytes in each.
    pub bytes: [u64; 2],
    /// Signal to noise in dB, the first being the signal; 999 where they are equal.
    pub sqnr_db: f64,
    /// Largest absolute difference.
    pub max_error: f64,
    /// Sum of the squares of the first's weights.
    pub signal: f64,
}

/// What two checkpoints have in common, and what not.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Their paths.
    pub models: [String; 2],
    /// Bytes of all their tensors.
    pub bytes: [u64; 2],
    /// Over all common float weights; 999 where they are equal.
    pub sqnr_db: f64,
    /// Largest absolute difference.
    pub max_error: f64,
    /// Common weights, the worst first.
    pub differences: Vec<Difference>,
    /// Names that only one of them has.
    pub only: [Vec<String>; 2],
    /// Which part of each file was read, and what was left.
    pub notes: Vec<String>,
    /// Common names that cannot be compared, or integers that differ.
    pub unlike: Vec<String>,
}

/// Weights that are decoded at once.
const PIECE: usize = 1 << 18;

/// Compares `b` with `a`.
pub fn compare(a: &Path, b: &Path, interrupted: &AtomicBool) -> Result<Comparison> {
    compare_checkpoints(&Checkpoint::open(a)?, &Checkpoint::open(b)?, interrupted)
}

/// Compares `b` with `a`.
pub fn compare_checkpoints(a: &Checkpoint, b: &Checkpoint, interrupted: &AtomicBool) -> Result<Comparison> {
    threads::start()?;
    let mut sides = [Side::open(a)?, Side::open(b)?];
    let names = [0, 1].map(|i: usize| sides[i].names.clone());
    sides[0].untie(&names[1]);
    sides[1].untie(&names[0]);
    let mut notes = Vec::new();
    for checkpoint in [a, b] {
        let path = checkpoint.path().display();
        notes.extend(checkpoint.notes().iter().map(|note| format!("{path}: {note}")));
    }
    let (a, b) = (a.path(), b.path());
    let mut comparison = Comparison {
        models: [a, b].map(|p| p.display().to_string()),
        bytes: [0, 1].map(|i: usize| sides[i].tensors.iter().map(TensorInfo::bytes).sum()),
        sqnr_db: 999.0,
        max_error: 0.0,
        differences: Vec::new(),
        only: [Vec::new(), Vec::new()],
        notes,
        unlike: Vec::new(),
    };
    let mut matched: [HashSet<String>; 2] = Default::default();
    let mut total = Squares::default();
    for name in &sides[1].names {
        if interrupted.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let other = &sides[1].weights[name];
        let Some((partner, views)) = partner(&sides, name) else { continue };
        matched[0].insert(partner.clone());
        matched[1].insert(name.clone());
        let first = &sides[0].weights[&partner];
        if sides[0].float(first).is_none() || sides[1].float(other).is_none() {
            if !same_bytes(&sides, first, other)? {
                comparison.unlike.push(format!(
                    "{name}: {} and {} differ",
                    sides[0].kind(first),
                    sides[1].kind(other)
                ));
            }
            continue;
        }
        let Some(views) = views else {
            let [a, b] = [sides[0].shape(first), sides[1].shape(other)];
            comparison.unlike.push(format!("{name}: shapes {a:?} and {b:?}"));
            continue;
        };
        let (squares, max_error) = difference(&sides, [first, other], &views)?;
        total.add(squares);
        comparison.max_error = comparison.max_error.max(max_error);
        comparison.differences.push(Difference {
            name: name.clone(),
            kinds: [sides[0].kind(first), sides[1].kind(other)],
            bytes: [sides[0].bytes(first), sides[1].bytes(other)],
            sqnr_db: capped(squares.sqnr_db()),
            max_error,
            signal: squares.signal,
        });
    }
    if matched[1].is_empty() {
        let [a, b] = comparison.models;
        return Err(Error::refused(format!(
            "{a} and {b} have no tensor in common: there is nothing to compare"
        )));
    }
    for (i, side) in sides.iter().enumerate() {
        comparison.only[i] = side.names.iter().filter(|n| !matched[i].contains(*n)).cloned().collect();
    }
    comparison.sqnr_db = capped(total.sqnr_db());
    comparison.differences.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    Ok(comparison)
}

fn capped(db: f64) -> f64 {
    if db.is_nan() { -999.0 } else { (db * 1000.0).round().clamp(-999_000.0, 999_000.0) / 1000.0 }
}

fn difference(sides: &[Side; 2], weights: [&Weight; 2], views: &[View; 2]) -> Result<(Squares, f64)> {
    let parameters = [0, 1].map(|i: usize| sides[i].parameters(weights[i]));
    let [first, second] = parameters;
    let parameters = [first?, second?];
    let all = cut(weights, &views[0], PIECE);
    let parts: Vec<Result<(Squares, f64)>> = all
        .into_par_iter()
        .map(|piece| {
            let a = sides[0].rows(weights[0], &parameters[0], &views[0], piece)?;
            let b = sides[1].rows(weights[1], &parameters[1], &views[1], piece)?;
            let mut squares = Squares { count: a.len() as u64, ..Default::default() };
            let mut max_error = 0f64;
            for (&a, &b) in a.iter().zip(&b) {
                let (a, d) = (f64::from(a), f64::from(a) - f64::from(b));
                squares.signal += a * a;
                squares.noise += d * d;
                max_error = max_error.max(d.abs());
            }
            Ok((squares, max_error))
        })
        .collect();
    let mut total = (Squares::default(), 0f64);
    for part in parts {
        let (squares, max_error) = part?;
        total.0.add(squares);
        total.1 = total.1.max(max_error);
    }
    Ok(total)
}
