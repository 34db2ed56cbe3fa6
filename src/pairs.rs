//! Two checkpoints side by side: the weights of each, however they are stored, and which belongs to which.

use crate::{
    coded::{BlockLayer, CodedLayer, Origin, blocks, decode_rows, layers, qparams},
    error::Result,
    inspect,
    plan::Layout,
    quantize::infos,
    reader::{Checkpoint, Source},
    tensor::{Float, TensorInfo, View},
    tiles::{Piece, pieces},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Scales (bits of f32) and zero points of a layer, a pair a group, row after row.
pub type Parameters = (Vec<u32>, Vec<i32>);

/// The name of a weight's other in the first checkpoint, and the views to read both by; none if shapes do not fit.
pub type Partner = (String, Option<[View; 2]>);

/// A checkpoint, its weights by name.
pub struct Side {
    /// Its tensors, in reading order.
    pub tensors: Vec<TensorInfo>,
    /// Their bytes.
    pub source: Source,
    /// Weights by name.
    pub weights: HashMap<String, Weight>,
    /// Their names, stored ones first.
    pub names: Vec<String>,
    /// Scales of inputs and outputs, which stand beside weights.
    pub activations: Vec<usize>,
    tied: BTreeMap<String, String>,
}

/// How a weight is stored.
#[derive(Clone)]
pub enum Weight {
    /// A tensor of its own; where it came from, if it was taken out of another.
    Stored(usize, Option<Origin>),
    /// Codes, with scales in other tensors.
    Coded(Box<CodedLayer>),
    /// GGUF's blocks.
    Blocks(BlockLayer),
}

impl Weight {
    /// The blocks, if it is stored so.
    pub fn blocks(&self) -> Option<&BlockLayer> {
        match self {
            Weight::Blocks(layer) => Some(layer),
            _ => None,
        }
    }
}

impl Side {
    /// Finds the weights of a checkpoint.
    pub fn open(checkpoint: &Checkpoint) -> Result<Side> {
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
            names.push(layer.name.clone());
            weights.insert(layer.name.clone(), Weight::Coded(Box::new(layer)));
        }
        let activations = found.activations;
        for layer in found.blocks {
            names.push(layer.name.clone());
            weights.insert(layer.name.clone(), Weight::Blocks(layer));
        }
        Ok(Side { tensors, source, weights, names, activations, tied: checkpoint.tied().clone() })
    }

    /// Takes up other names of weights that the other side stores on their own.
    pub fn untie(&mut self, other: &[String]) {
        let own: HashSet<&String> = other.iter().collect();
        for (alias, name) in self.tied.iter().filter(|(alias, _)| own.contains(alias)) {
            if let (Some(weight), false) = (self.weights.get(name).cloned(), self.weights.contains_key(alias))
            {
                self.names.push(alias.clone());
                self.weights.insert(alias.clone(), weight);
            }
        }
    }

    /// Bytes of all its parts.
    pub fn bytes(&self, weight: &Weight) -> u64 {
        match weight {
            Weight::Stored(i, _) => self.tensors[*i].bytes(),
            Weight::Blocks(layer) => self.tensors[layer.tensor].bytes(),
            Weight::Coded(layer) => layer.parts.iter().map(|&i| self.tensors[i].bytes()).sum(),
        }
    }

    /// Its dimensions.
    pub fn shape<'a>(&'a self, weight: &'a Weight) -> &'a [usize] {
        match weight {
            Weight::Stored(i, _) => &self.tensors[*i].shape,
            Weight::Blocks(layer) => &layer.shape,
            Weight::Coded(layer) => &layer.shape,
        }
    }

    /// What it is, in words.
    pub fn kind(&self, weight: &Weight) -> String {
        match weight {
            Weight::Stored(i, _) => self.tensors[*i].dtype.to_string(),
            Weight::Blocks(layer) => layer.block.to_string(),
            Weight::Coded(layer) => inspect::describe(layer),
        }
    }

    /// Floats that it holds or stands for; `None` of integers.
    pub fn float(&self, weight: &Weight) -> Option<Float> {
        match weight {
            Weight::Stored(i, _) => self.tensors[*i].dtype.float(),
            Weight::Coded(..) | Weight::Blocks(_) => Some(Float::F32),
        }
    }

    /// Scales and zero points of a layer that has its own tensors of them.
    pub fn parameters(&self, weight: &Weight) -> Result<Parameters> {
        match weight {
            Weight::Coded(layer) => qparams(&self.source, &self.tensors, &layer.coded),
            Weight::Stored(..) | Weight::Blocks(_) => Ok(Parameters::default()),
        }
    }

    /// Some rows of a weight; `view` is where they lie in a stored tensor.
    pub fn rows(
        &self,
        weight: &Weight,
        parameters: &Parameters,
        view: &View,
        piece: Piece,
    ) -> Result<Vec<f32>> {
        match weight {
            Weight::Blocks(layer) => blocks::decode(&self.source, layer, view.cols, piece),
            Weight::Coded(layer) => decode_rows(&self.source, layer, parameters, piece),
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

/// The first side's tensor for a name of the second, with the views to read both by; no views if shapes do not fit.
pub fn partner(sides: &[Side; 2], name: &str) -> Option<Partner> {
    let other = &sides[1].weights[name];
    // transposed or split weights are compared with what they were taken from
    let origin = match other {
        Weight::Stored(_, origin) => origin.as_ref(),
        Weight::Coded(layer) => layer.origin.as_ref(),
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

/// Whether both are the same tensor, byte for byte.
pub fn same_bytes(sides: &[Side; 2], a: &Weight, b: &Weight) -> Result<bool> {
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

/// Cuts a pair of weights into pieces of about `most` weights that both can be read by: whole rows, as a group of a coded
/// layer may not be cut, and rows that lie across words together.
pub fn cut(weights: [&Weight; 2], view: &View, most: usize) -> Vec<Piece> {
    let (rows, cols) = (view.rows, view.cols);
    let coded = weights.iter().filter_map(|weight| match weight {
        Weight::Coded(layer) => Some(layer.coded.layout),
        Weight::Stored(..) | Weight::Blocks(_) => None,
    });
    let across = coded.into_iter().any(|layout| matches!(layout, Layout::Gptq { .. } | Layout::Awq));
    let piece = if across { most.max(cols * 8) * 8 / (cols * 8).max(1) * (cols * 8) } else { most.max(cols) };
    pieces(rows, cols, piece, 1).collect()
}
