//! Which file each tensor goes to, and the index of a sharded checkpoint.

use super::Plan;
use crate::{
    formats::PARTS,
    tensor::TensorInfo,
    writer::{Container, FileLayout},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Distributes the output's tensors over files, in the order of the jobs; what one job makes stays together.
///
/// Jobs point into `tensors`, with file 0, and point to their places afterwards.
pub(crate) fn lay_out(
    plan: &mut Plan,
    tensors: Vec<TensorInfo>,
    max_shard_size: Option<u64>,
    metadata: &BTreeMap<String, String>,
) {
    let mut files: Vec<Vec<TensorInfo>> = vec![Vec::new()];
    let mut places: Vec<Option<(usize, usize)>> = vec![None; tensors.len()];
    let mut size = 0;
    for job in &mut plan.jobs {
        let new = || job.outputs.iter().filter(|(_, _, t)| places[*t].is_none());
        let bytes: u64 = new().map(|&(_, _, t)| tensors[t].bytes()).sum();
        if size > 0 && bytes > 0 && max_shard_size.is_some_and(|max| size + bytes > max) {
            files.push(Vec::new());
            size = 0;
        }
        size += bytes;
        let last = files.len() - 1;
        for (_, file, tensor) in &mut job.outputs {
            let place = places[*tensor].get_or_insert_with(|| {
                files[last].push(tensors[*tensor].clone());
                (last, files[last].len() - 1)
            });
            (*file, *tensor) = *place;
        }
    }
    let count = files.len();
    let name = |i: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    let layout = |(i, tensors)| FileLayout {
        name: name(i),
        tensors,
        metadata: metadata.clone(),
        ..FileLayout::default()
    };
    plan.files = files.into_iter().enumerate().map(layout).collect();
}

/// Gives the output's tensors their other names: in files of torch as more keys, elsewhere as a note in the file.
pub(crate) fn tie(plan: &mut Plan, tied: &BTreeMap<String, String>, container: Container) {
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    for (f, file) in plan.files.iter_mut().enumerate() {
        file.container = container;
        places.extend(file.tensors.iter().enumerate().map(|(t, info)| (info.name.clone(), (f, t))));
    }
    let mut noted: BTreeMap<&str, &str> = BTreeMap::new();
    let mut notes = Vec::new();
    for (other, name) in tied {
        let parts = PARTS.iter().filter_map(|part| Some((part, *places.get(&format!("{name}{part}"))?)));
        let parts: Vec<(&&str, (usize, usize))> = parts.collect();
        let under = match (parts.is_empty(), container) {
            (true, _) => {
                notes.push(format!("{other} was the same as {name}, which is not written under this name"));
                continue;
            }
            (false, Container::Safetensors | Container::Gguf) => {
                noted.insert(other, name);
                "the latter name"
            }
            (false, Container::Torch) => {
                for (part, (file, tensor)) in parts {
                    plan.files[file].aliases.push((format!("{other}{part}"), tensor));
                }
                "both names"
            }
        };
        notes.push(format!("{other} is the same as {name}: written once, under {under}"));
    }
    for file in &mut plan.files {
        let text = file.metadata.get("monoquant").cloned();
        let ours = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        if let Some(Value::Object(mut ours)) = ours.or_else(|| (!noted.is_empty()).then(|| json!({}))) {
            ours.shift_remove("tied");
            if !noted.is_empty() {
                ours.insert("tied".into(), json!(noted));
            }
            let mut ours = Value::Object(ours);
            ours.sort_all_objects();
            file.metadata.insert("monoquant".to_owned(), ours.to_string());
        }
    }
    plan.notes.extend(super::shortened(notes));
}

/// The index of a sharded checkpoint.
pub fn index(files: &[FileLayout]) -> Value {
    let total: u64 = files.iter().flat_map(|f| &f.tensors).map(TensorInfo::bytes).sum();
    let map: BTreeMap<&str, &str> =
        files.iter().flat_map(|f| f.tensors.iter().map(|t| (t.name.as_str(), f.name.as_str()))).collect();
    json!({"metadata": {"total_size": total}, "weight_map": map})
}
