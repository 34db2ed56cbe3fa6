//! Experts whose matrices are stacked in one tensor: how each model lays them out, and the views that take them apart.

mod table;

use crate::{
    names::Facts,
    tensor::{TensorInfo, View},
};
use table::{Cut, FAMILIES, Family, Hidden, Order, Row};

/// One matrix, or bias, of one expert, inside the stacked tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name of the weight or bias as written, e.g. `model.layers.0.mlp.experts.3.gate_proj.weight`.
    pub name: String,
    /// Where it lies in the source. A bias is one row.
    pub view: View,
    /// Its own shape: `[out, in]`, or `[out]` for a bias.
    pub shape: Vec<usize>,
}

/// A stacked tensor, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stack {
    /// Name of the module that holds the experts; its tensors are split together or not at all.
    pub(crate) container: String,
    /// Whether these are biases, which are never quantized.
    pub(crate) bias: bool,
    /// Expert by expert, in the order of the row.
    pub(crate) parts: Vec<Part>,
}

/// More parts than any model has; a shape that asks for more is nonsense.
const MAX_PARTS: usize = 1 << 16;

/// Takes apart a tensor of stacked experts. `None` if it is none; the text says why one is kept whole.
pub(crate) fn split(tensor: &TensorInfo, facts: &Facts) -> Option<Result<Stack, String>> {
    let rows = family(facts).map_or(&[][..], |family| family.rows);
    let row = rows.iter().find(|row| head(&tensor.name, row.tail).is_some());
    match row {
        Some(row) => Some(take_apart(tensor, row, facts)),
        None if looks_stacked(tensor) => Some(Err(unknown(tensor, facts))),
        None => None,
    }
}

fn take_apart(tensor: &TensorInfo, row: &Row, facts: &Facts) -> Result<Stack, String> {
    let head = head(&tensor.name, row.tail).unwrap_or_default();
    // `block_sparse_moe.input_linear.weight` and `mlp.…`: the experts' module takes the last names' place.
    let container = match row.tail.split_once("experts") {
        Some((before, _)) => format!("{head}{before}{}", row.module),
        None => {
            let block = row.tail.split('.').next().unwrap_or_default();
            format!("{head}{block}.{}", row.module)
        }
    };
    let (experts, first, rows, row_stride, cols, col_stride) = matrices(tensor, row, facts)?;
    let shared = row.parts.len();
    if rows % shared != 0 {
        let shape = &tensor.shape;
        return Err(format!(
            "stacked experts {shape:?}: {rows} outputs do not split into {shared} projections"
        ));
    }
    if experts.checked_mul(shared).is_none_or(|n| n > MAX_PARTS) {
        return Err(format!("stacked experts {:?}: too many experts", tensor.shape));
    }
    let bias = row.order == Order::Bias;
    let rows = rows / shared;
    let mut parts = Vec::with_capacity(experts * shared);
    for expert in 0..experts {
        for (k, part) in row.parts.iter().enumerate() {
            let (skip, step) = match row.cut {
                Cut::Halves => (k * rows, 1),
                Cut::Interleaved => (k, shared as u64),
            };
            let offset = expert as u64 * first + skip as u64 * row_stride;
            let stride = row_stride * step;
            let (view, shape, what) = if bias {
                let view = View { offset, rows: 1, cols: rows, row_stride: first, col_stride: stride };
                (view, vec![rows], "bias")
            } else {
                let view = View { offset, rows, cols, row_stride: stride, col_stride };
                (view, vec![rows, cols], "weight")
            };
            parts.push(Part { name: format!("{container}.{expert}.{part}.{what}"), view, shape });
        }
    }
    Ok(Stack { container, bias, parts })
}

/// Experts, elements an expert, rows, row stride, columns, column stride.
type Matrices = (usize, u64, usize, u64, usize, u64);

/// Where the matrices lie, if the shape is the one that the row and the config promise.
fn matrices(tensor: &TensorInfo, row: &Row, facts: &Facts) -> Result<Matrices, String> {
    let shape = &tensor.shape;
    let wrong = |what: String| Err(format!("stacked experts {shape:?}: {what}"));
    let hidden = facts.latent.or(facts.hidden);
    let (experts, a, b) = match (row.order, &shape[..]) {
        (Order::OutIn | Order::InOut | Order::Either, &[e, a, b]) => (e, a, b),
        (Order::Bias, &[e, out]) => {
            let expected = hidden.filter(|_| row.hidden == Hidden::Out);
            return match expected {
                Some(n) if n != out => wrong(format!("the last axis should be hidden_size {n}")),
                _ => Ok((e, out as u64, out, 1, 1, 1)),
            };
        }
        (Order::FlatOutIn | Order::FlatInOut, &[all, b]) => match facts.dbrx {
            Some((e, ffn)) if e.checked_mul(ffn) == Some(all) && all > 0 => (e, ffn, b),
            Some((e, ffn)) => return wrong(format!("config.json says {e} experts of width {ffn}")),
            None => {
                return wrong("config.json lacks ffn_config.moe_num_experts or ffn_hidden_size".into());
            }
        },
        _ => return wrong("not the number of dimensions that this model has".into()),
    };
    // Which of the two axes counts outputs, and which is hidden_size.
    let out_first = match row.order {
        Order::Either => {
            let on_first = hidden == Some(a);
            let on_last = hidden == Some(b);
            match (hidden, on_first, on_last) {
                (None, ..) => {
                    return wrong("hidden_size is not in config.json, so the orientation is unknown".into());
                }
                (_, true, false) => row.hidden == Hidden::Out,
                (_, false, true) => row.hidden == Hidden::In,
                (Some(n), true, true) => {
                    return wrong(format!("both axes are hidden_size {n}, so the orientation is unknown"));
                }
                (Some(n), false, false) => return wrong(format!("no axis is hidden_size {n}")),
            }
        }
        order => matches!(order, Order::OutIn | Order::FlatOutIn),
    };
    let (out, input) = if out_first { (a, b) } else { (b, a) };
    let side = if row.hidden == Hidden::In { input } else { out };
    if let Some(n) = hidden.filter(|&n| n != side) {
        let axis = if (row.hidden == Hidden::In) == out_first { "last" } else { "middle" };
        return wrong(format!("the {axis} axis should be hidden_size {n}"));
    }
    let size = a as u64 * b as u64;
    Ok(if out_first {
        (experts, size, out, b as u64, input, 1)
    } else {
        (experts, size, out, 1, input, b as u64)
    })
}

/// What stands before `tail`, if the name ends with it at a dot.
fn head<'a>(name: &'a str, tail: &str) -> Option<&'a str> {
    let head = name.strip_suffix(tail)?;
    (head.is_empty() || head.ends_with('.')).then_some(head)
}

/// Whether the name says "stacked experts", whatever the model.
fn looks_stacked(tensor: &TensorInfo) -> bool {
    let mut components = tensor.name.split('.');
    let moe = components.any(|c| c.contains("experts") || c.contains("moe"));
    let names = ["gate_up_proj", "input_linear.weight", "output_linear.weight"];
    tensor.shape.len() == 3 && (moe || names.iter().any(|n| tensor.name.ends_with(n)))
}

fn unknown(tensor: &TensorInfo, facts: &Facts) -> String {
    let shape = &tensor.shape;
    match facts.model_types.first() {
        None => {
            format!("3-D weight {shape:?} without a model_type in config.json: orientation unknown")
        }
        Some(model) if family(facts).is_some() => {
            format!("3-D weight {shape:?} under a name that model_type '{model}' is not known to have")
        }
        Some(model) => {
            format!("3-D weight {shape:?} of an unknown model_type '{model}': orientation unknown")
        }
    }
}

fn family(facts: &Facts) -> Option<&'static Family> {
    let of = |model: &String| FAMILIES.iter().find(|f| f.models.contains(&model.as_str()));
    facts.model_types.iter().find_map(of)
}

#[cfg(test)]
mod tests;
