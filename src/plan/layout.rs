//! Which file each tensor goes to, and the index of a sharded checkpoint.

use super::{Folder, Plan};
use crate::{
    formats::part_names,
    tensor::TensorInfo,
    writer::{Container, FileLayout},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Distributes the output's tensors over files, in the order of the jobs; what one job makes stays together.
///
/// Jobs point into `tensors`, with a folder's number for the file, and point to their places afterwards. `metadata` is
/// that of the files of each folder.
pub(crate) fn lay_out(
    plan: &mut Plan,
    tensors: Vec<TensorInfo>,
    max_shard_size: Option<u64>,
    metadata: Vec<BTreeMap<String, String>>,
) {
    if plan.folders.is_empty() {
        plan.folders.push(Folder::default());
    }
    let mut places: Vec<Option<(usize, usize)>> = vec![None; tensors.len()];
    let mut first = 0;
    for (number, folder) in plan.folders.iter().enumerate() {
        let mut files: Vec<Vec<TensorInfo>> = vec![Vec::new()];
        let mut size = 0;
        for job in &plan.jobs {
            let new: Vec<usize> = job
                .outputs
                .iter()
                .filter(|o| o.file == number && places[o.tensor].is_none())
                .map(|o| o.tensor)
                .collect();
            let bytes: u64 = new.iter().map(|&t| tensors[t].bytes()).sum();
            if size > 0 && bytes > 0 && max_shard_size.is_some_and(|max| size + bytes > max) {
                files.push(Vec::new());
                size = 0;
            }
            size += bytes;
            let last = files.len() - 1;
            for t in new {
                places[t].get_or_insert_with(|| {
                    files[last].push(tensors[t].clone());
                    (first + last, files[last].len() - 1)
                });
            }
        }
        let count = files.len();
        let name = |i: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let layout = |(i, tensors)| FileLayout {
            folder: folder.name.clone(),
            name: name(i),
            tensors,
            metadata: metadata.get(number).cloned().unwrap_or_default(),
            ..FileLayout::default()
        };
        plan.files.extend(files.into_iter().enumerate().map(layout));
        first += count;
    }
    for place in plan.jobs.iter_mut().flat_map(|job| &mut job.outputs) {
        if let Some((file, tensor)) = places[place.tensor] {
            (place.file, place.tensor) = (file, tensor);
        }
    }
}

/// Gives the output's tensors their other names: in files of torch as more keys, elsewhere as a note in the file.
pub(crate) fn tie(plan: &mut Plan, tied: &BTreeMap<String, String>, container: Container) {
    plan.files.iter_mut().for_each(|file| file.container = container);
    // of several folders, each with the same names or parts of the same layers
    let mut places: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
    for (f, file) in plan.files.iter().enumerate().filter(|_| !tied.is_empty()) {
        for (t, info) in file.tensors.iter().enumerate() {
            places.entry(info.name.clone()).or_default().push((f, t));
        }
    }
    let mut noted: BTreeMap<&str, &str> = BTreeMap::new();
    let mut notes = Vec::new();
    for (other, name) in tied {
        let pairs = part_names(name).into_iter().zip(part_names(other));
        let found = pairs.filter_map(|(part, alias)| Some((alias, places.get(&part)?)));
        let parts: Vec<(String, (usize, usize))> = found
            .flat_map(|(alias, places)| places.iter().map(move |place| (alias.clone(), *place)))
            .collect();
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
                for (alias, (file, tensor)) in parts {
                    plan.files[file].aliases.push((alias, tensor));
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
pub fn index(files: &[&FileLayout]) -> Value {
    let total: u64 = files.iter().flat_map(|f| &f.tensors).map(TensorInfo::bytes).sum();
    let map: BTreeMap<&str, &str> =
        files.iter().flat_map(|f| f.tensors.iter().map(|t| (t.name.as_str(), f.name.as_str()))).collect();
    json!({"metadata": {"total_size": total}, "weight_map": map})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    /// Of a file of torch each part is found under both names, whatever the format calls it.
    #[test]
    fn every_part_of_a_tied_layer_has_its_other_name() {
        for parts in [
            &["weight"][..],
            &["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"],
            &["qweight", "qzeros", "scales", "g_idx"],
        ] {
            let named = |module: &str| parts.iter().map(move |part| format!("{module}.{part}")).collect();
            let (names, others): (Vec<String>, Vec<String>) = (named("embed"), named("head"));
            let tensor = |name: String| TensorInfo { name, dtype: Dtype::I8, shape: vec![1] };
            let file =
                FileLayout { tensors: names.into_iter().map(tensor).collect(), ..FileLayout::default() };
            let mut plan = Plan { files: vec![file], ..Plan::default() };
            let tied = BTreeMap::from([("head.weight".to_owned(), "embed.weight".to_owned())]);
            tie(&mut plan, &tied, Container::Torch);
            let mut aliases = plan.files[0].aliases.clone();
            aliases.sort_by_key(|(_, tensor)| *tensor);
            assert_eq!(aliases, others.into_iter().zip(0..).collect::<Vec<_>>());
            assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
        }
    }
}
