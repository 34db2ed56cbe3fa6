//! The plan that turns GGUF blocks back into floats.

use crate::{
    coded::Layers,
    error::{Error, Result},
    formats::Part,
    mixtures::{Facts, kept},
    plan::{Job, Place, Plan, Row, Work, gguf::file_type, lay_out},
    reader::{StoredTensor, gguf::Keys},
    tensor::{Float, TensorInfo, View},
};
use std::collections::HashMap;

/// Blocks become `dtype`, F16 by default. Other matrices become it if it is said; what llama.cpp wants as it is, stays.
pub(super) fn plan(
    stored: &[StoredTensor],
    keys: &Keys,
    layers: Layers,
    dtype: Option<Float>,
    max_shard_size: Option<u64>,
) -> Result<Plan> {
    if layers.blocks.is_empty() {
        return Err(Error::refused(
            "no quantized tensor found; quantize --preset fp16 or bf16 casts a GGUF model of floats",
        ));
    }
    let facts = Facts::new(keys);
    let blocks: HashMap<usize, _> = layers.blocks.iter().map(|l| (l.tensor, l)).collect();
    let mut plan = Plan::default();
    let mut outputs = Vec::new();
    for (source, t) in stored.iter().enumerate() {
        let info = &t.info;
        let shape = t.shape();
        let vector = kept(&info.name, &shape, &facts).is_some();
        let (work, action, out) = match (blocks.get(&source), dtype, info.dtype.float()) {
            (Some(layer), ..) => {
                let to = dtype.unwrap_or(if shape.len() < 2 { Float::F32 } else { Float::F16 });
                let action = format!("{} to {}", layer.block, to.dtype());
                (Work::DequantizeBlocks(layer.block, to), action, to.dtype())
            }
            (None, Some(to), Some(from)) if to != from && !vector => {
                (Work::Cast(to), format!("cast to {}", to.dtype()), to.dtype())
            }
            _ => (Work::Copy, "kept".to_owned(), info.dtype),
        };
        let out = TensorInfo { name: info.name.clone(), dtype: out, shape: shape.clone() };
        let cols = shape.last().copied().unwrap_or(1);
        let rows = out.elements() as usize / cols.max(1);
        plan.rows.push(Row {
            name: info.name.clone(),
            dtype: t.block.map_or_else(|| info.dtype.to_string(), |b| b.to_string()),
            shape,
            reason: (work == Work::Copy).then(|| "not quantized".into()),
            action,
            before: info.bytes(),
            after: out.bytes(),
            scheme: None,
        });
        plan.jobs.push(Job {
            source,
            view: View::contiguous(rows, cols),
            work,
            outputs: vec![Place { part: Part::Codes, grid: 0, file: 0, tensor: outputs.len() }],
            target: None,
            input: None,
            row: plan.rows.len() - 1,
        });
        outputs.push(out);
    }
    plan.file_type = Some(file_type(dtype.unwrap_or(Float::F16)));
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    lay_out(&mut plan, outputs, max_shard_size, vec![metadata]);
    Ok(plan)
}
