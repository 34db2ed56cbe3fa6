//! Two checkpoints side by side: SQNR, largest error and size, layer by layer. Either may be quantized.

use crate::{
    coded::{BlockLayer, CodedLayer, Origin, blocks, decode_rows, layers, qparams},
    error::{Error, Result},
    inspect,
    plan::Layout,
    quantize::infos,
    reader::{Checkpoint, Source},
    report::Squares,
    tensor::{Float, TensorInfo, View},
    tiles::{Piece, pieces},
};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
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

struct Side {
    tensors: Vec<TensorInfo>,
    source: Source,
    weights: HashMap<String, Weight>,
    names: Vec<String>,
    tied: BTreeMap<String, String>,
}

#[derive(Clone)]
enum Weight {
    Stored(usize, Option<Origin>),
    Coded(Box<CodedLayer>, (Vec<u32>, Vec<i32>)),
    Blocks(BlockLayer),
}

impl Weight {
    fn blocks(&self) -> Option<&BlockLayer> {
        match self {
            Weight::Blocks(layer) => Some(layer),
            _ => None,
        }
    }
}

impl Side {
    fn open(checkpoint: &Checkpoint) -> Result<Side> {
        let tensors = infos(checkpoint);
        let source = checkpoint.source()?;
        let mut found = layers(checkpoint, &source)?;
        let mut weights = HashMap::new();
        let mut names = Vec::new();
        for i in found.rest {
            let name = tensors[i].name.clone();
            names.push(name.clone());
            weights.insert(name.clone(), Weight::Stored(i, found.origins.remove(&name)));
        }
        for layer in found.coded {
            let parameters = qparams(&source, &tensors, &layer.coded)?;
            names.push(layer.name.clone());
            weights.insert(layer.name.clone(), Weight::Coded(Box::new(layer), parameters));
        }
        for layer in found.blocks {
            names.push(layer.name.clone());
            weights.insert(layer.name.clone(), Weight::Blocks(layer));
        }
        Ok(Side { tensors, source, weights, names, tied: checkpoint.tied().clone() })
    }

    /// Takes up other names of weights that the other side stores on their own.
    fn untie(&mut self, other: &[String]) {
        let own: HashSet<&String> = other.iter().collect();
        for (alias, name) in self.tied.iter().filter(|(alias, _)| own.contains(alias)) {
            if let (Some(weight), false) = (self.weights.get(name).cloned(), self.weights.contains_key(alias))
            {
                self.names.push(alias.clone());
                self.weights.insert(alias.clone(), weight);
            }
        }
    }

    fn bytes(&self, weight: &Weight) -> u64 {
        match weight {
            Weight::Stored(i, _) => self.tensors[*i].bytes(),
            Weight::Blocks(layer) => self.tensors[layer.tensor].bytes(),
            Weight::Coded(layer, _) => layer.parts.iter().map(|&i| self.tensors[i].bytes()).sum(),
        }
    }

    fn shape<'a>(&'a self, weight: &'a Weight) -> &'a [usize] {
        match weight {
            Weight::Stored(i, _) => &self.tensors[*i].shape,
            Weight::Blocks(layer) => &layer.shape,
            Weight::Coded(layer, _) => &layer.shape,
        }
    }

    fn kind(&self, weight: &Weight) -> String {
        match weight {
            Weight::Stored(i, _) => self.tensors[*i].dtype.to_string(),
            Weight::Blocks(layer) => layer.block.to_string(),
            Weight::Coded(layer, _) => inspect::describe(layer),
        }
    }

    fn float(&self, weight: &Weight) -> Option<Float> {
        match weight {
            Weight::Stored(i, _) => self.tensors[*i].dtype.float(),
            Weight::Coded(..) | Weight::Blocks(_) => Some(Float::F32),
        }
    }

    /// Some rows of a weight; `view` is where they lie in a stored tensor.
    fn rows(&self, weight: &Weight, view: &View, piece: Piece) -> Result<Vec<f32>> {
        match weight {
            Weight::Blocks(layer) => blocks::decode(&self.source, layer, view.cols, piece),
            Weight::Coded(layer, parameters) => decode_rows(&self.source, layer, parameters, piece),
            Weight::Stored(i, _) => {
                let float = self.tensors[*i].dtype.float().unwrap_or(Float::F32);
                let mut bytes = vec![0; piece.elements() * float.size()];
                let (rows, cols) = (piece.row..piece.row + piece.rows, piece.col..piece.col + piece.cols);
                self.source.read_view(*i, view, rows, cols, &mut bytes)?;
                Ok(bytes.chunks_exact(float.size()).map(|b| float.decode(b)).collect())
            }
        }
    }
}

/// Weights that are decoded at once.
const PIECE: usize = 1 << 18;

/// Compares `b` with `a`.
pub fn compare(a: &Path, b: &Path, interrupted: &AtomicBool) -> Result<Comparison> {
    compare_checkpoints(&Checkpoint::open(a)?, &Checkpoint::open(b)?, interrupted)
}

/// Compares `b` with `a`.
pub fn compare_checkpoints(a: &Checkpoint, b: &Checkpoint, interrupted: &AtomicBool) -> Result<Comparison> {
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

/// The first side's tensor for a name of the second, with the views to read both by; no views if shapes do not fit.
fn partner(sides: &[Side; 2], name: &str) -> Option<(String, Option<[View; 2]>)> {
    let other = &sides[1].weights[name];
    // transposed or split weights are compared with what they were taken from
    let origin = match other {
        Weight::Stored(_, origin) => origin.as_ref(),
        Weight::Coded(layer, _) => layer.origin.as_ref(),
        Weight::Blocks(_) => None,
    };
    if let Some(origin) = origin
        && let Some(Weight::Stored(i, None)) = sides[0].weights.get(&origin.source)
        && sides[0].tensors[*i].shape == origin.shape
    {
        return Some((
            origin.source.clone(),
            Some([origin.view, View::contiguous(origin.view.rows, origin.view.cols)]),
        ));
    }
    let first = sides[0].weights.get(name)?;
    let shape = sides[0].shape(first);
    let (rows, cols) = match [first, other].into_iter().find_map(Weight::blocks) {
        Some(layer) => (layer.rows(), layer.cols()),
        None => (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product()),
    };
    let same = shape == sides[1].shape(other);
    Some((name.to_owned(), same.then(|| [View::contiguous(rows, cols); 2])))
}

fn same_bytes(sides: &[Side; 2], a: &Weight, b: &Weight) -> Result<bool> {
    let (Weight::Stored(i, _), Weight::Stored(j, _)) = (a, b) else { return Ok(false) };
    if sides[0].tensors[*i].dtype != sides[1].tensors[*j].dtype
        || sides[0].tensors[*i].shape != sides[1].tensors[*j].shape
    {
        return Ok(false);
    }
    let (mut x, mut y) = (vec![0; 4 << 20], vec![0; 4 << 20]);
    let length = sides[0].tensors[*i].bytes();
    let mut at = 0;
    while at < length {
        let n = x.len().min((length - at) as usize);
        sides[0].source.read(*i, at, &mut x[..n])?;
        sides[1].source.read(*j, at, &mut y[..n])?;
        if x[..n] != y[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

fn difference(sides: &[Side; 2], weights: [&Weight; 2], views: &[View; 2]) -> Result<(Squares, f64)> {
    let (rows, cols) = (views[0].rows, views[0].cols);
    // whole rows, as a group of a coded layer may not be cut
    let coded = weights.iter().filter_map(|weight| match weight {
        Weight::Coded(layer, _) => Some(layer.coded.layout),
        Weight::Stored(..) | Weight::Blocks(_) => None,
    });
    // rows that lie across words are read together
    let across = coded.into_iter().any(|layout| matches!(layout, Layout::Gptq { .. } | Layout::Awq));
    let piece = if across { PIECE.max(cols * 8) * 8 / (cols * 8) * (cols * 8) } else { PIECE.max(cols) };
    let all: Vec<Piece> = pieces(rows, cols, piece, 1).collect();
    let parts: Vec<Result<(Squares, f64)>> = all
        .into_par_iter()
        .map(|piece| {
            let a = sides[0].rows(weights[0], &views[0], piece)?;
            let b = sides[1].rows(weights[1], &views[1], piece)?;
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
