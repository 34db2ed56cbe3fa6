//! Proof that an output stands for its input: every code, cast and copy, read again and held against what it was made from.
//!
//! A code q with scale s and zero point z says that the weight x lies within half a step of x̂ = (q − z) · s; the lowest and
//! the highest code also stand for all that lies beyond them. [`bounds`] says what exactly is asked for in each layout, and
//! [`blocks`] in GGUF's. Casts are the nearest value of their dtype, and copies the same bytes. What no weight can tell, the
//! last digits of a scale and files without tensors, only a digest does: [`files`].

pub mod blocks;
pub mod bounds;
pub mod files;

use crate::{
    error::{Error, Result},
    formats,
    pairs::{Side, Weight, cut, partner},
    reader::Checkpoint,
    tensor::View,
    threads,
};
use bounds::{Outcome, Pair};
use rayon::prelude::*;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Something in an output that its input does not explain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The tensor or layer; none if it is the file that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The first weight that is wrong, counted row after row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// What is there.
    pub value: String,
    /// What is accepted.
    pub expected: String,
    /// How many weights are wrong.
    pub count: u64,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(tensor) = &self.tensor {
            write!(f, ": {tensor}")?;
        }
        if let Some(index) = self.index {
            write!(f, ", weight {index}")?;
        }
        write!(f, ": {}; expected: {}", self.value, self.expected)?;
        match self.count {
            0 | 1 => Ok(()),
            count => write!(f, " (and {} more weights of it)", count - 1),
        }
    }
}

/// What was checked, and what is wrong.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verification {
    /// The output.
    pub output: PathBuf,
    /// What it was held against.
    pub against: PathBuf,
    /// Quantized layers.
    pub layers: u64,
    /// Tensors of another dtype.
    pub casts: u64,
    /// Tensors that are the same, byte for byte.
    pub copies: u64,
    /// Weights of quantized layers.
    pub weights: u64,
    /// Those of them that lie further out than the lowest or highest code reaches.
    pub clipped: u64,
    /// Largest |x − x̂| of the others, in steps of their scale.
    pub worst: f64,
    /// Values that a cast clamped to the largest of its dtype.
    pub saturated: u64,
    /// Files whose SHA-256 was compared with a report's.
    pub files: u64,
    /// Tensors that no weight of the input explains: scales of inputs.
    pub unchecked: Vec<String>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

impl Verification {
    /// An error that names what is wrong, if anything is.
    pub fn result(&self) -> Result<()> {
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Error::Differs(self.problems.iter().map(Problem::to_string).collect())),
        }
    }

    /// The same of an output that lay at `from` while it was checked, and is to lie at `to`.
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        for problem in &mut self.problems {
            problem.file = match problem.file.strip_prefix(from) {
                Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
                Ok(rest) => to.join(rest),
                Err(_) => continue,
            };
        }
        self.output = to.to_owned();
        self
    }

    fn add(&mut self, outcome: &Outcome) {
        self.clipped += outcome.clipped;
        self.saturated += outcome.saturated;
        self.worst = self.worst.max(outcome.worst);
    }
}

/// Holds an output against what it was made from, in about `max_memory` bytes.
pub fn verify(
    output: &Path,
    against: &Checkpoint,
    max_memory: u64,
    interrupted: &AtomicBool,
) -> Result<Verification> {
    threads::start()?;
    let mut verification = Verification {
        output: output.to_owned(),
        against: against.path().to_owned(),
        ..Verification::default()
    };
    for folder in folders(output) {
        verify_folder(&Checkpoint::open(&folder)?, against, max_memory, interrupted, &mut verification)?;
    }
    Ok(verification)
}

/// An output of several formats is a folder for each.
pub(crate) fn folders(output: &Path) -> Vec<PathBuf> {
    let several: Vec<PathBuf> =
        formats::ALL.iter().map(|f| output.join(f.name())).filter(|p| p.is_dir()).collect();
    if several.is_empty() { vec![output.to_owned()] } else { several }
}

/// A weight of the output and what it was made from, with the views to read both by.
struct Match<'a> {
    weights: [&'a Weight; 2],
    views: [View; 2],
}

fn verify_folder(
    output: &Checkpoint,
    against: &Checkpoint,
    max_memory: u64,
    interrupted: &AtomicBool,
    verification: &mut Verification,
) -> Result<()> {
    let mut sides = [Side::open(against)?, Side::open(output)?];
    let names = [0, 1].map(|i: usize| sides[i].names.clone());
    sides[0].untie(&names[1]);
    sides[1].untie(&names[0]);
    let activations = sides[1].activations.iter().map(|&i| sides[1].tensors[i].name.clone());
    verification.unchecked.extend(activations);
    let whole = |tensor: Option<&str>, value: String, expected: &str| Problem {
        file: output.path().to_owned(),
        tensor: tensor.map(str::to_owned),
        index: None,
        value,
        expected: expected.to_owned(),
        count: 1,
    };
    // weights of either side that a pair covers
    let mut covered: [BTreeMap<&str, u64>; 2] = Default::default();
    let threads = rayon::current_num_threads().max(1) as u64;
    let most = (max_memory / threads / 256).clamp(1 << 12, 1 << 18) as usize;
    let restored = restored(&sides);
    let mut seen = HashSet::new();
    for name in sides[1].names.iter().filter(|name| seen.insert(name.as_str())) {
        let other = &sides[1].weights[name];
        let mut matches = Vec::new();
        if let Some(parts) = restored.get(name.as_str()) {
            for &part in parts {
                let weight = &sides[0].weights[part];
                let Some(view) = origin(weight).map(|origin| origin.view) else { continue };
                *covered[0].entry(part).or_default() += view.elements();
                *covered[1].entry(name).or_default() += view.elements();
                matches.push(Match {
                    weights: [weight, other],
                    views: [View::contiguous(view.rows, view.cols), view],
                });
            }
        } else if let Some((partner, views)) = partner(&sides, name) {
            let (key, weight) = match sides[0].weights.get_key_value(&partner) {
                Some(found) => found,
                None => continue,
            };
            let Some(views) = views else {
                let value = format!("shape {:?}", sides[1].shape(other));
                let expected = format!("{:?}, as in the input", sides[0].shape(weight));
                verification.problems.push(whole(Some(name), value, &expected));
                *covered[0].entry(key).or_default() = u64::MAX;
                continue;
            };
            *covered[0].entry(key).or_default() += views[0].elements();
            *covered[1].entry(name).or_default() += views[1].elements();
            matches.push(Match { weights: [weight, other], views });
        } else {
            let value = "is there".to_owned();
            verification.problems.push(whole(Some(name), value, "not, as the input has no such tensor"));
            continue;
        }
        for pair in matches {
            let outcome = check(&sides, &pair, most, interrupted)?;
            match pair.weights[1] {
                Weight::Stored(..) if outcome.cast => verification.casts += 1,
                Weight::Stored(..) => verification.copies += 1,
                Weight::Blocks(_) if outcome.copy => verification.copies += 1,
                _ => {
                    verification.layers += 1;
                    verification.weights += pair.views[1].elements();
                }
            }
            verification.add(&outcome);
            if let Some((index, value, expected)) = outcome.first {
                let file = file_of(output, &sides[1], other);
                let (tensor, count) = (Some(name.clone()), outcome.wrong);
                verification.problems.push(Problem { file, tensor, index, value, expected, count });
            }
        }
    }
    for (i, side) in sides.iter().enumerate() {
        for name in &names[i] {
            let expected: u64 = side.shape(&side.weights[name]).iter().map(|&d| d as u64).product();
            let found = covered[i].get(name.as_str()).copied();
            match found {
                None if i == 0 => verification.problems.push(whole(
                    Some(name),
                    "is missing".into(),
                    "a tensor of the input",
                )),
                Some(found) if found < expected => verification.problems.push(whole(
                    Some(name),
                    format!("{found} of its {expected} weights are there"),
                    "all",
                )),
                _ => {}
            }
        }
    }
    Ok(())
}

fn origin(weight: &Weight) -> Option<&crate::coded::Origin> {
    match weight {
        Weight::Stored(_, origin) => origin.as_ref(),
        Weight::Coded(layer) => layer.origin.as_ref(),
        Weight::Blocks(_) => None,
    }
}

/// Tensors of the output that parts of the input were put together to, and the parts.
fn restored(sides: &[Side; 2]) -> BTreeMap<&str, Vec<&str>> {
    let mut restored: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, weight) in &sides[0].weights {
        let Some(origin) = origin(weight) else { continue };
        if let Some(whole @ Weight::Stored(..)) = sides[1].weights.get(&origin.source)
            && sides[1].shape(whole) == origin.shape
        {
            restored.entry(&origin.source).or_default().push(name);
        }
    }
    restored.values_mut().for_each(|parts| parts.sort_unstable());
    restored
}

/// The file that holds a weight's codes.
fn file_of(checkpoint: &Checkpoint, side: &Side, weight: &Weight) -> PathBuf {
    let tensor = match weight {
        Weight::Stored(i, _) => *i,
        Weight::Coded(layer) => layer.codes,
        Weight::Blocks(layer) => layer.tensor,
    };
    debug_assert!(tensor < side.tensors.len());
    let file = checkpoint.tensors().get(tensor).and_then(|t| checkpoint.files().get(t.file));
    file.cloned().unwrap_or_else(|| checkpoint.path().to_owned())
}

fn check(sides: &[Side; 2], pair: &Match, most: usize, interrupted: &AtomicBool) -> Result<Outcome> {
    let Match { weights, views } = *pair;
    let parameters = match Pair::open(sides, weights, views) {
        Ok(parameters) => parameters,
        Err(Error::Refused(problems)) => return Ok(Outcome::refused(problems)),
        Err(e) => return Err(e),
    };
    let outcomes: Vec<Result<Outcome>> = cut(weights, &views[0], most)
        .into_par_iter()
        .map(|piece| match interrupted.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted),
            false => parameters.check(piece),
        })
        .collect();
    let mut total = parameters.outcome();
    for outcome in outcomes {
        total.add(outcome?);
    }
    Ok(total)
}
