//! The plan for a GGUF model: blocks or casts, as llama-quantize (llama.cpp) chooses them.

use super::{Job, NonFinite, Place, Plan, Request, Row, Work, lay_out, shortened};
use crate::{
    block::Block,
    error::{Error, Result},
    formats::Part,
    layers::{filtered, small, unmatched},
    mixtures::{Facts, MORE_BITS, Target, kept, targets},
    reader::{StoredTensor, gguf::Keys},
    recipe::{LayerType, Reason, Recipe},
    scheme::{BLOCK_PRESETS, Method, presets},
    tensor::{Float, TensorInfo, View},
};
use serde_json::json;

/// What is done to a tensor.
enum Step {
    Keep(String),
    Block(Block, Option<String>),
    Cast(Float, Option<String>),
}

/// The recipe for a GGUF model: `--bits` means block types there, and integers with scales of their own cannot be held.
pub fn recipe(recipe: &Recipe) -> Result<Recipe> {
    let mut recipe = recipe.clone();
    let accepted = || {
        let names = presets().filter(|p| !matches!(p.method, Method::Quantize(_))).map(|p| p.name);
        format!("of a GGUF model accepted: --preset {}", names.collect::<Vec<_>>().join(", "))
    };
    let stated = presets().find(|p| p.name == recipe.preset);
    let changed = stated.is_some_and(|p| p.method != recipe.method);
    match recipe.method {
        Method::Blocks(_) | Method::Cast(_) => {}
        Method::Quantize(_) if !recipe.by_bits => {
            return Err(Error::refused(format!(
                "{} makes int4 or int8 codes with scales in tensors of their own, which no GGUF file holds; {}",
                recipe.preset,
                accepted()
            )));
        }
        Method::Quantize(_) if changed => {
            return Err(Error::refused(format!(
                "--scheme, --observer, --strategy and --group-size have no meaning for GGUF, whose block types fix \
                 them; {}",
                accepted()
            )));
        }
        Method::Quantize(scheme) => {
            let preset = BLOCK_PRESETS.iter().find(|p| p.bits == Some(scheme.bits));
            let preset = preset.ok_or_else(|| Error::refused(accepted()))?;
            (recipe.preset, recipe.method) = (preset.name.to_owned(), preset.method);
        }
    }
    let without_meaning = [
        ("--override", !recipe.overrides.is_empty()),
        ("--calibration", recipe.calibration.is_some()),
        ("--layer-types", recipe.layer_types != [LayerType::Linear]),
    ];
    match without_meaning.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Error::refused(format!(
            "{option} has no meaning for GGUF, where the preset decides each tensor's type; --include and --exclude \
             choose tensors"
        ))),
        None => Ok(recipe),
    }
}

/// Why a preset of blocks cannot be had of other input.
pub fn needs_gguf(preset: &str) -> String {
    let others = presets().filter(|p| !matches!(p.method, Method::Blocks(_))).map(|p| p.name);
    format!(
        "{preset} writes GGUF, which needs a GGUF model: tokenizer and architecture lie in it, as llama.cpp's \
         convert_hf_to_gguf.py --outtype f16 (or bf16, f32) makes it of a model's directory; of other checkpoints \
         accepted: --preset {}",
        others.collect::<Vec<_>>().join(", ")
    )
}

/// Plans a request over the tensors of a GGUF model.
pub fn plan(stored: &[StoredTensor], keys: &Keys, request: &Request, non_finite: &NonFinite) -> Result<Plan> {
    if let Some((t, block)) = stored.iter().find_map(|t| Some((t, t.block?))) {
        return Err(Error::refused(format!(
            "{}: the model is already quantized ({block}); quantizing twice loses twice, so take the F32, F16 or BF16 \
             GGUF that it was made of (monoquant dequantize makes floats of this one, without what was lost)",
            t.info.name
        )));
    }
    let recipe = &request.recipe;
    let mut problems = Vec::new();
    let mut builder = Builder { plan: Plan::default(), outputs: Vec::new() };
    let mut blocks = std::collections::BTreeMap::new();
    for (source, (t, step)) in stored.iter().zip(steps(stored, keys, recipe)).enumerate() {
        let (info, name) = (&t.info, t.info.name.as_str());
        let chosen = !matches!(step, Step::Keep(_));
        let why = filtered(recipe, &[name]).or_else(|| small(recipe, info.elements()));
        let why =
            why.or_else(|| non_finite.get(&source).map(|&(index, count)| Reason::NonFinite { index, count }));
        let same = matches!(step, Step::Cast(to, _) if info.dtype == to.dtype());
        let step = match why {
            Some(reason) if chosen => Step::Keep(reason.to_string()),
            _ if chosen && same => Step::Keep(Reason::Already(info.dtype).to_string()),
            _ if chosen && info.dtype.float().is_none() && info.dtype.is_float() => {
                problems.push(format!(
                    "{name}: {} cannot be quantized; F32, F16 and BF16 weights are accepted, --exclude leaves the \
                     tensor as it is",
                    info.dtype
                ));
                continue;
            }
            _ if chosen && info.dtype.float().is_none() => {
                Step::Keep(Reason::NotFloat(info.dtype).to_string())
            }
            _ => step,
        };
        if let Step::Block(block, _) = step {
            blocks.insert(name.to_owned(), block);
        }
        builder.add(source, info, step);
    }
    let Builder { mut plan, outputs } = builder;
    if problems.is_empty() && plan.jobs.iter().all(|job| job.work == Work::Copy) {
        let why = super::why_kept(&plan.rows);
        problems
            .push(format!("no tensor is left to change ({why}); --include and --min-params choose others"));
    }
    if !problems.is_empty() {
        return Err(Error::Refused(problems));
    }
    let infos: Vec<TensorInfo> = stored.iter().map(|t| t.info.clone()).collect();
    plan.notes = shortened(std::mem::take(&mut plan.notes));
    plan.notes.extend(unmatched(recipe, &infos, None).into_iter().map(|p| format!("{p} matches no tensor")));
    let mut ours = json!({"version": env!("CARGO_PKG_VERSION"), "recipe": recipe.to_json()});
    ours.sort_all_objects();
    let metadata = [("format".to_owned(), "pt".to_owned()), ("monoquant".to_owned(), ours.to_string())];
    lay_out(&mut plan, outputs, request.max_shard_size, vec![metadata.into()]);
    for file in &mut plan.files {
        file.blocks = blocks.clone();
    }
    plan.file_type = match recipe.method {
        Method::Blocks(mixture) => Some(mixture.file_type()),
        Method::Cast(to) => Some(file_type(to)),
        Method::Quantize(_) => None,
    };
    Ok(plan)
}

/// What `general.file_type` says of a model of floats.
pub(crate) fn file_type(float: Float) -> u32 {
    match float {
        Float::F32 => 0,
        Float::F16 => 1,
        Float::BF16 => 32,
    }
}

/// What the method does to each tensor, before any filter.
fn steps(stored: &[StoredTensor], keys: &Keys, recipe: &Recipe) -> Vec<Step> {
    let facts = Facts::new(keys);
    let all: Vec<(&str, &[usize])> =
        stored.iter().map(|t| (t.info.name.as_str(), t.info.shape.as_slice())).collect();
    let to = match recipe.method {
        Method::Blocks(mixture) => {
            let step = |target| match target {
                Target::Keep(why) => Step::Keep(why.to_owned()),
                Target::Block(block, reason) => Step::Block(block, reason),
                Target::Half(reason) => Step::Cast(Float::F16, Some(reason)),
            };
            return targets(mixture, &all, &facts).into_iter().map(step).collect();
        }
        Method::Cast(to) => Some(to),
        Method::Quantize(_) => None,
    };
    let step = |(name, shape): &(&str, &[usize])| match (kept(name, shape, &facts), to) {
        (Some(why), _) => Step::Keep(format!("{why}, which llama.cpp wants as it is")),
        (None, Some(to)) => Step::Cast(to, None),
        (None, None) => Step::Keep("not chosen".into()),
    };
    all.iter().map(step).collect()
}

struct Builder {
    plan: Plan,
    outputs: Vec<TensorInfo>,
}

impl Builder {
    fn add(&mut self, source: usize, info: &TensorInfo, step: Step) {
        let cols = info.shape.last().copied().unwrap_or(1);
        let rows = info.elements() as usize / cols.max(1);
        let mut out = info.clone();
        let (work, action, reason) = match step {
            Step::Keep(why) => (Work::Copy, "kept".to_owned(), Some(why)),
            Step::Cast(to, reason) => {
                out.dtype = to.dtype();
                (Work::Cast(to), format!("cast to {}", to.dtype()), reason)
            }
            Step::Block(block, reason) => {
                out.dtype = crate::tensor::Dtype::U8;
                out.shape.iter_mut().rev().take(1).for_each(|d| *d = cols / block.len() * block.bytes());
                (Work::QuantizeBlocks(block), block.to_string(), reason)
            }
        };
        if let Some(reason) = reason.as_ref().filter(|r| work != Work::Copy && r.as_str() != MORE_BITS) {
            self.plan.notes.push(format!("{}: {action}: {reason}", info.name));
        }
        self.plan.rows.push(Row {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            action,
            reason,
            before: info.bytes(),
            after: out.bytes(),
            scheme: None,
        });
        self.plan.jobs.push(Job {
            source,
            view: View::contiguous(rows, cols),
            work,
            outputs: vec![Place { part: Part::Codes, grid: 0, file: 0, tensor: self.outputs.len() }],
            target: None,
            input: None,
            row: self.plan.rows.len() - 1,
        });
        self.outputs.push(out);
    }
}
