//! Choosing: from a recipe, the tensors' names, shapes and dtypes, and the config, what happens to each tensor.

use crate::{
    calibration::InputQParams,
    choice::{Choice, Layer, Reason},
    experts::{self, Stack},
    names::{Facts, Kind},
    overrides::Changes,
    recipe::{LayerType, Recipe},
    scheme::{Activations, Method, Scheme},
    tensor::{Float, TensorInfo, View},
};
use regex::Regex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Decides for every tensor, in the same order.
pub fn choose(recipe: &Recipe, tensors: &[TensorInfo], config: Option<&Value>) -> Vec<Choice> {
    let base = match recipe.method {
        Method::Quantize(scheme) => scheme,
        Method::Cast(to) => return tensors.iter().map(|t| cast(recipe, t, to)).collect(),
        // of GGUF models, whose plan is another
        Method::Blocks(_) => return vec![Choice::Keep { reason: Reason::NotAWeight }; tensors.len()],
    };
    let facts = Facts::new(config, tensors);
    let chooser = Chooser { recipe, base, facts: &facts };
    let (mut choices, stacks): (Vec<_>, Vec<_>) =
        tensors.iter().enumerate().map(|(i, t)| chooser.tensor(i, t)).unzip();
    rename(&mut choices, stacks);
    if let Some(declared) = &recipe.declared
        && base.bits == 4
        && recipe.include.is_empty()
    {
        keep_last(&mut choices, tensors, &facts, declared);
    }
    if facts.tied {
        untie(&mut choices, tensors, &facts);
    }
    choices
}

/// The patterns of `--include`, `--exclude` and `--override` that no tensor's name, nor that of an expert, matches.
pub fn unmatched(recipe: &Recipe, tensors: &[TensorInfo], config: Option<&Value>) -> Vec<String> {
    let facts = Facts::new(config, tensors);
    let overrides = recipe.overrides.iter().map(|o| ("--override", &o.pattern));
    let mut open: Vec<_> = (recipe.include.iter().map(|p| ("--include", p)))
        .chain(recipe.exclude.iter().map(|p| ("--exclude", p)))
        .chain(overrides)
        .collect();
    for tensor in tensors {
        open.retain(|(_, pattern)| !pattern.is_match(&tensor.name));
    }
    if !open.is_empty() && matches!(recipe.method, Method::Quantize(_)) {
        let counted = tensors.iter().filter(|t| elements(t).is_some());
        for stack in counted.filter_map(|t| experts::split(t, &facts)?.ok()) {
            open.retain(|(_, pattern)| !stack.parts.iter().any(|p| pattern.is_match(&p.name)));
        }
    }
    open.iter().map(|(option, pattern)| format!("{option} '{pattern}'")).collect()
}

/// Number of elements, where it can be counted.
fn elements(tensor: &TensorInfo) -> Option<usize> {
    tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Why a tensor is not even looked at.
fn unfit(tensor: &TensorInfo) -> Option<Reason> {
    match elements(tensor) {
        None => Some(Reason::TooLarge),
        Some(0) => Some(Reason::Empty),
        Some(_) if !tensor.dtype.is_float() => Some(Reason::NotFloat(tensor.dtype)),
        Some(_) => None,
    }
}

fn cast(recipe: &Recipe, tensor: &TensorInfo, to: Float) -> Choice {
    let weights = elements(tensor).map_or(u64::MAX, |n| n as u64);
    let same = (tensor.dtype == to.dtype()).then_some(Reason::Already(tensor.dtype));
    let reason = unfit(tensor)
        .or(same)
        .or_else(|| filtered(recipe, &[&tensor.name]))
        .or_else(|| small(recipe, weights));
    reason.map_or(Choice::Cast, |reason| Choice::Keep { reason })
}

pub(crate) fn filtered(recipe: &Recipe, names: &[&str]) -> Option<Reason> {
    let matches = |pattern: &&Regex| names.iter().any(|name| pattern.is_match(name));
    if let Some(pattern) = recipe.exclude.iter().find(matches) {
        return Some(Reason::Excluded(pattern.to_string()));
    }
    let included = recipe.include.is_empty() || recipe.include.iter().any(|p| matches(&p));
    (!included).then_some(Reason::NotIncluded)
}

pub(crate) fn small(recipe: &Recipe, weights: u64) -> Option<Reason> {
    let min = recipe.min_params;
    (weights < min).then_some(Reason::Small { min, weights })
}

struct Chooser<'a> {
    recipe: &'a Recipe,
    base: Scheme,
    facts: &'a Facts,
}

impl Chooser<'_> {
    /// The choice by itself, and, of experts that stay whole for now, how to split them.
    fn tensor(&self, source: usize, tensor: &TensorInfo) -> (Choice, Option<Stack>) {
        if let Some(reason) = unfit(tensor) {
            return (Choice::Keep { reason }, None);
        }
        // a model in memory cannot be taken apart
        let stack = match self.recipe.declared {
            Some(_) => None,
            None => experts::split(tensor, self.facts),
        };
        match stack {
            Some(Ok(stack)) => self.stack(source, tensor, stack),
            Some(Err(why)) => (Choice::Keep { reason: Reason::Experts(why) }, None),
            None => match self.layer(source, tensor) {
                Ok(layer) => (Choice::Quantize(vec![layer]), None),
                Err(reason) => (Choice::Keep { reason }, None),
            },
        }
    }

    fn stack(&self, source: usize, tensor: &TensorInfo, stack: Stack) -> (Choice, Option<Stack>) {
        if stack.bias {
            return (Choice::Keep { reason: Reason::Vector }, Some(stack));
        }
        let linear = self.recipe.layer_types.contains(&LayerType::Linear);
        let (mut layers, mut kept, mut first) = (Vec::new(), Vec::new(), None);
        for part in &stack.parts {
            let names = [tensor.name.as_str(), &part.name];
            let off = (!linear).then_some(Reason::LayerType(LayerType::Linear));
            let filtered = filtered(self.recipe, &names).or(off);
            match filtered.map_or_else(|| self.scheme(&names, part.view.elements()), Err) {
                Ok(scheme) => layers.push(Layer {
                    name: part.name.clone(),
                    module: module(&part.name),
                    source,
                    view: part.view,
                    shape: part.shape.clone(),
                    layer_type: LayerType::Linear,
                    scheme,
                    input: None,
                }),
                Err(reason) => {
                    first.get_or_insert(reason);
                    kept.push(part.clone());
                }
            }
        }
        match (layers.is_empty(), first) {
            (true, reason) => (Choice::Keep { reason: reason.unwrap_or(Reason::Empty) }, Some(stack)),
            (false, None) => (Choice::Quantize(layers), Some(stack)),
            (false, Some(_)) => (Choice::Split { layers, kept }, Some(stack)),
        }
    }

    fn layer(&self, source: usize, tensor: &TensorInfo) -> Result<Layer, Reason> {
        let shape = &tensor.shape;
        let module = module(&tensor.name);
        let kind = self.facts.kind(tensor);
        let layer_type = match (&self.recipe.declared, kind) {
            (_, Kind::Vector) => return Err(Reason::Vector),
            (Some(declared), _) => *declared.get(&tensor.name).ok_or(Reason::NotAWeight)?,
            (None, Kind::Linear | Kind::LinearTransposed | Kind::Head | Kind::Router) => LayerType::Linear,
            (None, Kind::Embedding) => LayerType::Embedding,
            (None, Kind::Lstm) => LayerType::Lstm,
            (None, Kind::Gru) => LayerType::Gru,
            (None, Kind::Conv1d) => LayerType::Conv1d,
            (None, Kind::Conv2d) => LayerType::Conv2d,
            (None, Kind::ConvTransposed) => LayerType::ConvTranspose,
            (None, Kind::Dimensions(n)) => return Err(Reason::Dimensions(n)),
            (None, Kind::Other) => return Err(Reason::NotAWeight),
        };
        if let Some(reason) = filtered(self.recipe, &[&tensor.name]) {
            return Err(reason);
        }
        // Whoever names a head or a router means it.
        let named = !self.recipe.include.is_empty();
        match kind {
            Kind::Head if !named => return Err(Reason::Head(module)),
            Kind::Router if !named => return Err(Reason::Router),
            _ => {}
        }
        if !self.recipe.layer_types.contains(&layer_type) {
            return Err(match layer_type {
                LayerType::Embedding => Reason::Embedding,
                other => Reason::LayerType(other),
            });
        }
        let rows = shape.first().copied().unwrap_or_default();
        let cols = shape.iter().skip(1).product();
        let (view, shape) = if kind == Kind::LinearTransposed {
            let view = View { offset: 0, rows: cols, cols: rows, row_stride: 1, col_stride: cols as u64 };
            (view, vec![cols, rows])
        } else {
            (View::contiguous(rows, cols), shape.clone())
        };
        let mut scheme = self.scheme(&[&tensor.name], view.elements())?;
        let input = self.input(&module, layer_type, &mut scheme)?;
        let name = tensor.name.clone();
        Ok(Layer { name, module, source, view, shape, layer_type, scheme, input })
    }

    /// Static scales where there are statistics. Recurrent layers and embeddings keep float inputs, or ids.
    fn input(
        &self,
        module: &str,
        layer_type: LayerType,
        scheme: &mut Scheme,
    ) -> Result<Option<InputQParams>, Reason> {
        use LayerType::*;
        let Some(calibration) = &self.recipe.calibration else { return Ok(None) };
        let observed = matches!(layer_type, Linear | Conv1d | Conv2d | ConvTranspose);
        if !observed || scheme.activations == Activations::Float {
            return Ok(None);
        }
        match calibration.inputs(module) {
            Ok(Some(input)) => {
                scheme.activations = Activations::StaticTensor { symmetric: calibration.symmetric };
                Ok(Some(input))
            }
            Ok(None) => Err(Reason::NotCalibrated),
            Err(e) => Err(Reason::Statistics(e.to_string())),
        }
    }

    /// The scheme of a layer that passed the filters.
    fn scheme(&self, names: &[&str], weights: u64) -> Result<Scheme, Reason> {
        if let Some(reason) = small(self.recipe, weights) {
            return Err(reason);
        }
        let changes = (self.recipe.overrides.iter())
            .filter(|o| names.iter().any(|name| o.pattern.is_match(name)))
            .fold(Changes::default(), |all, o| all.then(o.changes));
        changes.apply(self.base).ok_or(Reason::Override)
    }
}

/// The module that a weight belongs to.
fn module(name: &str) -> String {
    name.rsplit_once('.').map_or(String::new(), |(module, _)| module.to_owned())
}

/// Splits what is left of experts of which some tensor is split: a loader looks for one form or the other.
fn rename(choices: &mut [Choice], stacks: Vec<Option<Stack>>) {
    let mut split = BTreeSet::new();
    for (choice, stack) in choices.iter().zip(&stacks) {
        if let (Choice::Quantize(_) | Choice::Split { .. }, Some(stack)) = (choice, stack) {
            split.insert(stack.container.clone());
        }
    }
    for (choice, stack) in choices.iter_mut().zip(stacks) {
        match (&choice, stack) {
            (Choice::Keep { .. }, Some(stack)) if split.contains(&stack.container) => {
                *choice = Choice::Rename(stack.parts);
            }
            _ => {}
        }
    }
}

/// At 4 bits the last projection of a model costs most of the accuracy; where no head is known by name, it is the last.
fn keep_last(
    choices: &mut [Choice],
    tensors: &[TensorInfo],
    facts: &Facts,
    declared: &BTreeMap<String, LayerType>,
) {
    // a declared weight without a tensor is a head that shares its embedding's
    let names: BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let tied_head = declared.keys().any(|name| !names.contains(name.as_str()));
    if tied_head || tensors.iter().any(|t| facts.kind(t) == Kind::Head) {
        return;
    }
    // the model's last, whether or not it was chosen: who left it out himself does not mean the one before it too
    let linear = |t: &TensorInfo| declared.get(&t.name) == Some(&LayerType::Linear);
    let Some(last) = tensors.iter().rposition(linear) else { return };
    let quantized = |choice: &Choice| matches!(choice, Choice::Quantize(layers) if layers[0].layer_type == LayerType::Linear);
    if quantized(&choices[last]) && choices[..last].iter().any(quantized) {
        choices[last] = Choice::Keep { reason: Reason::LastProjection };
    }
}

/// Keeps embedding and head when they share a weight, because quantizing one would part them.
fn untie(choices: &mut [Choice], tensors: &[TensorInfo], facts: &Facts) {
    let of = |kind: Kind| {
        let is = move |&i: &usize| facts.kind(&tensors[i]) == kind;
        (0..tensors.len()).filter(is).collect::<Vec<_>>()
    };
    let (embeddings, heads) = (of(Kind::Embedding), of(Kind::Head));
    let mut ties = Vec::new();
    for &a in &embeddings {
        for &b in heads.iter().filter(|&&b| tensors[b].shape == tensors[a].shape) {
            if [a, b].iter().any(|&i| matches!(choices[i], Choice::Quantize(_))) {
                ties.extend([(a, b), (b, a)]);
            }
        }
    }
    for (kept, other) in ties {
        choices[kept] = Choice::Keep { reason: Reason::Tied(tensors[other].name.clone()) };
    }
}

#[cfg(test)]
mod tests;
